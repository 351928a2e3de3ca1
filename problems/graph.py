"""Graph: finds which level reads which by evaluating each loss once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from multilevel.problems import replicas
from multilevel.problems.batches import Batches
from multilevel.problems.blocks import LevelBlock, ordered, reachable
from multilevel.problems.errors import CheckpointError, GraphError, NestedChainError, ReadsError
from multilevel.problems.evaluation.evaluator import Evaluator, module_device
from multilevel.problems.evaluation.lazy_modules import initialize_lazy_modules
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.problems.evaluation.substitution import is_marked, marked
from multilevel.problems.html import html_table
from multilevel.problems.problem import Problem
from multilevel.solvers import default_solver
from multilevel.solvers.autograd_graph import leaves
from multilevel.solvers.differentiation import differentiating
from multilevel.solvers.vectors import Tensors

#: Batches to try for a level that the first batches would leave without a gradient.
LOOK_AHEAD = 16


class Graph:
    """The levels of a multilevel problem.

    Args:
        problems: at least one level, bottom level first. A level is above those listed before it, whose parameters
            respond to its own if their losses read it. Levels that do not depend on each other may be listed in any
            order; the last is the top level.
        approximate: if levels read each other and a solver cannot include the response of the inner ones in the outer
            one's Hessian, omit that response instead of raising an error.

    Raises:
        GraphError: there is no level, two levels share a name or a parameter, or a level's loss does not initialize a
            lazy module on its first batch (which is not consumed).

    Examples:
        An upper level for ``Problem``'s example: a target that should bring the weight to 3:

        >>> class Aim(Problem):
        ...     def loss(self, levels, batch, draws):
        ...         return (levels.weight - 3).square().sum()
        >>> target = nn.Parameter(torch.ones(1))
        >>> graph = Graph(follow, Aim("target", target, optimizer=torch.optim.SGD([target], 0.1)))
        >>> graph.reads
        {'weight': ('target',), 'target': ('weight',)}
    """

    def __init__(self, *problems: Problem, approximate: bool = False) -> None:
        if not problems:
            raise GraphError("a graph needs at least one level")
        self.approximate = approximate
        self._used: set[str] = set()  # levels whose parameters another level's loss uses in any way
        self.problems: dict[str, Problem] = {}
        owners: dict[int, str] = {}
        for problem in problems:
            if problem.name in self.problems:
                raise GraphError(f"two levels are named {problem.name!r}: every level needs its own name")
            self.problems[problem.name] = problem
            for name, parameter in problem.module.named_parameters():
                owner = owners.setdefault(id(parameter), problem.name)
                if owner != problem.name:
                    raise GraphError(
                        f"levels {owner!r} and {problem.name!r} share the parameter {name!r}: "
                        "let one own it, and read it in the other through levels.NAME"
                    )
        self.batches = {
            name: Batches(name, problem.data, module_device(problem.module)) for name, problem in self.problems.items()
        }
        #: The levels' names, bottom first.
        self.names = tuple(self.problems)
        self._blocks: dict[str, tuple[LevelBlock, ...]] = {}
        self._passes: dict[str, tuple[str, ...]] = {}
        initialize_lazy_modules(self.problems, self.batches)

    @property
    def top(self) -> str:
        return self.names[-1]

    @cached_property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """For each level, the other levels whose variables its loss depends on, in the graph's order.

        Computed on first use by evaluating each loss once on its first batch, which is not consumed. Levels that are
        first read on a later batch are added at the update that reads them.

        Raises:
            ReadsError: a pinned ``reads`` leaves out a level that the loss reads.
            NestedChainError: levels read each other, and a solver cannot treat that exactly.
            GraphError: a level could never change, or a loss uses parameters other than through ``levels``.
        """
        evaluator = Evaluator(self.problems)
        try:
            standing = self._read(evaluator, 1) and self._read(evaluator, LOOK_AHEAD)
            for name in standing:
                _refuse_or_warn(self.problems, name, self._used)
            self._check_passes()
        except Exception:
            self.__dict__.pop("reads", None)
            raise
        return self.__dict__["reads"]

    def _read(self, evaluator: Evaluator, count: int) -> list[str]:
        """Find ``reads`` on ``count`` batches of each level. Returns the levels that nothing would change."""
        self._used.clear()
        sources = {name: self._discover(evaluator, name, self.batches[name].ahead(count)) for name in self.names}
        reads = {name: self._in_order(sources[name] - {name}) for name in self.names}
        for name, problem in self.problems.items():
            if problem.reads is not None:
                unknown = [level for level in problem.reads if level not in self.problems]
                if unknown:
                    raise ReadsError(f"level {name!r} is pinned to read {unknown[0]!r}, which is not a level")
                _check_pinned(problem, reads[name])
                reads[name] = self._in_order(problem.reads)
        self._set_reads(reads)
        return [
            name
            for name, problem in self.problems.items()
            if not (name in sources[name] or self.passes(name) or problem.reads is not None) and problem.variables()
        ]

    def extend_reads(self, evaluator: Evaluator, name: str, loss: Tensor, values: Mapping[str, Tensors]) -> bool:
        """Whether a loss depends on more levels than known, which are added to its ``reads``.

        Args:
            evaluator: the evaluator that evaluated the loss.
            name: the level.
            loss: its loss.
            values: the substituted values.

        Raises:
            ReadsError: ``reads`` is pinned to fewer levels.
            GraphError: the loss uses a level's parameters other than through ``levels``.
        """
        known = self.reads[name]
        more = set().union(*replicas.gather(_reached(evaluator, name, loss, values))) - {name, *known}
        if not more:
            return False
        _check_pinned(self.problems[name], self._in_order({*known, *more}))
        self._set_reads({**self.reads, name: self._in_order({*known, *more})})
        self._check_passes()
        return True

    def _set_reads(self, reads: dict[str, tuple[str, ...]]) -> None:
        """Store what the losses read, and recompute the levels that each hypergradient passes through."""
        self.__dict__["reads"] = reads
        self._blocks.clear()
        self._passes.clear()
        self.__dict__.pop("passed", None)

    def _in_order(self, levels: Collection[str]) -> tuple[str, ...]:
        return tuple(level for level in self.names if level in levels)

    def passes(self, name: str) -> tuple[str, ...]:
        """The levels that the hypergradient of ``name`` passes through, in the order in which they are solved.

        These are the levels below it that it depends on and that depend on it. Each comes after the levels among them
        that read it, and after levels below it that it reads and that read it.
        """
        if name not in self._passes:
            self._passes[name] = tuple(level for block in self.blocks(name) for level in block.levels)
        return self._passes[name]

    @cached_property
    def passed(self) -> frozenset[str]:
        """The levels that a hypergradient passes through."""
        return frozenset(level for name in self.names for level in self.passes(name))

    def blocks(self, name: str) -> tuple[LevelBlock, ...]:
        """The levels of ``passes``, each with the levels whose response is part of its own gradient."""
        if name not in self._blocks:
            below = set(self.names[: self.names.index(name)])
            readers = {level: [reader for reader in self.names if level in self.reads[reader]] for level in self.names}
            active = reachable(name, self.reads, below) & reachable(name, readers, below)
            self._blocks[name] = ordered([level for level in self.names if level in active], self.reads)
        return self._blocks[name]

    def treats_exactly(self, block: LevelBlock) -> bool:
        """Whether the block's solvers can solve with its total gradient; without inner levels, every solver can."""
        solvers = [self.problems[level].solver for level in block.levels]
        return not block.inner or all(solver is not None and solver.nests for solver in solvers)

    def state_dict(self) -> dict[str, Any]:
        """The state of each level: module, optimizer, scheduler, and the position in its data."""
        return {
            name: {
                "module": problem.module.state_dict(),
                "optimizer": None if problem.optimizer is None else problem.optimizer.state_dict(),
                "scheduler": None if problem.scheduler is None else problem.scheduler.state_dict(),
                "data": self.batches[name].state_dict(),
            }
            for name, problem in self.problems.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from ``state_dict``.

        Raises:
            CheckpointError: the state belongs to other levels, or to modules with other parameters; nothing is then
                changed.
        """
        check_match({name: level["module"] for name, level in state.items()}, self.problems)
        for name, problem in self.problems.items():
            problem.module.load_state_dict(state[name]["module"])
            if problem.optimizer is not None:
                problem.optimizer.load_state_dict(state[name]["optimizer"])
            if problem.scheduler is not None:
                problem.scheduler.load_state_dict(state[name]["scheduler"])
            self.batches[name].load_state_dict(state[name]["data"])

    def describe(self) -> str:
        """Describe the levels, top first: which it reads, its updates, and the path of its hypergradient."""
        lines = []
        for name, parameters, often, reads, through, solver in self._facts():
            ending = f"; solver {solver}" if solver else ""
            summary = f"{name}: {parameters}, {often}{ending}"
            lines += [summary, f"    reads {reads}", f"    hypergradient through {through}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header = ("level", "parameters", "updates", "reads", "hypergradient through", "solver")
        return html_table(header, self._facts())

    def _facts(self) -> Iterator[tuple[str, str, str, str, str, str]]:
        """For each level, top first: name, parameters, update frequency, levels it reads, levels its hypergradient
        passes through, and solver."""
        for name in reversed(self.names):
            problem = self.problems[name]
            count = sum(parameter.numel() for parameter in problem.variables().values())
            updates = "1 update" if problem.steps == 1 else f"{problem.steps} updates"
            often = "top level" if name == self.top else f"{updates} per update of the next level up"
            through = ", ".join(self.passes(name)) or "no other level: a plain gradient"
            solver = "" if problem.solver is None or name == self.top else str(problem.solver)
            parameters = f"{count:,} parameter{'s' * (count != 1)}"
            yield name, parameters, often, _listed(self.reads[name]), through, solver

    def _discover(self, evaluator: Evaluator, name: str, batches: Iterable[Any]) -> set[str]:
        """The levels, including its own, that a level's loss depends on for these batches."""
        sources: set[str] = set()
        for batch in batches:
            values = {
                level: {key: marked(value.clone().requires_grad_()) for key, value in evaluator.detached(level).items()}
                for level in self.names
            }
            with RandomState.seeded(0).active(), differentiating():
                part, watched = evaluator.record(name, batch), [level for level in self.names if level != name]
                evaluation = evaluator.evaluate(name, part, values, watched)
            self._used |= evaluation.used
            sources |= _reached(evaluator, name, evaluation.loss, values)
        sources = sources.union(*replicas.gather(sources))  # losses on other shares of the data may use other levels
        if not sources:
            raise GraphError(f"the loss of level {name!r} depends on no level's parameters")
        return sources

    def _check_passes(self) -> None:
        for name in self.names:
            for block in self.blocks(name):
                for level in block.levels:
                    if self.problems[level].solver is None:
                        self.problems[level].solver = default_solver()
                if not self.approximate and not self.treats_exactly(block):
                    raise NestedChainError(
                        f"levels {_listed(block.levels)} read each other below {name!r}: use solvers of the Hessian "
                        "(dense, conjugate_gradient, minres, neumann, nystrom, identity with a number as scale), which "
                        "treat this exactly; approximate=true omits the inner levels' response from the outer level's "
                        "Hessian"
                    )


def _reached(evaluator: Evaluator, name: str, loss: Tensor, values: Mapping[str, Tensors]) -> set[str]:
    """The levels on whose substituted ``values`` a loss depends; GraphError for parameters used in any other way."""
    substituted = {id(value): level for level, tensors in values.items() for value in tensors.values()}
    parameters = evaluator.modules.raw()
    reached = set()
    for leaf in leaves(loss):
        if id(leaf) in substituted:
            reached.add(substituted[id(leaf)])
        elif is_marked(leaf):
            raise GraphError(
                f"the loss of level {name!r} uses parameters kept from an earlier evaluation (in a list that it, or a "
                "module, made once), so it would not be differentiated in them: build such lists in every call"
            )
        elif id(leaf) in parameters:
            level, parameter = parameters[id(leaf)]
            raise GraphError(
                f"the loss of level {name!r} uses the parameter {parameter!r} of level {level!r} that was stored "
                "outside the loss (or on a module by a hook), which would be treated as a constant: read it through "
                f"levels.{level}"
            )
    return reached


def _refuse_or_warn(problems: Mapping[str, Problem], name: str, used: Collection[str]) -> None:
    """Raise GraphError for a level that nothing would change although something depends on it: a loss that uses it, a
    level that restarts, an optimizer's setting. Warn about a level that nothing uses."""
    parameter_ids = {id(parameter) for parameter in problems[name].module.parameters()}
    settings = [
        value
        for problem in problems.values()
        if problem.optimizer is not None
        for group in problem.optimizer.param_groups
        for key, value in group.items()
        if key != "params" and isinstance(value, Tensor)
    ]
    anew = any(problem.starts_anew for problem in problems.values())
    if name in used or anew or any(id(leaf) in parameter_ids for value in settings for leaf in (value, *leaves(value))):
        raise GraphError(
            f"level {name!r} could never change: its loss does not depend on its own parameters, and no level listed "
            f"before it that it depends on reads them. List levels bottom first, and use levels.{name} in such a "
            "level's loss (state_dict, a copy in begin and a learning rate carry no gradient); reads=[...] pins "
            "dependencies that the first batches do not show"
        )
    warnings.warn(f"level {name!r} will never change: no loss depends on its parameters", stacklevel=2)


def _check_pinned(problem: Problem, reads: tuple[str, ...]) -> None:
    """Raise ReadsError for levels that a loss reads and ``reads`` omits."""
    if problem.reads is not None and not set(reads) <= set(problem.reads):
        raise ReadsError(
            f"level {problem.name!r} is pinned to read {_listed(problem.reads)}, but its loss reads {_listed(reads)}: "
            "list them all in reads, or leave reads out"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no level"


def check_match(weights: Mapping[str, Mapping[str, Tensor]], problems: Mapping[str, Problem]) -> None:
    """Raise CheckpointError unless saved weights, ``{level: {name: tensor}}``, fit the modules of a graph."""
    present = _shapes({level: problem.module.state_dict() for level, problem in problems.items()})
    saved = _shapes(weights)
    for key in [*present, *saved]:
        if saved.get(key) != present.get(key):
            raise CheckpointError(
                f"the checkpoint belongs to another recipe: {key} has shape {saved.get(key, 'none')} in it, "
                f"and {present.get(key, 'none')} here"
            )


def _shapes(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[int]]:
    return {f"{level}.{name}": list(tensor.shape) for level, state in states.items() for name, tensor in state.items()}
