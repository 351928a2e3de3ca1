"""Explains a study to someone who knows no machine learning, in half a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multilevel.reports.texts import Texts
from multilevel.study.scores import MAJORITY, TRAINED, reference_means
from multilevel.study.verdict import points, times
from multilevel.study.words import listed


def explanation(result: Mapping[str, Any], texts: Texts) -> list[str]:
    """Paragraphs for a meeting; empty without a verdict.

    Args:
        result: the contents of study.json.
        texts: of the language.
    """
    verdict, question, study = result["verdict"], result["question"], result["study"]
    if verdict is None:
        return []
    arm, baseline = question["about"], question["baseline"]
    references = reference_means(result["arms"], "scores", study["protocol"], question["labels"], study["metric"])
    means = _means(result)
    scores = {"arm": arm, "baseline": baseline, "before": points(means[baseline]), "after": points(means[arm])}
    scores["score"] = question["score"]
    shown = texts("study_explain_result_plain", **scores)
    if MAJORITY in references:
        shown = texts("study_explain_result", chance=points(references[MAJORITY]), **scores)
    better = [texts.named("phrase", name) for name, mean in references.items() if mean >= max(means.values())]
    caution = [texts("study_explain_references", references=listed(better, "and", texts))] if better else []
    question_text = texts("study_explain_question", arm=arm, baseline=baseline)
    uncertain, answer = _uncertain(result, texts), _answer(result, texts)
    return [
        texts("study_explain_task"), question_text, shown, uncertain, *caution, answer, texts("study_explain_next")
    ]  # fmt: skip


def _uncertain(result: Mapping[str, Any], texts: Texts) -> str:
    verdict = result["verdict"]
    if verdict["interval"] is None:
        return texts("study_explain_uncertain_unknown")
    low, high = map(points, verdict["interval"])
    count, effect = len(verdict["differences"]), points(result["study"]["minimum_effect"])
    return texts("study_explain_uncertain", count=count, low=low, high=high, effect=effect)


def _answer(result: Mapping[str, Any], texts: Texts) -> str:
    verdict = result["verdict"]
    if verdict["decision"] == "pays":
        seconds = times(verdict["cost_ratio"]["seconds"], verdict["cost_ratio_error"]["seconds"])
        return texts("study_explain_pays", seconds=seconds)
    if verdict["decision"] == "does not pay":
        return texts("study_explain_does_not_pay")
    return texts("study_explain_not_decided", baseline=result["question"]["baseline"])


def _means(result: Mapping[str, Any]) -> dict[str, float]:
    """The mean score of each arm that has one."""
    study, labels = result["study"], result["question"]["labels"]
    key = {"encoder": TRAINED, "protocol": study["protocol"], "labels": labels, "metric": study["metric"]}
    return {arm["name"]: row["mean"] for arm in result["arms"] for row in arm["scores"] if key.items() <= row.items()}
