"""The typed settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING

from multilevel.levels.tasks import Task
from multilevel.recipes.evaluation.protocols import PROTOCOLS, EvaluationProtocol
from multilevel.recipes.evaluation.scores import CLASSIFICATION_METRICS
from multilevel.solvers import SettingError

SPLITS = ("test", "validation")


@dataclass(kw_only=True)
class CommonSettings:
    """How encoders are evaluated.

    Args:
        protocols: names; None takes the task's own.
        labels: shares of the labelled training images; every protocol is fitted to each. Smaller ones lie in larger.
        split: test or validation, on which everything is scored.
        metric: what the table shows; None takes the task's.
        references: score an untrained encoder and raw pixels as well.
        max_images: labelled training images that the protocols are fitted to, drawn by class; None takes all.
        neighbours: of the nearest-neighbour vote.
        batch_size: images that are encoded together.
        seed: of all drawings, of the part on which the probe's regularization is chosen, and of what is trained.
    """

    protocols: list[str] | None = None
    labels: list[float] = field(default_factory=lambda: [1.0])
    split: str = "test"
    metric: str | None = None
    references: bool = True
    max_images: int | None = 10_000
    neighbours: int = 20
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_images", "neighbours", "batch_size"):
            value = getattr(self, name)
            unlimited = value is None and name == "max_images"
            if not (unlimited or (isinstance(value, int) and value >= 1)):
                also = ", or null for all" if name == "max_images" else ""
                raise SettingError(f"evaluation.{name}", value, f"a whole number of at least 1{also}")
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**32):
            raise SettingError("evaluation.seed", self.seed, "a whole number from 0 to 4294967295")
        if self.split not in SPLITS:
            raise SettingError("evaluation.split", self.split, f"one of {', '.join(SPLITS)}")
        if not self.labels or not all(0 < share <= 1 for share in self.labels):
            raise SettingError("evaluation.labels", list(self.labels), "a list of shares above 0 and at most 1")
        for name in self.protocols if self.protocols is not None else PROTOCOLS:
            if name not in PROTOCOLS:
                raise SettingError("evaluation.protocols", name, f"some of {', '.join(PROTOCOLS)}")
            self.protocol(name).check(name)

    def protocol(self, name: str) -> EvaluationProtocol:
        """A protocol with its options as they are set."""
        return getattr(self, name, None) or PROTOCOLS[name]()

    def check_task(self, task: Task) -> None:
        """Raise SettingError if ``metric`` is none that the protocols report of this task."""
        if self.metric is not None and self.metric not in self.metrics_of(task):
            raise SettingError("evaluation.metric", self.metric, f"one of {', '.join(self.metrics_of(task))}")

    def protocols_of(self, task: Task) -> list[str]:
        """The protocols that are set, or else the task's own."""
        return list(task.protocols if self.protocols is None else self.protocols)

    def metrics_of(self, task: Task, protocol: str | None = None) -> list[str]:
        """The metrics that a protocol reports of a task; None: that any of its protocols does."""
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
