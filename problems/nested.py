"""Solves levels that read each other, with the outer level's total gradient, which includes the inner levels'
response."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad

from multilevel.problems.blocks import LevelBlock
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.normalization import ElementaryNormalization
from multilevel.problems.evaluation.recorded_batch import RecordedBatches
from multilevel.solvers import ImplicitSolver, LowerLevel, ProductError, SolveError, Solver, SolveReport
from multilevel.solvers.base import scale_of
from multilevel.solvers.differentiation import differentiating, higher_derivatives
from multilevel.solvers.linear_system import report_of
from multilevel.solvers.products import PRODUCTS, Products
from multilevel.solvers.products.base import lacking_operator
from multilevel.solvers.vectors import Tensors, flatten, scaled, unflatten, zeros_like

Values = dict[str, Tensor]


class NestedSystem:
    """A block of levels that read each other, as one implicit equation.

    The outer level p is stationary in its total loss, to which each inner block B responds. With a multiplier nu_B for
    each inner block, and z_B the variables of B (its multipliers included), this is a stationary point of the
    Lagrangian

        L(z) = g_p - sum over B of <dL_B / dz_B, nu_B>,    z = (p, all z_B, all nu_B),

    so the block's cotangent a leads to the system ``K x = a``, where K is the Hessian of L (including third derivatives
    of the losses), and the contribution to each level r read is ``- d/dr <dL/dz, x>``. ``K x = a`` is solved by
    elimination: the inner blocks with their own solvers, then p with its own solver on the remaining total Hessian.

    Args:
        block: the levels.
        lowers: each level as its solver sees it.
        evaluator: evaluates their losses.
        read_levels: the levels read outside the block that the losses are differentiated with respect to.
        records: records of the last updates.
        solvers: solvers of the levels; each must support nesting.
        values: every variable of an enclosing block; None for the outermost block.
    """

    def __init__(
        self,
        block: LevelBlock,
        lowers: Mapping[str, LowerLevel],
        evaluator: Evaluator,
        read_levels: Collection[str],
        records: Mapping[str, RecordedBatches],
        solvers: Mapping[str, Solver],
        values: Values | None = None,
    ) -> None:
        if solvers[block.name].counted_outer_steps:
            raise SolveError(
                f"level {block.name!r} is solved together with levels that it reads and that read it, where "
                "scale=null has no meaning: set a number as scale, or use another solver of the Hessian"
            )
        self.block = block
        self.own_keys = [f"{block.name}/{name}" for name in lowers[block.name].parameters]
        point = {f"{level}/{name}": value for level in block.levels for name, value in lowers[level].parameters.items()}
        self.values: Values = {**(values or {}), **point}
        self.lowers = lowers
        self.evaluator, self.records = evaluator, records
        self.solver = solvers[block.name]
        self.reads = {level: evaluator.detached(level) for level in read_levels}
        self.solved: list[SolveReport] = []  # of the level's own solver
        self.evaluations = 0  # of the level's loss
        self.inner = [
            NestedSystem(part, lowers, evaluator, read_levels, records, solvers, self.values) for part in block.inner
        ]
        for system in self.inner:
            self.values |= system.values
            self.values |= {self._multiplier(key): torch.zeros_like(system.values[key]) for key in system.keys}
        with explaining_errors():
            self._solve_multipliers()

    @property
    def keys(self) -> list[str]:
        """The names of z: this level's variables, then the inner blocks' variables, then the multipliers."""
        return [*self.own_keys, *self.inner_keys]

    @property
    def inner_keys(self) -> list[str]:
        """The names of what is within: the variables of the inner blocks, then the multipliers."""
        keys = [key for system in self.inner for key in system.keys]
        return [*keys, *map(self._multiplier, keys)]

    def respond(self, cotangents: Mapping[str, Tensors]) -> tuple[dict[str, dict[str, Tensor]], dict[str, SolveReport]]:
        """Compute the contributions to the levels read from cotangents of the block's levels, and a report for each
        level."""
        right_hand_side = zeros_like({key: self.values[key] for key in self.keys})
        for level, tensors in cotangents.items():
            right_hand_side |= {f"{level}/{name}": tensor for name, tensor in tensors.items()}
        with explaining_errors():
            unit, scale = normalized(right_hand_side)
            mixed = self._products().mixed(self.solve(unit))
        contributions = {level: scaled(tensors, -scale) for level, tensors in mixed.items()}
        return contributions, {system.block.name: system.report() for system in self._all()}

    def report(self) -> SolveReport:
        """A report on the level's solves: their total cost, and the outcome of the worst."""
        if not self.solved:  # all right-hand sides were 0
            return SolveReport(self.evaluations, residual=0.0, converged=True)
        return replace(summary(self.solved), evaluations=self.evaluations)

    def lagrangian(self, values: Mapping[str, Tensor], reads: Mapping[str, Tensors]) -> Tensor:
        """L at ``values`` of all variables and ``reads`` of the levels outside."""
        total = self._loss(values, reads)
        for system in self.inner:
            slopes = system.gradient(values, reads)
            total = total - sum((slopes[key] * values[self._multiplier(key)]).sum() for key in system.keys)
        return total

    def gradient(self, values: Mapping[str, Tensor], reads: Mapping[str, Tensors]) -> Values:
        """dL/dz, differentiable in everything."""
        variables = {key: values[key] for key in self.keys}
        return grad(lambda moved: self.lagrangian({**values, **moved}, reads))(variables)

    def solve(self, right_hand_side: Values) -> Values:
        """The x with ``K x = a``: by the level's own solver if nothing is nested in it, else by elimination."""
        products = self._products()
        if not self.inner:
            return self._solve_own(products, right_hand_side)
        unit, scale = normalized(right_hand_side)
        if scale == 0:
            return unit
        eliminated = self._solve_inner(products, {key: unit[key] for key in self.inner_keys})
        image = products.hessian(eliminated)
        x = self._solve_own(products, {key: unit[key] - image[key] for key in self.own_keys})
        image = products.hessian({**zeros_like(image), **x})
        inner = self._solve_inner(products, {key: unit[key] - image[key] for key in self.inner_keys})
        return scaled({**inner, **x}, scale)

    def _solve_own(self, products: Products, right_hand_side: Values) -> Values:
        """Solve for the level's own variables with the total Hessian, which includes the response of the inner
        levels."""
        assert isinstance(self.solver, ImplicitSolver)
        variables = {key: self.values[key] for key in self.own_keys}

        def total(vector: Tensors) -> Values:
            direction = {**zeros_like({key: self.values[key] for key in self.keys}), **vector}
            if self.inner:
                image = products.hessian(direction)
                response = self._solve_inner(products, {key: -image[key] for key in self.inner_keys})
                direction = {**response, **vector}
            image = products.hessian(direction)
            return {key: image[key] for key in self.own_keys}

        unit, scale = normalized(right_hand_side)
        if scale == 0:
            return unit
        at = PRODUCTS[self.solver.product](LowerLevel([], variables, {}), self.solver.radius)
        solution = self.solver.checked(self.solver.system(at, total, flatten(unit)))
        self.solved.append(report_of(solution, products))
        return scaled(unflatten(solution.x, variables), scale)

    def _solve_inner(self, products: Products, right_hand_side: Values) -> Values:
        """Solve the rows and columns of K that belong to the inner blocks and multipliers; 0 for the level's own."""
        direction = zeros_like({key: self.values[key] for key in self.keys})
        for system in reversed(self.inner):  # the inner variables, each block after the blocks that it reads
            image = products.hessian(direction)
            rows = {key: self._multiplier(key) for key in system.keys}
            residual = {key: right_hand_side[row] - image[row] for key, row in rows.items()}
            direction |= {key: -value for key, value in system.solve(residual).items()}
        for system in self.inner:  # their multipliers
            image = products.hessian(direction)
            residual = {key: right_hand_side[key] - image[key] for key in system.keys}
            direction |= {self._multiplier(key): -value for key, value in system.solve(residual).items()}
        return direction

    def _solve_multipliers(self) -> None:
        """The multipliers at the current point: the adjoint pass of the level's own total gradient."""
        for system in self.inner:
            slopes = self.gradient(self.values, self.reads)
            multipliers = system.solve({key: slopes[key].detach() for key in system.keys})
            self.values |= {self._multiplier(key): value for key, value in multipliers.items()}

    def _loss(self, values: Mapping[str, Tensor], reads: Mapping[str, Tensors]) -> Tensor:
        levels: dict[str, Values] = {level: dict(tensors) for level, tensors in reads.items()}
        for key, value in values.items():
            level, _, name = key.partition("/")
            if MULTIPLIER not in key:
                levels.setdefault(level, {})[name] = value
        self.evaluations += 1
        record = self.records[self.block.name]
        with higher_derivatives(), ElementaryNormalization():
            losses = [self.evaluator.replay(self.block.name, part, levels) for part in record]
        return self.evaluator.problems[self.block.name].sign * torch.stack(losses).mean()

    def _products(self) -> Products:
        assert isinstance(self.solver, ImplicitSolver)

        def loss(moved: Tensors, reads: Mapping[str, Tensors]) -> Tensor:
            return self.lagrangian({**self.values, **moved}, reads)

        point = {key: self.values[key] for key in self.keys}
        arithmetic = self.evaluator.arithmetic(self.lowers[self.block.name].parameters.values())
        return PRODUCTS[self.solver.product](LowerLevel([loss], point, self.reads, arithmetic), self.solver.radius)

    def _all(self) -> list[NestedSystem]:
        return [nested for system in self.inner for nested in system._all()] + [self]

    def _multiplier(self, key: str) -> str:
        return f"{self.block.name}{MULTIPLIER}{key}"


MULTIPLIER = "~"


def normalized(right_hand_side: Values) -> tuple[Values, float]:
    """A right-hand side divided by its scale, so that solves and products see numbers of about 1, and the scale (0 for
    0)."""
    scale = scale_of(right_hand_side)
    return scaled(right_hand_side, 1 / scale if scale else 1.0), scale


def summary(solves: Sequence[SolveReport]) -> SolveReport:
    """The total cost of solves, and the outcome of the worst."""
    outcomes = {solve.converged for solve in solves}
    return replace(
        max(solves, key=badness),
        evaluations=sum(solve.evaluations for solve in solves),
        products=sum(solve.products for solve in solves),
        residual=max(solves, key=lambda solve: badness(solve)[1]).residual,
        converged=False if False in outcomes else None if None in outcomes else True,
    )


def badness(solve: SolveReport) -> tuple[bool, float]:
    """A key that orders solves from best to worst; the second number is the residual, with nan as the worst."""
    residual = -1.0 if solve.residual is None else solve.residual
    return solve.failed, math.inf if math.isnan(residual) else residual


@contextmanager
def explaining_errors() -> Iterator[None]:
    """Within the block, gradients are recorded, and errors name an operator without a second or third derivative.

    Raises:
        ProductError: an operator has no such derivative.
    """
    try:
        with differentiating():
            yield
    except (NotImplementedError, RuntimeError) as error:
        operator = lacking_operator(error)
        if operator is None:
            raise
        raise ProductError(
            f"{operator} lacks a higher derivative, but levels that read each other need second and third "
            "derivatives: approximate=true needs none"
        ) from error
