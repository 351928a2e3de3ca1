"""The labelled training images that protocols are fitted to: a share of them, a number, or a number of each class.

An amount of labels is a number of at most 1 (a share; 1 is all labels), a whole number from 2 on (so many labelled
images), or text such as ``20 per class``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from multilevel.recipes.data.strata import random_for, rows_by_class
from multilevel.solvers import SettingError

Amount = float | str
FEWEST = 2  # images of each class in any share or number of labels, if the class and the number have as many
PER_CLASS = " per class"


class ShareOrCount:
    """The numbers that are an amount of labels."""

    def holds(self, value: float) -> bool:
        return 0 < value <= 1 or (value >= FEWEST and float(value).is_integer())

    def __str__(self) -> str:
        return "above 0: up to 1 a share (1 is all labels), from 2 on a whole number of labelled images"


LabelNumber = Annotated[float, ShareOrCount()]


def amounts_of(labels: Sequence[float] | None, labels_per_class: Sequence[int] | None) -> list[Amount]:
    """The amounts that two settings name; without either, all labels.

    >>> amounts_of(None, None), amounts_of([0.1, 10], [5]), amounts_of(None, [5])
    ([1.0], [0.1, 10.0, '5 per class'], ['5 per class'])
    """
    numbers = [1.0] if labels is None and not labels_per_class else labels or []
    return list(dict.fromkeys([*map(float, numbers), *(f"{count}{PER_CLASS}" for count in labels_per_class or [])]))


def overrides_of(amounts: Sequence[Amount]) -> list[str]:
    """The settings of ``multilevel train`` that name these amounts; none for all labels, the default.

    >>> overrides_of([0.1, "5 per class"])
    ['evaluation.labels=[0.1]', 'evaluation.labels_per_class=[5]']
    """
    numbers = [amount for amount in amounts if not isinstance(amount, str)]
    each = [per_class(amount) for amount in amounts if isinstance(amount, str)]
    named: list[tuple[str, Sequence[float]]] = []
    named += [("labels", numbers)] if numbers and list(amounts) != [1.0] else []
    named += [("labels_per_class", each)] if each else []
    return [f"evaluation.{name}={values}".replace(" ", "") for name, values in named]


def per_class(amount: str) -> int:
    """The number in ``N per class``."""
    return int(amount.removesuffix(PER_CLASS))


def labels_phrase(amount: Amount) -> str:
    """An amount in words.

    >>> [labels_phrase(amount) for amount in (0.1, 1.0, 10.0, "20 per class")]
    ['10% of the labels', 'all labels', '10 labels', '20 labels per class']
    """
    if isinstance(amount, str):
        return f"{per_class(amount)} labels{PER_CLASS}"
    if amount == 1:
        return "all labels"
    return f"{100 * amount:g}% of the labels" if amount < 1 else f"{amount:g} labels"


def draw_labels(labels: Tensor, pool: Tensor, amount: Amount, seed: int) -> Tensor:
    """Draw an amount of the labelled images, stratified by class; smaller amounts of a kind are subsets of larger ones.

    A share takes that share of every class, but at least two images. A number takes one image of every class, the
    largest classes first, then a second of every class, then images in proportion by the divisors of Sainte-Laguë.

    Args:
        labels: int64 [N], of all labelled training images.
        pool: int64 [P], the positions to draw from.
        amount: the amount; a class with fewer images gives all.
        seed: seed of the draw.

    Returns:
        Positions in ``pool``, int64, sorted.

    >>> labels = torch.tensor([0] * 8 + [1] * 4)
    >>> labels[draw_labels(labels, torch.arange(12), 6.0, seed=0)].tolist()
    [0, 0, 0, 0, 1, 1]
    """
    if amount == 1:
        return torch.arange(len(pool))
    random, own = random_for(seed, "labels"), labels[pool].numpy()
    rank, size = np.zeros(len(own), dtype=np.int64), np.zeros(len(own))
    for members in rows_by_class(own, np.arange(len(own))):
        rank[random.permutation(members)] = np.arange(len(members))  # in the order of the draw
        size[members] = len(members)
    if isinstance(amount, str):
        chosen = np.flatnonzero(rank < per_class(amount))
    elif amount > 1:
        order = np.lexsort(((rank + 0.5) / size, np.minimum(rank, FEWEST)))
        chosen = np.sort(order[: int(amount)])
    else:
        kinds, totals = np.unique(labels.numpy(), return_counts=True)
        chosen = np.flatnonzero(rank < np.maximum(FEWEST, np.round(amount * totals[np.searchsorted(kinds, own)])))
    return torch.from_numpy(chosen)


def check_amounts(amounts: Sequence[Amount], labels: Tensor, pool: int, limited: bool) -> None:
    """Raise SettingError for more labels than there are, or labels per class where images have no single class.

    Args:
        amounts: the amounts.
        labels: int64 [N], of all labelled training images.
        pool: number of images to draw from.
        limited: whether ``evaluation.max_images`` makes them fewer than N.
    """
    for amount in amounts:
        if isinstance(amount, str):
            if len(labels) and int(labels.min()) < 0:
                expected = "null: some images have no single class; labels=N takes a number of images"
                raise SettingError("evaluation.labels_per_class", per_class(amount), expected)
        elif amount > max(pool, 1):
            why = " that evaluation.max_images leaves" if limited else ""
            expected = f"at most {pool}, the number of labelled training images{why}"
            raise SettingError("evaluation.labels", int(amount), expected)


def short_classes(amount: Amount, counts: Mapping[str, int]) -> dict[str, int]:
    """The classes that have fewer labelled training images than an amount takes of each class, with their images.

    >>> short_classes("20 per class", {"good": 90, "dent": 7}), short_classes(10.0, {"good": 90, "dent": 7})
    ({'dent': 7}, {})
    """
    if not isinstance(amount, str):
        return {}
    return {name: count for name, count in counts.items() if count < per_class(amount)}
