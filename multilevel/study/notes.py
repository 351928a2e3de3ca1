"""Notes and warnings of a study: few images or labels, and reasons to doubt a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multilevel.recipes.evaluation.labels import Amount, short_classes
from multilevel.recipes.evaluation.remarks import FEW_IMAGES, FEW_OF_A_CLASS, LISTED
from multilevel.reports.texts import Texts
from multilevel.study.words import labels_in_words

#: A median cosine below this, over at least so many updates, gives a warning; docs/results.md has values of real runs.
STEADY, ENOUGH_UPDATES = 0.1, 20


def study_notes(
    scored: Mapping[str, int], split: str, labelled: Mapping[str, int], amounts: Sequence[Amount], texts: Texts
) -> list[str]:
    """Lines about few scored images, and about classes with few labels.

    Args:
        scored: scored images of each class.
        split: their split.
        labelled: labelled training images of each class.
        amounts: amounts of labels.
        texts: of the language.
    """
    notes = [_few_images(scored, split, texts), *(_few_labels(amount, labelled, texts) for amount in amounts)]
    return [note for note in notes if note]


def run_warnings(summary: Mapping[str, Any], texts: Texts) -> list[str]:
    """Reasons to doubt a run, from its summary."""
    warnings = [
        texts("study_skipped", count=level["skipped"], level=name)
        for name, level in summary["levels"].items()
        if level.get("skipped")
    ]
    for name, level in summary["levels"].items():
        cosine = level.get("median_cosine")  # missing from the summaries of older runs
        if cosine is not None and cosine < STEADY and level["updates"] >= ENOUGH_UPDATES:
            warnings.append(texts("study_unsteady", level=name, cosine=f"{cosine:.2f}"))
    if collapse := summary.get("collapse"):
        still = collapse.get("at_the_end")
        text = texts("study_collapsed_still" if still else "study_collapsed", step=collapse["step"])
        advised = "advice" in collapse
        warnings.append(texts("study_collapsed_try", text=text, advice=collapse["advice"]) if advised else text)
    return warnings


def _few_images(counts: Mapping[str, int], split: str, texts: Texts) -> str:
    total = sum(counts.values())
    parts = [texts("study_few_total", count=total)] if counts and total < FEW_IMAGES else []
    rare = {name: count for name, count in counts.items() if count < FEW_OF_A_CLASS}
    parts += _listed(rare, texts)
    if not parts:
        return ""
    absent = 0 in counts.values()
    listed = texts("separator").join(parts)
    return texts("study_few_absent" if absent else "study_few_images", split=texts.named("split", split), listed=listed)


def _few_labels(amount: Amount, counts: Mapping[str, int], texts: Texts) -> str:
    labels = labels_in_words(amount, texts)
    if short := short_classes(amount, counts):
        return texts("study_short", labels=labels, listed=texts("separator").join(_listed(short, texts)))
    present = sum(count > 0 for count in counts.values())
    if isinstance(amount, str) or amount <= 1 or amount >= present:
        return ""
    return texts("study_fewer_than_classes", labels=labels, count=present, without=present - int(amount))


def _listed(counts: Mapping[str, int], texts: Texts) -> list[str]:
    named = [texts("study_few_class", name=name, count=count) for name, count in list(counts.items())[:LISTED]]
    more = len(counts) - LISTED
    return [*named, texts("study_few_more", count=more)] if more > 0 else named
