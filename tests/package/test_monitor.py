"""The report of new images names those that are unusual, however many there are."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from multilevel.commands.image_files import Results
from multilevel.commands.monitor import new_report
from multilevel.recipes.export.drift import LARGEST, Sample, compare
from multilevel.recipes.export.reference import DriftReference


@pytest.mark.parametrize("row", [3, LARGEST - 1, LARGEST, LARGEST + 150])
def test_the_most_unusual_image_is_named(row):
    random = np.random.default_rng(0)
    features = random.normal(size=(LARGEST + 200, 3)).astype(np.float32)
    features[row] += 40
    reference = DriftReference(Sample(random.normal(size=(50, 3)).astype(np.float32)), None)
    files = [Path(f"{number}.png") for number in range(len(features))]
    results = Results(files, features, None, {})
    request = SimpleNamespace(model=SimpleNamespace(name="export", class_names=()))
    report = new_report(request, reference, results, compare(reference.sample, Sample(features)))
    assert report["most_unusual"][0]["file"] == f"{row}.png"
    assert report["most_unusual"][0]["unusual"]
