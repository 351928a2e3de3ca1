"""Names of protocols, metrics, encoders and amounts of labels in a report's language."""

from __future__ import annotations

from collections.abc import Sequence

from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.evaluation.labels import Amount, per_class
from multilevel.reports.texts import Texts


def labels_in_words(amount: Amount, texts: Texts) -> str:
    """An amount of labels.

    >>> [labels_in_words(amount, Texts("en")) for amount in (0.1, 1.0, 10.0, "20 per class")]
    ['10% of the labels', 'all labels', '10 labels', '20 labels per class']
    """
    if isinstance(amount, str):
        return texts("labels_per_class", count=per_class(amount))
    if amount == 1:
        return texts("labels_all")
    return (
        texts("labels_share", share=texts.limit(amount)) if amount < 1 else texts("labels_count", count=f"{amount:g}")
    )


def score_in_words(protocol: str, metric: str, amount: Amount, texts: Texts) -> str:
    """The name of a score with an amount of labels, which it names unless it is all.

    >>> score_in_words("knn", "macro_roc_auc", 10.0, Texts("en"))
    'nearest neighbours area under the ROC curve with 10 labels'
    """
    metric = texts.named("metric", metric, metric_title(metric))
    score = texts("study_score", protocol=texts.named("protocol", protocol), metric=metric)
    return score if amount == 1 else texts("study_score_labels", score=score, labels=labels_in_words(amount, texts))


def seeds_in_words(count: int, texts: Texts) -> str:
    """A number of seeds."""
    return texts("seed") if count == 1 else texts("seeds", count=count)


def listed(names: Sequence[str], last: str, texts: Texts) -> str:
    """Names in one text, the last after ``and`` or ``or``.

    >>> listed(["a", "b", "c"], "or", Texts("en"))
    'a, b or c'
    """
    return texts(last).join(filter(None, [texts("separator").join(names[:-1]), names[-1]]))
