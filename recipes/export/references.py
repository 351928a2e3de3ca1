"""Scores an export's references on the same test images: simpler models, and the same network trained on the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.evaluation.evaluate import evaluate_features
from multilevel.recipes.evaluation.scores import PHRASES
from multilevel.recipes.export.heads import MOST_TO_FINETUNE

PROTOCOL = "linear_probe"


@dataclass(frozen=True)
class References:
    """Scores on the test images; higher is better.

    Attributes:
        metric: the metric of all scores.
        model: the export's.
        scores: of the references by name: a linear probe on an untrained encoder and on raw pixels, the majority class,
            and the network trained from scratch.
    """

    metric: str
    model: float
    scores: Mapping[str, float]

    @property
    def better(self) -> dict[str, float]:
        """References with a higher score than the export's."""
        return {name: score for name, score in self.scores.items() if score > self.model}

    def describe(self) -> str:
        """A line about the references.

        >>> References("accuracy", 0.9, {"raw pixels": 0.95, "majority class": 0.5}).describe()
        'accuracy 90.0%; raw pixels 95.0%, majority class 50.0%: raw pixels are better than this export'
        """
        values = ", ".join(f"{name} {100 * score:.1f}%" for name, score in self.scores.items())
        line = f"{metric_title(self.metric)} {100 * self.model:.1f}%; {values}"
        better = [PHRASES.get(name, name) for name in self.better]
        if not better:
            return line
        verb = "is" if len(better) == 1 and not better[0].endswith("s") else "are"
        return f"{line}: {' and '.join(better)} {verb} better than this export"

    def record(self) -> dict[str, Any]:
        """The contents of ``evaluation.json``."""
        return {"metric": self.metric, "model": self.model, "references": dict(self.scores)}


def score_references(recipe: EncoderRecipe, kind: Any, metric: str, model: float) -> References:
    """Fit the references to the labelled training images, and score them on the test images.

    Args:
        recipe: the trained recipe; its number of encoder passes is that of the network trained from scratch.
        kind: true, supervised, or None: supervised with up to 5,000 labelled images, otherwise true.
        metric: the metric of the comparison.
        model: the export's value of it.
    """
    settings: Any = recipe.settings
    few = len(recipe.setup().data.train) <= MOST_TO_FINETUNE
    chosen = kind if kind is not None else "supervised" if few else True
    evaluation = replace(
        settings.evaluation, protocols=[PROTOCOL], labels=[1.0], labels_per_class=None, split="test", metric=metric
    )
    _, *references = recipe.candidates(chosen)
    rows = evaluate_features(references, recipe.setup(), evaluation)
    return References(metric, model, {row.encoder: row.metrics[metric] for row in rows})
