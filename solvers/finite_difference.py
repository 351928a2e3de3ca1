"""The identity instead of the inverse Hessian, and finite differences instead of second derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from multilevel.solvers.identity import Identity
from multilevel.solvers.ranges import OneOf


@dataclass
class FiniteDifference(Identity):
    """``identity`` with the mixed product as a central difference of two gradients, from first derivatives only.

    The scheme of DARTS (Liu et al. 2019, equation 8), Betty's ``darts``. ``scale`` means what it does for ``identity``:
    1 is Betty's, a path through m levels has the weight ``scale^m``, and null gives it its weight in one outer step.

    Assumes: as ``identity``; a loss smooth over the radius, which is chosen from the parameters' scale.
    Costs: two evaluations; keeps only what the backward pass to the levels read needs, the least memory of all.
    Use when: operators have no second derivative, or to match Betty.

    Examples:
        With the level of ``LowerLevel``'s example, where H = diag(1, 2, 4):

        >>> FiniteDifference().respond(lower, cotangent).contributions["upper"]["r"].round(decimals=3)
        tensor([1., 1., 1.])
    """

    product: Annotated[str, OneOf("finite_difference")] = field(default="finite_difference", kw_only=True)
