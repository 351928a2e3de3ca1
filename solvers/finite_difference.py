"""Identity in place of the inverse Hessian, finite differences in place of second derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field

from multilevel.solvers.errors import SettingError
from multilevel.solvers.identity import Identity


@dataclass
class FiniteDifference(Identity):
    """``identity`` with its mixed product as a central difference of two gradients: first derivatives alone.

    The scheme of DARTS (Liu et al. 2019, equation 8), Betty's ``darts``.

    Assumes: as ``identity``; a loss smooth over the radius, which is chosen from the parameters' scale.
    Costs: two evaluations; only what the levels read need is kept for backward: the least memory of all.
    Use when: operators have no second derivative, or as Betty had it.
    """

    product: str = field(default="finite_difference", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.product != "finite_difference":
            raise SettingError("solver.product", self.product, "finite_difference; solver=identity takes any")
