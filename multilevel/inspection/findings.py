"""Computes everything that an inspection report says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from multilevel.inspection.distance import Distances
from multilevel.inspection.folder import Good
from multilevel.inspection.results import (
    Claim,
    ClassScore,
    area_under_precision_recall,
    area_under_roc,
    check_claim,
    count_confusions,
    score_classes,
)
from multilevel.inspection.settings import InspectSettings
from multilevel.inspection.stored import Reference, Stored
from multilevel.recipes.export.operating_point import (
    NUMBER,
    RULES,
    OperatingPoint,
    choose_threshold,
    defect_probability,
)
from multilevel.reports.costs import CostRow, Counts, Way, cost_row, count_parts
from multilevel.reports.proportions import Proportion, Rate
from multilevel.reports.thresholds import Threshold
from multilevel.solvers import DataError, SettingError

CLASSIFIER, DISTANCE = "classifier", "distance"


@dataclass(frozen=True)
class Inspected:
    """Images that a model has seen.

    Attributes:
        names: file names relative to the folder.
        truth: the class of each image, or None for all of them.
        classes: the model's classes; empty for an encoder.
        probabilities: float64 [N, classes]; None without a classifier of at least two classes.
        distances: from the training images; None if the export has too few of them.
        reference_class: the class of these training images; None: all classes.
    """

    names: list[str]
    truth: list[str | None]
    classes: tuple[str, ...]
    probabilities: np.ndarray | None
    distances: Distances | None
    reference_class: str | None = None

    @property
    def labelled(self) -> bool:
        return self.truth[0] is not None

    def scores(self, good: Good | None) -> dict[str, np.ndarray]:
        """The scores of the images by name, float64 [N], higher for defects; the one that decides comes first."""
        scores = {}
        if self.probabilities is not None and good is not None:
            scores[CLASSIFIER] = defect_probability(self.probabilities, self.classes.index(good.name))
        if self.distances is not None:
            scores[DISTANCE] = self.distances.values
        return scores


@dataclass(frozen=True)
class Errors:
    """Errors at a threshold: defects detected and good images stopped; 0 of 0 for a kind that is missing."""

    threshold: Threshold
    recall: Proportion
    false_alarms: Proportion


@dataclass(frozen=True)
class ScoreRow:
    """How well a score tells defects from good images; recall is that at the highest allowed share of false alarms,
    with a threshold chosen on the same images."""

    name: str
    area: Rate | None
    average_precision: Rate | None
    recall: Proportion | None


@dataclass(frozen=True)
class Confusions:
    """Images by their class (rows) and by the predicted class (columns), int [rows][columns]."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    classes: list[ClassScore]


@dataclass(frozen=True)
class DistanceSummary:
    """Distances from training images, those of ``reference_class`` or of all: ``beyond`` counts images farther than 99%
    of those."""

    neighbours: int
    reference_images: int
    limit: float
    beyond: Proportion
    repeated: int
    reference_class: str | None


@dataclass(frozen=True)
class Money:
    """Parts per thousand at a defect rate, and their costs; ``from_folder`` if the rate is that of the folder."""

    defect_rate: float
    from_folder: bool
    counts: Counts
    way: Way
    costs: CostRow | None


@dataclass(frozen=True)
class Findings:
    """The numbers of a report.

    Attributes:
        images: inspected images.
        labelled: whether they have classes.
        class_counts: images of each class.
        good: the good class; None for an encoder and images without labels.
        score: the score that decides: ``classifier`` (the probability of a defect) or ``distance``.
        decision: errors at the chosen threshold; None without a threshold.
        claim: the claim about recall; None without labels.
        choices: errors at the threshold of each rule.
        scores: a row for each score; empty without labels.
        confusions: None without labels or classifier.
        stopped: images of each class at or above the threshold; those of ``all`` without labels.
        distance: None if the export has too few training images.
        money: None unless both recall and false alarms are known.
        better: references that score better than the model.
        values: each score of each image.
        unreadable: files that could not be read, with the reason.
        left_out: images without a label beside labelled ones.
    """

    images: int
    labelled: bool
    class_counts: dict[str, int]
    good: Good | None
    score: str
    decision: Errors | None
    claim: Claim | None
    choices: list[Errors]
    scores: list[ScoreRow]
    confusions: Confusions | None
    stopped: dict[str, Proportion]
    distance: DistanceSummary | None
    money: Money | None
    better: list[Reference]
    values: dict[str, np.ndarray] = field(repr=False)
    unreadable: dict[str, str] = field(default_factory=dict)
    left_out: int = 0


def find(
    images: Inspected,
    good: Good | None,
    stored: Stored,
    settings: InspectSettings,
    unreadable: Mapping[str, str] | None = None,
    left_out: int = 0,
) -> Findings:
    """Compute the findings.

    Args:
        images: at least one.
        good: None only without labels and classifier.
        stored: what the export stores.
        settings: of the command.
        unreadable: files that could not be read, with the reason.
        left_out: images without a label beside labelled ones.

    Raises:
        DataError: no score can be computed, or no threshold chosen.
        SettingError: the rule for the threshold needs images that are missing.
    """
    scores = images.scores(good)
    if not scores:
        raise DataError("the export has no classifier, and too few training images to measure distances from")
    score, takes_number = next(iter(scores)), settings.takes_number(stored.point, stored.probabilities is not None)
    settings = settings.completed(stored.point)
    defect = np.array([name is not None and good is not None and name != good.name for name in images.truth])
    point = stored.point if takes_number and images.probabilities is not None else None
    thresholds = _thresholds(images, good, stored, settings, scores[score], defect, point)
    choices = [_errors(threshold, scores[score], defect, images.labelled) for threshold in thresholds]
    decision = choices.pop(0) if choices else None
    recall = None if decision is None or not images.labelled else decision.recall
    return Findings(
        images=len(images.names),
        labelled=images.labelled,
        class_counts=dict(Counter(name for name in images.truth if name is not None)),
        good=good,
        score=score,
        decision=decision,
        claim=None if recall is None else check_claim(recall.count, recall.total, settings.limit("recall")),
        choices=choices,
        scores=_score_rows(scores, defect, settings) if images.labelled else [],
        confusions=_confusions(images),
        stopped={} if decision is None else _stopped(images, scores[score], decision.threshold),
        distance=_distance_summary(images.distances, images.reference_class),
        money=None if decision is None else _money(decision, settings),
        better=stored.better,
        values=scores,
        unreadable=dict(unreadable or {}),
        left_out=left_out,
    )


def _thresholds(
    images: Inspected,
    good: Good | None,
    stored: Stored,
    settings: InspectSettings,
    scores: np.ndarray,
    defect: np.ndarray,
    point: OperatingPoint | None,
) -> list[Threshold]:
    """The threshold that decides (that of ``point``, if given), then that of each rule that can be applied; none where
    nothing tells one."""
    by_rule = {}
    for rule in RULES:
        basis = _basis(rule, images, good, stored, scores, defect)
        if basis is not None and (basis[1] if rule == "recall" else ~basis[1]).any():
            cut = choose_threshold(basis[0], basis[1], rule, settings.limit(rule))
            by_rule[rule] = Threshold(cut, rule, basis[2], len(basis[0]))
    rule = settings.rule
    if settings.number is not None:
        chosen = Threshold(settings.number, NUMBER, "given", 0)
    elif point is not None:
        if good is not None and point.good != good.name:
            raise SettingError("good", good.name, f"{point.good}, for which the export stores its threshold")
        chosen = Threshold(point.threshold, NUMBER, "stored", 0)
    elif rule in by_rule:
        chosen = by_rule[rule]
    elif images.labelled or settings.threshold is not None:
        kind = "defects" if rule == "recall" else "good images"
        raise SettingError("threshold", rule, f"a number, since there are no {kind} to choose it on")
    else:
        return []
    return [chosen, *by_rule.values()]


def _basis(
    rule: str, images: Inspected, good: Good | None, stored: Stored, scores: np.ndarray, defect: np.ndarray
) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Scores to choose a threshold on, whether each is a defect's, and where they come from."""
    if images.probabilities is None:
        if rule == "false_alarms" and images.distances is not None:
            apart = images.distances.of_reference  # which of the training images are defects is unknown
            return apart, np.zeros(len(apart), bool), "reference"
    elif stored.probabilities is not None and stored.labels is not None and good is not None:
        index = images.classes.index(good.name)
        return defect_probability(stored.probabilities, index), stored.labels != index, "out_of_fold"
    return (scores, defect, "folder") if images.labelled else None


def _errors(threshold: Threshold, scores: np.ndarray, defect: np.ndarray, labelled: bool) -> Errors:
    stopped = scores >= threshold.value
    return Errors(
        threshold,
        Proportion.of(int(stopped[defect].sum()), int(defect.sum())),
        Proportion.of(int(stopped[~defect].sum()), int((~defect).sum())) if labelled else Proportion.of(0, 0),
    )


def _score_rows(scores: Mapping[str, np.ndarray], defect: np.ndarray, settings: InspectSettings) -> list[ScoreRow]:
    rows = []
    for name, values in scores.items():
        recall = None
        if defect.any() and not defect.all():
            cut = choose_threshold(values, defect, "false_alarms", settings.limit("false_alarms"))
            recall = Proportion.of(int((values[defect] >= cut).sum()), int(defect.sum()))
        areas = area_under_roc(values, defect), area_under_precision_recall(values, defect)
        rows.append(ScoreRow(name, *areas, recall))
    return rows


def _confusions(images: Inspected) -> Confusions | None:
    if not images.labelled or images.probabilities is None:
        return None
    truth = [str(name) for name in images.truth]
    rows = [name for name in images.classes if name in truth]
    rows += sorted({*truth} - {*rows})
    predicted = [images.classes[label] for label in images.probabilities.argmax(1)]
    counts = count_confusions(truth, predicted, rows, images.classes)
    return Confusions(rows, list(images.classes), counts.tolist(), score_classes(counts, rows, images.classes))


def _stopped(images: Inspected, scores: np.ndarray, threshold: Threshold) -> dict[str, Proportion]:
    stopped: Sequence[bool] = (scores >= threshold.value).tolist()
    names = [name or "all" for name in images.truth]
    counts, totals = Counter(name for name, hit in zip(names, stopped, strict=True) if hit), Counter(names)
    return {name: Proportion.of(counts[name], total) for name, total in totals.items()}


def _distance_summary(distances: Distances | None, of: str | None) -> DistanceSummary | None:
    if distances is None:
        return None
    beyond = Proportion.of(int((distances.values > distances.limit).sum()), len(distances.values))
    count, repeated = len(distances.of_reference), int(distances.repeated.sum())
    return DistanceSummary(distances.neighbours, count, distances.limit, beyond, repeated, of)


def _money(decision: Errors, settings: InspectSettings) -> Money | None:
    recall, false_alarms = decision.recall.rate, decision.false_alarms.rate
    if recall is None or false_alarms is None:
        return None
    own = decision.recall.total / (decision.recall.total + decision.false_alarms.total)
    rate = own if settings.defect_rate is None else settings.defect_rate
    way = Way("model", recall, false_alarms, settings.machine_hours, settings.labels_bought)
    costs = cost_row(way, settings.cost, rate, settings.parts_per_day) if settings.cost.known else None
    return Money(rate, settings.defect_rate is None, count_parts(way, rate), way, costs)
