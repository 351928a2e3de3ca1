"""The typed settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from multilevel.solvers import SettingError


@dataclass(kw_only=True)
class EvaluationSettings:
    """How frozen features are evaluated.

    Args:
        max_images: labelled training images that the protocols are fitted to, drawn by class; None takes all.
        neighbours: of the nearest-neighbour vote.
        batch_size: images that are encoded together.
        seed: of that drawing, and of the part on which the probe's regularization is chosen.
    """

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
