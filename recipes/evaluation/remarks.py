"""Remarks below an evaluation's table: which references the encoder does not surpass, and how few images decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multilevel.recipes.data import ImageData
from multilevel.recipes.evaluation.evaluate import label_pool
from multilevel.recipes.evaluation.labels import Amount, labels_phrase, short_classes
from multilevel.recipes.evaluation.scores import PHRASES, Score, largest_amount
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.recipes.evaluation.supervised import COLUMN
from multilevel.recipes.evaluation.table import format_table, protocol_title

#: Below this many images in the scored part, or in a class of it, a line says so.
FEW_IMAGES, FEW_OF_A_CLASS = 30, 5
LISTED = 4


def describe_scores(scores: Sequence[Score], data: ImageData, settings: EvaluationSettings) -> str:
    """The table, then a line for each remark."""
    remarks = [not_better(scores, settings.metric), few_images(scored_images(data, settings.split), settings.split)]
    remarks += [few_labels(amount, fitted_images(data, settings)) for amount in settings.amounts]
    return "\n".join([format_table(scores, settings.split, settings.metric), *filter(None, remarks)])


def not_better(scores: Sequence[Score], metric: str | None = None) -> str:
    """A line that names the references that the first encoder does not surpass; empty if there is none.

    Each is compared by the same protocol, with the most labels; the supervised classifier, which is
    scored as it is, with the encoder's best protocol.

    Args:
        scores: scores of one or more encoders.
        metric: the metric; None takes each score's first.

    >>> rows = [("trained encoder", 0.92), ("untrained encoder", 0.9), ("raw pixels", 0.975)]
    >>> not_better([Score(encoder, "linear_probe", 1.0, {"accuracy": value}) for encoder, value in rows])
    'the trained encoder is not better than raw pixels (linear probe: 97.5% against 92.0%)'
    """
    largest = largest_amount(scores)
    rows = [(score, metric or next(iter(score.metrics))) for score in scores if score.labels == largest]
    name = scores[0].encoder
    own = {(score.protocol, shown): score.metrics[shown] for score, shown in rows if score.encoder == name}
    references: dict[str, list[str]] = {}
    for score, shown in rows:
        rivals = {protocol: value for (protocol, known), value in own.items() if known == shown}
        if score.protocol == COLUMN and rivals:
            best = max(rivals, key=lambda protocol: rivals[protocol])
            value, title = rivals[best], f"{protocol_title(best)}, its best"
        elif score.encoder != name and score.protocol in rivals:
            value, title = rivals[score.protocol], protocol_title(score.protocol)
        else:
            continue
        if score.metrics[shown] >= value:
            compared = f"{100 * score.metrics[shown]:.1f}% against {100 * value:.1f}%"
            references.setdefault(score.encoder, []).append(f"{title}: {compared}")
    named = [
        f"{PHRASES.get(reference, reference)} ({', '.join(compared)})" for reference, compared in references.items()
    ]
    amount = "" if largest == 1 else f"with {labels_phrase(largest)} "
    return f"{amount}the {name} is not better than {'; '.join(named)}" if named else ""


def scored_images(data: ImageData, split: str) -> dict[str, int]:
    """The number of pictures of each class in the test or validation split; empty if they have no single class."""
    return _counts((data.validation if split == "validation" else data.test).pictures.labels, data)


def fitted_images(data: ImageData, settings: EvaluationSettings) -> dict[str, int]:
    """The number of pictures of each class that protocols can be fitted to; empty if they have no single class."""
    return _counts(data.train.pictures.labels[label_pool(data, settings).numpy()], data)


def few_images(counts: dict[str, int], split: str) -> str:
    """A line if fewer than 30 images are scored, or fewer than five of a class; empty otherwise.

    >>> few_images({"good": 40, "dent": 3, "scratch": 0}, "test")
    'few test images: 3 of dent, 0 of scratch; a class without any has no part in balanced accuracy and ROC areas'
    """
    total = sum(counts.values())
    parts = [f"{total} in all"] if counts and total < FEW_IMAGES else []
    rare = [f"{count} of {name}" for name, count in counts.items() if count < FEW_OF_A_CLASS]
    parts += rare[:LISTED] + ([f"few of {len(rare) - LISTED} more classes"] if len(rare) > LISTED else [])
    if not parts:
        return ""
    absent = "; a class without any has no part in balanced accuracy and ROC areas" if 0 in counts.values() else ""
    return f"few {split} images: {', '.join(parts)}{absent}"


def few_labels(amount: Amount, counts: dict[str, int]) -> str:
    """A line about the classes that have fewer labels than an amount takes, or get none; empty otherwise.

    >>> few_labels("20 per class", {"good": 90, "dent": 7})
    '20 labels per class: there are only 7 of dent'
    >>> few_labels(2.0, {"good": 90, "dent": 7, "scratch": 3})
    '2 labels are fewer than the 3 classes: 1 of these have none'
    """
    if short := short_classes(amount, counts):
        named = [f"{count} of {name}" for name, count in list(short.items())[:LISTED]]
        named += [f"fewer of {len(short) - LISTED} more classes"] if len(short) > LISTED else []
        return f"{labels_phrase(amount)}: there are only {', '.join(named)}"
    present = sum(count > 0 for count in counts.values())
    if isinstance(amount, str) or amount <= 1 or amount >= present:
        return ""
    without = present - int(amount)
    return f"{labels_phrase(amount)} are fewer than the {present} classes: {without} of these have none"


def _counts(labels: np.ndarray, data: ImageData) -> dict[str, int]:
    if not len(labels) or int(labels.min()) < 0:
        return {}
    return dict(zip(data.class_names, np.bincount(labels, minlength=len(data.class_names)).tolist(), strict=True))
