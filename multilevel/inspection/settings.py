"""The settings of ``multilevel inspect``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from multilevel.commands.image_files import ImageFileSettings
from multilevel.recipes.export.operating_point import (
    MAX_FALSE_ALARMS,
    MIN_RECALL,
    NUMBER,
    RULES,
    OperatingPoint,
    threshold_number,
)
from multilevel.reports.costs import MoneySettings
from multilevel.reports.texts import LANGUAGES
from multilevel.solvers.ranges import Above, AtLeast, Below, NonNegative, OneOf, Text

UNKNOWN = ("refuse", "defect", "unlabelled")


@dataclass
class InspectSettings(MoneySettings, ImageFileSettings):
    """Settings of ``multilevel inspect``.

    Args:
        output: the .html file to write; the numbers are written next to it, as .json.
        language: of the report: en or ja.
        good: the class of good parts. None: the one stored in the export, or named good, ok, normal, free, fine, 良品
            or similar, else the largest class of the folder; the report says which.
        unknown: what a class folder that the model does not know means: refuse, defect, or unlabelled.
        threshold: false_alarms (the lowest with at most max_false_alarms), recall (the highest with at least
            min_recall), or a number. None: that of the export, or else false_alarms.
        max_false_alarms: largest share of good parts to stop. None: that of the export, or else 0.02.
        min_recall: share of the defects that the model is claimed to find, which the report compares with the data.
            None: that of the export, or else 0.99.
        worst: pictures on each page of errors.
        machine_hours: hours of training, for the cost of training.
        labels_bought: images labelled for the training, for its cost.
    """

    output: str = "inspection.html"
    language: Annotated[str, OneOf(*LANGUAGES)] = "en"
    good: Text | None = None
    unknown: Annotated[str, OneOf(*UNKNOWN)] = "refuse"
    threshold: str | None = None
    max_false_alarms: Annotated[float | None, AtLeast(0), Below(1)] = None
    min_recall: Annotated[float | None, Above(0), Below(1)] = None
    worst: Annotated[int, AtLeast(0)] = 24
    machine_hours: NonNegative = 0.0
    labels_bought: Annotated[int, AtLeast(0)] = 0

    @property
    def number(self) -> float | None:
        """The threshold, if it is a number; None if it is a rule.

        Raises:
            SettingError: it is neither.
        """
        return threshold_number(self.threshold)

    def check_together(self) -> None:
        """Raise SettingError for a threshold that is neither rule nor number, or a cost without its counterpart."""
        _ = self.number, self.cost.known

    def completed(self, stored: OperatingPoint | None) -> InspectSettings:
        """These settings, with the export's rule and limits, or else the usual ones, where none were given."""
        rule, limit = (None, None) if stored is None else (stored.rule, stored.limit)
        limits = {rule: limit} if limit is not None else {}
        usual = {"false_alarms": (self.max_false_alarms, MAX_FALSE_ALARMS), "recall": (self.min_recall, MIN_RECALL)}
        allowed, found = (
            limits.get(name, default) if given is None else given for name, (given, default) in usual.items()
        )
        threshold = self.threshold or (rule if rule in RULES else None)
        return replace(self, max_false_alarms=allowed, min_recall=found, threshold=threshold)

    def takes_number(self, stored: OperatingPoint | None, held_out: bool) -> bool:
        """Whether the export's own threshold decides: the settings ask for no other, and it was given as a number or
        without held-out images to choose it on."""
        plain = self.threshold is None and self.max_false_alarms is None
        return stored is not None and plain and (stored.rule == NUMBER or not held_out)

    @property
    def rule(self) -> str:
        """The rule that chooses the threshold."""
        return self.threshold if self.threshold in RULES else RULES[0]

    def limit(self, rule: str) -> float:
        """The limit of a rule: the largest share of false alarms, or the smallest recall."""
        limit = self.min_recall if rule == "recall" else self.max_false_alarms
        assert limit is not None  # completed
        return limit
