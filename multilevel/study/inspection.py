"""Counts the errors of every way of training as an inspection, at a threshold chosen on held-out training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multilevel.configuration.composition import build_recipe
from multilevel.problems import load_weights
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation.predictions import Predictions, predict
from multilevel.recipes.export.operating_point import choose_threshold, defect_probability
from multilevel.runs.folder import RunFolder, read_results
from multilevel.study.plan import Study, StudyRun
from multilevel.study.scores import TRAINED

FILE = "inspection.json"


def write_scores(run: Path, study: Study) -> None:
    """Predict defects with each encoder of a part, by the study's inspection protocol, and write their scores.

    The scores are those of the scored images and, out of fold, of the labelled training images.

    Args:
        run: the folder of an ended part.
        study: a study with a good class.
    """
    folder = RunFolder(run)
    recipe = build_recipe(folder.config_with_division())
    assert isinstance(recipe, EncoderRecipe)  # the recipes with masks are
    load_weights(recipe.graph, folder.checkpoint, only=recipe.encoder_level)
    settings: Any = recipe.settings.evaluation  # type: ignore[attr-defined]
    protocol = settings.protocol(study.inspection_protocol)
    good = recipe.data.class_names.index(str(study.good))
    setup = recipe.setup()
    scores = {
        candidate.name: _scores(predict(candidate, setup, settings, protocol, study.labels[-1]), good)
        for candidate in recipe.candidates(settings.references)
        if candidate.own is None
    }
    folder.write_json(FILE, scores)


def errors_of(study: Study, run: Path, part: StudyRun) -> Iterator[dict[str, Any]]:
    """The errors of each encoder of a part, at the lowest threshold with few enough false alarms on held-out images.

    Args:
        study: the study.
        run: the part's folder.
        part: the part.

    Yields:
        way (the arm's name, or the reference's), reference (whether it is one), seed, threshold, detected and defects,
        stopped and good (counts of scored images), images (labelled ones fitted to). An encoder for which no training
        image of a kind could be held out, or no scored image is of a kind, is left out.
    """
    path = run / FILE
    if study.good is None or not path.exists():
        return
    for encoder, stored in read_results(path).items():
        held_out, scored = (_arrays(stored[name]) for name in ("held_out", "scored"))
        if any(not kind.any() for defect in (held_out[1], scored[1]) for kind in (defect, ~defect)):
            continue
        threshold = choose_threshold(*held_out, "false_alarms", study.money.allowed_false_alarms)
        stopped = scored[0] >= threshold
        yield {
            "way": part.arm.name if encoder == TRAINED else encoder,
            "reference": encoder != TRAINED,
            "seed": part.seed,
            "threshold": threshold,
            "detected": int(stopped[scored[1]].sum()),
            "defects": int(scored[1].sum()),
            "stopped": int(stopped[~scored[1]].sum()),
            "good": int((~scored[1]).sum()),
            "images": stored["images"],
        }


def _scores(predictions: Predictions, good: int) -> dict[str, Any]:
    sides = {
        "held_out": (predictions.fitted_labels, predictions.fitted),
        "scored": (predictions.labels, predictions.scored),
    }
    return {
        "images": predictions.images,
        **{
            name: {
                "defect": (labels != good).tolist(),
                "score": (defect_probability(values, good) if len(labels) else np.zeros(0)).tolist(),
            }
            for name, (labels, values) in sides.items()
        },
    }


def _arrays(stored: Mapping[str, Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(stored["score"], np.float64), np.array(stored["defect"], bool)
