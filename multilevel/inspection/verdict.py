"""Says in words what the findings mean: the verdict, notes on it, and an explanation for a meeting."""

from __future__ import annotations

from collections.abc import Sequence

from multilevel.inspection.findings import CLASSIFIER, DISTANCE, Findings, Money
from multilevel.inspection.stored import Reference
from multilevel.reports.proportions import Rate
from multilevel.reports.texts import Texts

CHANCE = 0.5  # area under the ROC curve of guessing
FEWEST = 30  # images of a kind, below which the report says so
NAMED = 5  # unreadable files in the report; the .json has all


def verdict(findings: Findings, texts: Texts) -> list[str]:
    """The verdict, the most important sentence first."""
    sentences = [_better(findings.better, texts)] if findings.better else []
    area = findings.scores[0].area if findings.scores else None
    if area is not None and area.low <= CHANCE:
        sentences.append(texts("verdict_chance", area=texts.area(area)))
    sentences.append(_decision(findings, texts))
    if not findings.labelled and findings.decision is not None:
        threshold = texts.score(findings.decision.threshold.value)
        sentences.append(texts("verdict_stopped", threshold=threshold, **texts.shares(stopped=findings.stopped["all"])))
    return sentences


def tone(findings: Findings) -> str:
    """The colour of the verdict: ``good``, ``bad`` or ``open``."""
    state = "unknown" if findings.claim is None else findings.claim.verdict
    area = findings.scores[0].area if findings.scores else None
    if findings.better or state == "contradicted" or (area is not None and area.low <= CHANCE):
        return "bad"
    optimistic = findings.decision is not None and findings.decision.threshold.is_optimistic
    return "good" if state == "supported" and not optimistic else "open"


def notes(findings: Findings, texts: Texts) -> list[str]:
    """Notes that a reader needs to read the verdict correctly."""
    sentences = []
    if findings.decision is not None:
        threshold = findings.decision.threshold
        sentences.append(texts(f"note_source_{threshold.source}", count=threshold.images))
    if findings.good is not None:
        sentences.append(texts(f"note_good_{findings.good.reason}", good=findings.good.name))
    if findings.score == DISTANCE:
        sentences.append(texts("note_no_classifier"))
    areas = {row.name: row.area.value for row in findings.scores if row.area is not None}
    if {CLASSIFIER, DISTANCE} <= areas.keys() and areas[DISTANCE] > areas[CLASSIFIER]:
        rounded = {name: f"{area:.3f}" for name, area in areas.items()}
        sentences.append(texts("note_distance_better", **rounded))
    if findings.distance is not None and findings.distance.repeated:
        sentences.append(texts("note_repeated", count=findings.distance.repeated))
    if findings.left_out:
        sentences.append(texts("note_left_out", count=findings.left_out))
    if findings.unreadable:
        names = texts("separator").join(list(findings.unreadable)[:NAMED])
        sentences.append(texts("note_unreadable", count=len(findings.unreadable), files=names))
    if findings.labelled:
        sentences.append(texts("note_independent"))
        kinds = [] if findings.decision is None else [findings.decision.recall, findings.decision.false_alarms]
        sentences += [texts("note_few")] if any(kind.total < FEWEST for kind in kinds) else []
    return sentences


def explanation(findings: Findings, images: str, texts: Texts) -> list[str]:
    """Paragraphs that explain the finding to someone who knows no machine learning.

    Args:
        findings: the numbers.
        images: the inspected images in words.
        texts: of the language.
    """
    decision, claim = findings.decision, findings.claim
    recall = None if decision is None else decision.recall.rate
    false_alarms = None if decision is None else decision.false_alarms.rate
    if decision is None or claim is None or recall is None or false_alarms is None:
        return [texts("explain_partly")]
    missed = Rate(*(100 - value for value in _of(100, recall)))
    detected, stopped = _of(100, recall), _of(1000, false_alarms)
    return [
        texts("explain_task", images=images),
        texts("explain_threshold"),
        texts("explain_result", found=detected.value, missed=missed.value, stopped=stopped.value),
        texts(
            "explain_uncertain",
            defects=decision.recall.total,
            good=decision.false_alarms.total,
            found_low=detected.low,
            found_high=detected.high,
            stopped_low=stopped.low,
            stopped_high=stopped.high,
        ),
        texts(
            "explain_claim",
            recall=texts.limit(claim.recall),
            needed=texts.number(claim.needed),
            needed_with_one_miss=texts.number(claim.needed_with_one_miss),
        ),
        texts("explain_next"),
    ]


def money_verdict(money: Money, currency: str, texts: Texts) -> str | None:
    """Whether the model pays; None without costs."""
    costs = money.costs
    if costs is None:
        return None
    saving = costs.saving_over_trivial
    state = "saves" if saving.low > 0 else "loses" if saving.high < 0 else "open"
    trivial = "trivial_none" if costs.uninspected <= costs.rejected else "trivial_reject"
    return texts(
        f"money_verdict_{state}",
        trivial=texts(trivial),
        saving=texts.money_range(costs.saving, currency),
        over_trivial=texts.money_range(saving, currency),
    )


def _better(references: Sequence[Reference], texts: Texts) -> str:
    """The references that are better than the model, the best first."""
    ordered = sorted(references, key=lambda reference: -reference.score)
    entries = [
        texts("reference_entry", name=texts.named("phrase", reference.name), score=f"{reference.score:.3f}")
        for reference in ordered
    ]
    metric, model = texts.named("metric", ordered[0].metric), f"{ordered[0].model:.3f}"
    return texts("verdict_reference", metric=metric, model=model, references=texts("separator").join(entries))


def _decision(findings: Findings, texts: Texts) -> str:
    decision, claim = findings.decision, findings.claim
    if not findings.labelled or decision is None or claim is None:
        if findings.distance is None:
            return texts("verdict_unlabelled_plain")
        return texts("verdict_unlabelled", **texts.shares(beyond=findings.distance.beyond))
    shares = texts.shares(recall=decision.recall, false_alarms=decision.false_alarms)
    if claim.verdict == "unknown":
        return texts("verdict_no_defects", **shares)
    bound = texts.percent(claim.lower_bound)
    about = texts(f"claim_{claim.verdict}", recall=texts.limit(claim.recall), bound=bound)
    return texts("verdict_main" if decision.false_alarms.total else "verdict_no_good", **shares, claim=about)


def _of(parts: int, rate: Rate) -> Rate:
    """A share as whole parts."""
    return Rate(*(round(parts * share) for share in rate))
