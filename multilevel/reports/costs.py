"""Computes the cost and the saving of inspection in money, for inspection reports and studies.

Of N parts with defect rate d, inspection with recall r and false-alarm rate f misses N d (1 - r) defects and stops
N (1 - d) f good parts. With costs m of a missed defect and a of a false alarm:

    with inspection             N (d (1 - r) m + (1 - d) f a)
    without inspection          N d m
    rejecting every part        N (1 - d) a
    training                    hours x cost.machine_hour + labels x cost.label
    break-even, in days         training / (saving per part x parts per day)

A defect that is found costs nothing here: reworking or scrapping it is part of making it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from multilevel.recipes.export.operating_point import MAX_FALSE_ALARMS
from multilevel.reports.proportions import Rate
from multilevel.solvers.ranges import Above, AtLeast, Below, NonNegative, PositiveNumber, Text, require

PARTS = 1000


@dataclass
class CostSettings:
    """Costs, all in the same currency.

    Args:
        miss: of a defect that is not found.
        false_alarm: of a good part that is stopped.
        machine_hour: of an hour of the training machine.
        label: of labelling one image.
    """

    miss: NonNegative | None = None
    false_alarm: NonNegative | None = None
    machine_hour: NonNegative = 0.0
    label: NonNegative = 0.0

    @property
    def known(self) -> bool:
        """Whether costs of errors were given.

        Raises:
            SettingError: only one of the two was given.
        """
        together = (self.miss is None) == (self.false_alarm is None)
        missing = "cost.miss" if self.miss is None else "cost.false_alarm"
        require(missing, None, together, "a cost, since the cost of the other kind of error is set")
        return self.miss is not None


@dataclass
class MoneySettings:
    """Settings that turn errors into counts and money.

    Args:
        max_false_alarms: largest share of good parts to stop. None: 0.02.
        cost: of errors and of training; without cost.miss and cost.false_alarm there are only counts.
        parts_per_day: parts inspected in a day, for the break-even day.
        defect_rate: share of defective parts in production. None: that of the images.
        currency: of all costs.
    """

    max_false_alarms: Annotated[float | None, AtLeast(0), Below(1)] = None
    cost: CostSettings = field(default_factory=CostSettings)
    parts_per_day: PositiveNumber | None = None
    defect_rate: Annotated[float | None, Above(0), Below(1)] = None
    currency: Text = "EUR"

    @property
    def allowed_false_alarms(self) -> float:
        """The largest share of good parts to stop."""
        return MAX_FALSE_ALARMS if self.max_false_alarms is None else self.max_false_alarms


def money_settings(values: Mapping[str, Any]) -> MoneySettings:
    """The settings among the fields of ``values``, whose ``cost`` may be a mapping or ``CostSettings``."""
    own = {entry.name: values[entry.name] for entry in fields(MoneySettings) if entry.name in values}
    if isinstance(own.get("cost"), Mapping):
        own["cost"] = CostSettings(**own["cost"])
    return MoneySettings(**own)


@dataclass(frozen=True)
class Way:
    """A way of inspecting: a trained model at a threshold.

    Args:
        name: its name in tables.
        recall: share of defects found, with its interval.
        false_alarms: share of good parts stopped, with its interval.
        machine_hours: hours of training.
        labels: images labelled for it.
    """

    name: str
    recall: Rate
    false_alarms: Rate
    machine_hours: float = 0.0
    labels: int = 0


@dataclass(frozen=True)
class Counts:
    """Parts per thousand."""

    defects: float
    detected: Rate
    missed: Rate
    false_alarms: Rate


@dataclass(frozen=True)
class CostRow:
    """Costs of one way of inspecting; money per thousand parts unless stated otherwise.

    Intervals go from both errors at their unfavourable end to both at their favourable one; since each error's interval
    holds with 95%, both hold with at least 90% (Bonferroni).

    Attributes:
        name: the way's name.
        inspected: cost of errors with inspection.
        uninspected: cost of errors without inspection.
        rejected: cost of rejecting every part.
        saving: against no inspection; its low end is the unfavourable one.
        saving_over_trivial: against the cheaper of no inspection and rejecting everything.
        training: cost of training, once.
        days: days until the saving over the cheaper trivial policy has paid for training, with the favourable end as
            low; infinite if it never does; None without ``parts_per_day``.
    """

    name: str
    inspected: Rate
    uninspected: float
    rejected: float
    saving: Rate
    saving_over_trivial: Rate
    training: float
    days: Rate | None


def count_parts(way: Way, defect_rate: float) -> Counts:
    """Defects found and missed, and false alarms, per thousand parts.

    >>> count_parts(Way("model", Rate(0.9, 0.8, 0.95), Rate(0.02, 0.01, 0.03)), 0.01).missed
    Rate(value=1.0, low=0.5, high=2.0)
    """
    defects, good = PARTS * defect_rate, PARTS * (1 - defect_rate)
    detected = Rate(*(round(defects * recall, 12) for recall in way.recall))
    missed = Rate(*(round(defects - value, 12) for value in (detected.value, detected.high, detected.low)))
    return Counts(defects, detected, missed, Rate(*(round(good * share, 12) for share in way.false_alarms)))


def cost_row(way: Way, costs: CostSettings, defect_rate: float, parts_per_day: float | None = None) -> CostRow:
    """The costs of a way of inspecting; the formulas stand at the top of the module.

    Args:
        way: recall, false alarms and training.
        costs: with ``miss`` and ``false_alarm``.
        defect_rate: share of defective parts in production.
        parts_per_day: parts inspected in a day.

    >>> way = Way("model", Rate(0.9, 0.8, 0.95), Rate(0.02, 0.01, 0.03), machine_hours=10, labels=500)
    >>> row = cost_row(way, CostSettings(miss=50, false_alarm=2, machine_hour=3, label=0.5), 0.01, 2000)
    >>> [round(value, 2) for value in row.saving], round(row.days.value, 2)
    ([410.4, 340.6, 455.2], 0.34)
    """
    assert costs.miss is not None
    assert costs.false_alarm is not None
    counts = count_parts(way, defect_rate)
    pairs = zip(counts.missed, counts.false_alarms, strict=True)
    inspected = Rate(*(missed * costs.miss + stopped * costs.false_alarm for missed, stopped in pairs))
    uninspected = counts.defects * costs.miss
    rejected = PARTS * (1 - defect_rate) * costs.false_alarm
    over_trivial = _saving(min(uninspected, rejected), inspected)
    training = way.machine_hours * costs.machine_hour + way.labels * costs.label
    days = None
    if parts_per_day is not None:
        value, low, high = (_days(training, saving, parts_per_day) for saving in over_trivial)
        days = Rate(value, high, low)
    saving = _saving(uninspected, inspected)
    return CostRow(way.name, inspected, uninspected, rejected, saving, over_trivial, training, days)


def cost_table(
    ways: Sequence[Way], costs: CostSettings, defect_rate: float, parts_per_day: float | None = None
) -> list[CostRow]:
    """The costs of several ways of inspecting, such as a study's ways of training, the largest saving first."""
    rows = [cost_row(way, costs, defect_rate, parts_per_day) for way in ways]
    return sorted(rows, key=lambda row: -row.saving.value)


def _saving(before: float, after: Rate) -> Rate:
    return Rate(before - after.value, before - after.high, before - after.low)


def _days(training: float, saving: float, parts_per_day: float) -> float:
    if training == 0 and saving >= 0:
        return 0.0
    return training / (saving / PARTS * parts_per_day) if saving > 0 else float("inf")
