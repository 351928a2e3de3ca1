"""The targets by the values of ``Task.targets``."""

from __future__ import annotations

from multilevel.recipes.data.targets.base import LabelLists, Labels, Targets
from multilevel.recipes.data.targets.marked import Boxes, Masks

TARGETS: dict[str, type[Targets]] = {"labels": Labels, "multilabels": LabelLists, "mask": Masks, "boxes": Boxes}
