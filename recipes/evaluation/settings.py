"""The typed settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

from multilevel.levels.tasks import Task
from multilevel.levels.tasks.classification import CLASSIFICATION_METRICS
from multilevel.recipes.data import ImageData
from multilevel.recipes.evaluation.labels import Amount, LabelNumber, amounts_of, check_amounts
from multilevel.recipes.evaluation.protocols import PROTOCOLS, EvaluationProtocol
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import Count, OneOf, Seed, check, require


@dataclass(kw_only=True)
class CommonSettings:
    """Settings of every evaluation.

    Args:
        protocols: names of the protocols; None takes the task's own.
        labels: amounts of labelled training images; every protocol is fitted to each. Up to 1 a number is a share (1 is
            all labels), from 2 on it is a number of images: 0.1,10,1 is a tenth, ten, and all. Smaller amounts are
            subsets of larger ones. None: all, unless labels_per_class is set.
        labels_per_class: further amounts, as numbers of images of each class; a class with fewer gives all it has.
        split: the split to score on: test or validation.
        metric: the metric in the table, by which the linear probe also chooses its regularization; None takes the
            task's.
        references: also score an untrained encoder and raw pixels; supervised adds the same network trained from
            scratch on the labels, for as many passes of images through the encoder as the run's pretraining and
            finetuning.
        max_images: largest number of labelled training images to fit to, drawn by class; None takes all.
        neighbours: number of neighbours in the nearest-neighbour vote.
        batch_size: images to encode together.
        seed: seed of all draws, of the split that chooses the probe's regularization, and of trained modules.
    """

    protocols: list[Annotated[str, OneOf(*PROTOCOLS)]] | None = None
    labels: list[LabelNumber] | None = None
    labels_per_class: list[Count] | None = None
    split: Annotated[str, OneOf("test", "validation")] = "test"
    metric: str | None = None
    references: Annotated[Any, OneOf(True, False, "supervised")] = True
    max_images: Count | None = 10_000
    neighbours: Count = 20
    batch_size: Count = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self, "evaluation.")
        for name in ("labels", "labels_per_class"):
            require(
                f"evaluation.{name}", getattr(self, name), getattr(self, name) != [], "at least one number, or null"
            )

    @property
    def amounts(self) -> list[Amount]:
        """The amounts of labels, see ``labels``."""
        return amounts_of(self.labels, self.labels_per_class)

    def protocol(self, name: str) -> EvaluationProtocol:
        """A protocol with its configured options."""
        return getattr(self, name, None) or PROTOCOLS[name]()

    def check_task(self, task: Task) -> None:
        """Raise SettingError unless the protocols report ``metric`` for this task."""
        if self.metric is not None and self.metric not in self.metrics_of(task):
            raise SettingError("evaluation.metric", self.metric, f"one of {', '.join(self.metrics_of(task))}")

    def check_labels(self, data: ImageData) -> None:
        """Raise SettingError unless there are as many labelled training images as ``labels`` takes."""
        labels = data.train.labels
        pool = min(len(labels), self.max_images or len(labels))
        check_amounts(self.amounts, labels, pool, pool < len(labels))

    def protocols_of(self, task: Task) -> list[str]:
        """The configured protocols, or else the task's own."""
        return list(task.protocols if self.protocols is None else self.protocols)

    def metrics_of(self, task: Task, protocol: str | None = None) -> list[str]:
        """The metrics that a protocol reports for a task; None: that any of its protocols reports."""
        names = self.protocols_of(task) if protocol is None else [protocol]
        kinds = [CLASSIFICATION_METRICS if PROTOCOLS[name].needs_classes else task.metric_names for name in names]
        return list(dict.fromkeys(metric for kind in kinds for metric in kind))


if TYPE_CHECKING:

    class EvaluationSettings(CommonSettings):
        """The common settings, and one field for each protocol that has options."""

else:
    EvaluationSettings = make_dataclass(
        "EvaluationSettings",
        [(name, kind, field(default_factory=kind)) for name, kind in PROTOCOLS.items() if fields(kind)],
        bases=(CommonSettings,),
        namespace={"__module__": __name__, "__doc__": CommonSettings.__doc__},
        kw_only=True,
    )
