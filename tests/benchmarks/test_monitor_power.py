"""Reports hold whole groups; files keep their format and quality; alarms are counted by test."""

import io

import numpy as np
from monitor_power import CHANGES, NAMES, alarms, drawn, saved
from PIL import Image

from multilevel.recipes.export.drift import Sample
from multilevel.recipes.export.optics import MEASURES


def test_a_report_has_whole_groups_but_for_the_last():
    groups = np.repeat(np.arange(30), 4)
    rows = drawn(groups, 50, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 50
    assert sorted(np.bincount(groups[rows])[np.unique(groups[rows])].tolist()) == [2, *[4] * 12]


def test_changed_pictures_keep_size_format_and_quality():
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    Image.fromarray(values).save(file, "JPEG", quality=83)
    for change in CHANGES.values():
        original = Image.open(file)
        changed = saved(original, change)
        assert (changed.format, changed.size, changed.mode) == ("JPEG", (90, 60), "L")
        assert changed.quantization == original.quantization


def test_alarms_are_counted_by_test():
    random = np.random.default_rng(0)
    shift = [4.0 if name == "noise" else 0.0 for name in MEASURES]
    reference = Sample(random.normal(size=(60, 3)), random.normal(size=(60, len(MEASURES))))
    new = Sample(random.normal(size=(80, 3)), random.normal(shift, size=(80, len(MEASURES))))
    counts = dict(zip([*NAMES, "any"], alarms(reference, new, np.arange(80), 30, 5).tolist(), strict=True))
    assert counts["noise"] == counts["any"] == 5
    assert sum(counts.values()) <= 13
