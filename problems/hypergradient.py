"""The hypergradient of a level: its direct gradient, and one adjoint pass over the levels below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multilevel.problems.evaluation import Evaluator, Part, Record
from multilevel.problems.graph import Graph
from multilevel.problems.shared_calls import SharedCalls
from multilevel.solvers import LowerLevel, SolveReport
from multilevel.solvers.vectors import Tensors, zeros_like

Gradients = dict[str, dict[str, Tensor]]


def differentiated(graph: Graph, name: str) -> tuple[str, ...]:
    """The levels in whose variables the loss of ``name`` is differentiated: its own, and those it responds through."""
    return (name, *(level for level in graph.passes(name) if level in graph.reads[name]))


def leaves(evaluator: Evaluator, levels: tuple[str, ...]) -> Gradients:
    """The variables of ``levels``, detached and requiring a gradient."""
    return {
        level: {key: value.requires_grad_() for key, value in evaluator.detached(level).items()} for level in levels
    }


def gradients(loss: Tensor, inputs: Gradients) -> dict[str, dict[str, Tensor | None]]:
    """Derivative of ``loss`` in every tensor of ``inputs``; None where it does not depend on one."""
    flat = [leaf for tensors in inputs.values() for leaf in tensors.values()]
    if not loss.requires_grad:
        values: Iterator[Tensor | None] = iter([None] * len(flat))
    else:
        values = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    return {level: {key: next(values) for key in tensors} for level, tensors in inputs.items()}


def respond(
    graph: Graph, evaluator: Evaluator, records: Mapping[str, Record], name: str, direct: Gradients
) -> tuple[Tensors, dict[str, SolveReport]]:
    """Add to the direct gradient of ``name`` what comes through the levels below it.

    The adjoint pass: every level p below keeps a cotangent a_p that starts at the direct gradient in its
    variables; it is solved once, after every level that reads it, and hands on its contributions.

    Args:
        graph: the levels.
        evaluator: evaluates their losses.
        records: for every level passed, what its last update used.
        name: the level whose hypergradient it is.
        direct: the direct gradient of its loss for each level of ``differentiated``.

    Returns:
        The hypergradient in the variables of ``name``, and the report of each solve.
    """
    cotangents = dict(direct)
    reports: dict[str, SolveReport] = {}
    passes = graph.passes(name)
    for level in passes:
        if level not in cotangents:
            continue
        solver = graph.problems[level].solver
        assert solver is not None
        wanted = [other for other in graph.reads[level] if other == name or other in passes]
        response = solver.respond(lower_level(evaluator, records[level], level, wanted), cotangents.pop(level))
        reports[level] = response.report
        for other, contribution in response.contributions.items():
            so_far = cotangents.get(other) or zeros_like(contribution)
            cotangents[other] = {key: so_far[key] + contribution[key] for key in contribution}
    return cotangents[name], reports


def lower_level(evaluator: Evaluator, record: Record, level: str, wanted: list[str]) -> LowerLevel:
    """A level as its solver sees it, at the current point, with its recorded batch, draws and generator state."""

    shared = SharedCalls(level)

    def loss(part: Part, parameters: Tensors, reads: Mapping[str, Tensors]) -> Tensor:
        return evaluator.replay(level, part, {level: parameters, **reads}, shared)

    losses: list[Any] = [partial(loss, part) for part in record]
    reads = {other: evaluator.detached(other) for other in wanted}
    return LowerLevel(losses, evaluator.detached(level), reads, evaluator.arithmetic(level), shared)
