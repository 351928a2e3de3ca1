"""Names of protocols, metrics, encoders and amounts of labels in a report's language."""

from __future__ import annotations

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
