"""The settings of ``multilevel inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from multilevel.commands.image_files import ImageFileSettings
from multilevel.reports.costs import MoneySettings
from multilevel.reports.texts import LANGUAGES
from multilevel.reports.thresholds import RULES
from multilevel.solvers import SettingError
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
            min_recall), or a number. None: false_alarms, unless the export stores only a threshold.
        min_recall: share of the defects that the model is claimed to find, which the report compares with the data.
        worst: pictures on each page of errors.
        machine_hours: hours of training, for the cost of training.
        labels_bought: images labelled for the training, for its cost.
    """

    output: str = "inspection.html"
    language: Annotated[str, OneOf(*LANGUAGES)] = "en"
    good: Text | None = None
    unknown: Annotated[str, OneOf(*UNKNOWN)] = "refuse"
    threshold: str | None = None
    min_recall: Annotated[float, Above(0), Below(1)] = 0.99
    worst: Annotated[int, AtLeast(0)] = 24
    machine_hours: NonNegative = 0.0
    labels_bought: Annotated[int, AtLeast(0)] = 0

    @property
    def number(self) -> float | None:
        """The threshold, if it is a number; None if it is a rule.

        Raises:
            SettingError: it is neither.
        """
        if self.threshold in (None, *RULES):
            return None
        try:
            number = float(str(self.threshold))
        except ValueError:
            number = float("nan")
        if not -float("inf") < number < float("inf"):
            raise SettingError("threshold", self.threshold, f"{', '.join(RULES)}, or a number")
        return number

    def check_together(self) -> None:
        """Raise SettingError for a threshold that is neither rule nor number, or a cost without its counterpart."""
        _ = self.number, self.cost.known

    @property
    def rule(self) -> str:
        """The rule that chooses the threshold."""
        return self.threshold if self.threshold in RULES else RULES[0]

    def limit(self, rule: str) -> float:
        """The limit of a rule: the largest share of false alarms, or the smallest recall."""
        return self.min_recall if rule == "recall" else self.max_false_alarms
