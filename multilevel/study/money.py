"""Computes what each way of training costs and saves, from its errors as an inspection; see ``reports.costs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean
from typing import Any

from multilevel.levels.masks import POLICIES
from multilevel.reports.costs import PARTS, CostRow, Counts, MoneySettings, Way, cost_table, count_parts
from multilevel.reports.proportions import Proportion, Rate
from multilevel.study.statistics import Interval, summarize_seeds

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class WayOfTraining:
    """A mask policy or a reference as an inspection; ``costs`` is None without costs of errors."""

    way: Way
    reference: bool
    seeds: int
    counts: Counts
    costs: CostRow | None


@dataclass(frozen=True)
class Extra:
    """The arm of the verdict against the baseline, in money.

    Attributes:
        arm, baseline: their names.
        saving: mean over the seeds of what the arm saves more per thousand parts.
        interval: its 95% interval over seeds (Student's t of the paired differences); None if it is undefined.
        training: how much more its training costs, once.
        days: days until the saving has paid for the training; infinite if it never does; None without
            ``parts_per_day``.
    """

    arm: str
    baseline: str
    saving: float
    interval: Interval | None
    training: float
    days: float | None


@dataclass(frozen=True)
class StudyMoney:
    """The counts and costs of a study.

    Attributes:
        good: the good class.
        defect_rate: share of defective parts; ``from_images``: it is that of the scored images.
        defects, good_images: scored images of each kind.
        ways: the largest saving first; without costs, in the order of the arms.
        extra: None without costs or without seeds that both arms have.
    """

    good: str
    defect_rate: float
    from_images: bool
    defects: int
    good_images: int
    ways: list[WayOfTraining]
    extra: Extra | None


def study_money(result: Mapping[str, Any], settings: MoneySettings) -> StudyMoney | None:
    """The counts and costs of every way of training; None if no errors are known.

    Recall and false alarms are means over seeds. Their intervals go from the lowest to the highest end of the seeds'
    Clopper-Pearson intervals, so they cover the scored images and the seeds.

    Args:
        result: the contents of study.json.
        settings: costs and rates.
    """
    errors = result["inspection"]
    if not errors:
        return None
    defects, good_images = errors[0]["defects"], errors[0]["good"]
    rate = settings.defect_rate or defects / (defects + good_images)
    by_name: dict[str, list[Any]] = {}
    for error in errors:
        by_name.setdefault(error["way"], []).append(error)
    ways = {name: _way(result, name, own) for name, own in by_name.items()}
    costs: dict[str, CostRow | None] = dict.fromkeys(ways)
    if settings.cost.known:
        table = cost_table(list(ways.values()), settings.cost, rate, settings.parts_per_day)
        costs = {row.name: row for row in table}  # in another order
    trained = [
        WayOfTraining(ways[name], by_name[name][0]["reference"], len(by_name[name]), count_parts(ways[name], rate), row)
        for name, row in costs.items()
    ]
    extra = _extra(result, ways, settings, rate) if settings.cost.known else None
    good = str(result["study"]["good"])
    return StudyMoney(good, rate, settings.defect_rate is None, defects, good_images, trained, extra)


def _way(result: Mapping[str, Any], name: str, errors: Sequence[Mapping[str, Any]]) -> Way:
    """A way of training with its errors over seeds."""
    recall = over_seeds([Proportion.of(error["detected"], error["defects"]) for error in errors])
    false_alarms = over_seeds([Proportion.of(error["stopped"], error["good"]) for error in errors])
    return Way(name, recall, false_alarms, *_training(result, name, errors))


def over_seeds(proportions: Sequence[Proportion]) -> Rate:
    """The mean share, from the lowest to the highest end of the intervals.

    >>> [round(number, 3) for number in over_seeds([Proportion.of(9, 10), Proportion.of(7, 10)])]
    [0.8, 0.348, 0.997]
    """
    shares = [proportion.share or 0.0 for proportion in proportions]
    lows, highs = [each.low for each in proportions], [each.high for each in proportions]
    return Rate(fmean(shares), min(lows), max(highs))


def _training(result: Mapping[str, Any], name: str, errors: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Hours of the machine, the mean over seeds, and labels: those that the classifier was fitted to or, for masks that
    the task guides, all of the training images. References are not trained."""
    labels = max(error["images"] for error in errors)
    arm = next((arm for arm in result["arms"] if arm["name"] == name), None)
    if arm is None or errors[0]["reference"]:
        return 0.0, labels
    guided = POLICIES[arm["policy"]].learns_from == "downstream"
    return arm["seconds"]["mean"] / SECONDS_PER_HOUR, max(
        labels, result["study"]["training_labels"]
    ) if guided else labels


def _extra(result: Mapping[str, Any], ways: Mapping[str, Way], settings: MoneySettings, rate: float) -> Extra | None:
    arm, baseline = result["question"]["about"], result["question"]["baseline"]
    costs: dict[str, dict[int, float]] = {arm: {}, baseline: {}}
    for error in result["inspection"]:
        if error["way"] in costs:
            costs[error["way"]][error["seed"]] = _cost_of_errors(error, settings, rate)
    seeds = sorted(costs[arm].keys() & costs[baseline].keys())
    if not seeds:
        return None
    summary = summarize_seeds([costs[baseline][seed] - costs[arm][seed] for seed in seeds])
    hours = ways[arm].machine_hours - ways[baseline].machine_hours
    labels = ways[arm].labels - ways[baseline].labels
    training = hours * settings.cost.machine_hour + labels * settings.cost.label
    days = None
    if settings.parts_per_day is not None:
        daily = summary.mean / PARTS * settings.parts_per_day
        days = 0.0 if training <= 0 <= daily else training / daily if daily > 0 else inf
    return Extra(arm, baseline, summary.mean, summary.interval, training, days)


def _cost_of_errors(error: Mapping[str, Any], settings: MoneySettings, rate: float) -> float:
    """The cost of the errors of one seed, per thousand parts."""
    missed, stopped = 1 - error["detected"] / error["defects"], error["stopped"] / error["good"]
    cost = settings.cost
    return PARTS * (rate * missed * (cost.miss or 0.0) + (1 - rate) * stopped * (cost.false_alarm or 0.0))
