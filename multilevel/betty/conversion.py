"""A graph from Betty's problems and dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Any

from torch import Tensor

from multilevel.betty.level import ImplicitProblem
from multilevel.betty.solvers import BettyError, solver_of_config
from multilevel.problems.graph import Graph
from multilevel.problems.levels import Levels
from multilevel.problems.problem import LossValue, Problem
from multilevel.solvers import DataError, Solver

Dependencies = Mapping[str, Mapping[Any, Sequence[Any]]]

#: Hooks that Betty calls and this project does not, each with a replacement.
HOOKS = {
    "param_groups": "give the optimizer its parameter groups, which are kept here",
    "custom_optimizer_step": "give an optimizer with that step",
    "grad_callback": "Config(gradient_clipping=...) clips; an optimizer can do the rest",
    "param_callback": "a multilevel.Callback with on_update can do it",
    "on_inner_loop_start": "a multilevel.Callback with on_step can do it",
    "epoch_callback": "a multilevel.Callback can do it",
}
#: Settings of Betty's Config that must keep their defaults here, each with a replacement.
SETTINGS = {
    "precision": ("fp32", 'Engine(graph, precision="bf16") is for all levels'),
    "warmup_steps": (0, "first run an Engine of a Graph of only this problem"),
    "first_order": (True, "False drops the hypergradient on Betty"),
}


class FromBetty(Problem):
    """A problem of Betty as a level: its ``training_step`` is the loss.

    During an evaluation the modules of all problems have the parameters and buffers that the engine substitutes, so
    ``training_step`` sees them however it reads a module.

    Args:
        problem: provides the loss, module, optimizer, scheduler, loaders and Config.
        peers: all problems, including this one.
        steps: updates for each update of the next level up.
        solver: how hypergradients pass through it.
    """

    def __init__(
        self, problem: ImplicitProblem, peers: Sequence[ImplicitProblem], steps: int, solver: Solver | None
    ) -> None:
        config = problem.config
        super().__init__(
            problem.name,
            problem.module,
            optimizer=problem.optimizer,
            data=Loaded(problem),
            steps=steps,
            solver=solver,
            scheduler=problem.scheduler,
            clip_norm=config.gradient_clipping or None,
            accumulate=config.gradient_accumulation,
        )
        self.problem = problem
        self.peers = peers
        trained = {id(parameter) for parameter in problem.trainable_parameters() if parameter.requires_grad}
        optimized = {id(parameter) for parameter in self._optimized() if parameter.requires_grad}
        if trained != optimized:
            raise BettyError(
                f"problem {problem.name!r}: its optimizer holds {len(optimized)} parameters that are not frozen, "
                f"trainable_parameters {len(trained)}; Betty trains the latter: give the optimizer exactly these"
            )

    def loss(self, levels: Levels, batch: Any, draws: Any) -> LossValue:
        losses = self.problem.training_step(batch)
        if not isinstance(losses, dict):
            return losses
        return losses["loss"], {key: value for key, value in losses.items() if key != "loss" and _is_number(value)}


class Loaded:
    """A problem's batches as Betty passes them to ``training_step``: a dict or a tuple; with several loaders, a tuple
    of these. Each loader restarts when it ends.

    Args:
        problem: with loaders, or with a ``get_batch``.
    """

    def __init__(self, problem: ImplicitProblem) -> None:
        self.problem = problem
        self.has_get_batch = type(problem).get_batch is not ImplicitProblem.get_batch
        loaders = problem.train_data_loader
        if loaders is None and not self.has_get_batch:
            raise BettyError(f"problem {problem.name!r} has neither train_data_loader nor get_batch")
        self.loaders: tuple[Iterable[Any], ...] = loaders if isinstance(loaders, tuple) else (loaders,)

    def __iter__(self) -> Iterator[Any]:
        if self.has_get_batch:
            return iter(self.problem.get_batch, _NEVER)
        if len(self.loaders) == 1:
            return map(_converted, self.loaders[0])
        return zip(*(self._endless(loader) for loader in self.loaders), strict=True)

    def _endless(self, loader: Iterable[Any]) -> Iterator[Any]:
        while True:
            batch = _NEVER
            for batch in loader:
                yield _converted(batch)
            if batch is _NEVER:
                raise DataError(f"a loader of problem {self.problem.name!r} is empty")


def from_betty(
    problems: Sequence[ImplicitProblem],
    dependencies: Dependencies,
    *,
    solvers: Mapping[str, Solver] | None = None,
    approximate: bool = False,
) -> Graph:
    """The graph of a multilevel problem written for Betty, with solvers that match its Configs.

    Every ``training_step`` is used unchanged: ``self(...)``, ``self.other(...)``, ``self.other.module.weight`` and
    ``self.trainable_parameters()`` see the values that the engine substitutes. Its random draws are replayed.

    Args:
        problems: instances, with the names that they use for each other. Modules stay on their device.
        dependencies: ``{"u2l": {upper: [lower, ...]}, "l2u": {lower: [upper, ...]}}``.
        solvers: by problem name, to override the solver in the problem's Config.
        approximate: see ``Graph``; Betty behaves like True if levels below another level read each other.

    Raises:
        BettyError: the problem uses a feature of Betty that graphs do not have, ``dependencies`` omits a dependency of
            the losses, or the schedule cannot be expressed as a graph.

    Examples:
        >>> from betty.configs import Config
        >>> class Fit(ImplicitProblem):
        ...     def training_step(self, batch):
        ...         return (self.module.weight - 3).square().sum()
        >>> net = nn.Linear(1, 1, bias=False)
        >>> fit = Fit("fit", Config(), net, torch.optim.SGD(net.parameters(), 0.1), train_data_loader=[{}])
        >>> from_betty([fit], {"u2l": {}, "l2u": {}}).names
        ('fit',)
    """
    up = {problem: list(dependencies["l2u"].get(problem, ())) for problem in problems}
    for problem in problems:
        _prepare(problem, problems)
    order, updates = _schedule(problems, up)
    levels = []
    for problem, above in zip(order, [*order[1:], None], strict=True):
        override = (solvers or {}).get(problem.name)
        solver = override or (solver_of_config(problem.config, problem.name) if up[problem] else None)
        steps = 1 if above is None else updates[problem] // updates[above]
        levels.append(FromBetty(problem, problems, steps, solver))
    graph = Graph(*levels, approximate=approximate)
    _check_reads(graph, dependencies)
    return graph


def _prepare(problem: ImplicitProblem, peers: Sequence[ImplicitProblem]) -> None:
    """Prepare a problem as Betty's engine does before it starts; BettyError if a level cannot do the same."""
    for hook, remedy in HOOKS.items():
        if callable(getattr(problem, hook, None)):
            raise BettyError(f"problem {problem.name!r} has {hook}, which a level does not call: {remedy}")
    for setting, (expected, remedy) in SETTINGS.items():
        got = getattr(problem.config, setting)
        if got != expected:
            raise BettyError(f"problem {problem.name!r}: Config({setting}={got!r}) has no effect on a level: {remedy}")
    for part in ("train_data_loader", "module", "optimizer", "scheduler"):
        configure = getattr(problem, f"configure_{part}", None)
        if configure is not None and getattr(problem, part) is None:
            setattr(problem, part, configure())
        if part in ("module", "optimizer") and getattr(problem, part) is None:
            raise BettyError(f"problem {problem.name!r} has no {part}")
    for peer in peers:
        if peer is problem:
            continue
        if getattr(problem, peer.name, peer) is not peer:
            raise BettyError(f"problem {problem.name!r} has an attribute {peer.name!r}: give that problem another name")
        setattr(problem, peer.name, peer)


def _schedule(
    problems: Sequence[ImplicitProblem], up: Mapping[Any, Sequence[Any]]
) -> tuple[list[ImplicitProblem], dict[Any, int]]:
    """The problems, bottom first, and the updates of each per update of the top."""
    sorter = TopologicalSorter({problem: [low for low in problems if problem in up[low]] for problem in problems})
    order = list(sorter.static_order())
    updates: dict[Any, int] = {}
    for problem in reversed(order):
        above = [updates[high] for high in up[problem]]
        updates[problem] = max(above) * problem.config.unroll_steps if above else 1
    order.sort(key=lambda problem: -updates[problem])  # stable: a lower problem stays below
    for low, high in pairwise(order):
        if high not in up[low] and updates[low] != updates[high]:
            raise BettyError(
                f"problems {low.name!r} and {high.name!r} do not depend on each other and differ in unroll_steps: "
                "Betty then updates both at every step; make them equal"
            )
    return order, updates


def _check_reads(graph: Graph, dependencies: Dependencies) -> None:
    """Raise BettyError for a dependency between losses that ``dependencies`` hides from Betty."""
    known = {(low.name, high.name) for high, lows in dependencies["u2l"].items() for low in lows}
    known |= {(high.name, low.name) for low, highs in dependencies["l2u"].items() for high in highs}
    for name in graph.names:
        for target in graph.reads[name]:
            if (name, target) not in known:
                edge = "l2u" if graph.names.index(target) < graph.names.index(name) else "u2l"
                raise BettyError(
                    f"the loss of problem {name!r} depends on {target!r}, which dependencies omit, so Betty would omit "
                    f"it from the hypergradient: add it to {edge!r}, or detach it in training_step"
                )


def _converted(batch: Any) -> Any:
    """A batch as Betty passes it on: a tensor becomes the tuple of its rows."""
    return batch if isinstance(batch, dict) else tuple(batch)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


_NEVER = object()
