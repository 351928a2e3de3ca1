"""Profiles one outer iteration of the guided autoencoder: plain steps, the direct path, both paths.

A row is a phase (the update of a level, or the product that passes a hypergradient through one) and a kind of work in
it: the modules' forward passes, the rest of a loss, backward passes, draws, the optimizer, the state of random
generators, the cosine between hypergradients, and everything else. No time is counted twice. The sides take turns;
times are means over rounds. On a GPU a row has only the time to queue its work.

    python benchmarks/profile_step.py data=cifar10 data.path=DIR
    OMP_NUM_THREADS=1 python benchmarks/profile_step.py --clock cpu --operators 25 precision=bf16
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from guided_mae_step import SIDES, PlainSteps, iteration, recipe_for
from side_by_side import CLOCKS, Iterate, add_clock, conditions
from torch.profiler import ProfilerActivity, profile

from multilevel.levels.models.masked_autoencoder import MaskedAutoencoder, MaskingNetwork
from multilevel.problems import Engine
from multilevel.problems import update as update_module
from multilevel.problems.batches import Batches
from multilevel.problems.evaluation.evaluator import Evaluator
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers.linear_system import ImplicitSolver

OUTSIDE, REST = "outside", "everything else"
PHASES = ("pretrain", "finetune", "mask", "product at finetune", "product at pretrain", OUTSIDE)
KINDS = ("modules", "loss", "backward", "draws", "optimizer", "random state", "cosine", "batch", REST)

#: Phase and kind of the time spent in a call, from its arguments; None: those of the caller.
Label = tuple[str | None, str | None]
#: Seconds by phase and kind.
Times = Counter[tuple[str, str]]


class Ledger:
    """Seconds by phase and kind, every moment counted for the innermost call that is watched.

    Args:
        clock: one of ``CLOCKS``.
    """

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]
        self.seconds: Times = Counter()
        self._open = [(OUTSIDE, REST)]
        self._since = self.now()

    def _count(self) -> None:
        now = self.now()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def within(self, label: Label) -> Iterator[None]:
        self._count()
        phase, kind = self._open[-1]
        entered = label[0] is not None and label[0] != phase  # a phase begins with nothing in particular
        self._open.append((label[0] or phase, label[1] or (REST if entered else kind)))
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def start(self) -> None:
        """Count from here on, from nothing."""
        self.seconds = Counter()
        self._since = self.now()

    def stop(self) -> Times:
        """What has been counted."""
        self._count()
        return self.seconds

    def watch(self, owner: Any, name: str, label: Callable[..., Label]) -> None:
        """Count the calls of ``owner.name`` from now on."""
        call = getattr(owner, name)

        @wraps(call)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            with self.within(label(*arguments)):
                return call(*arguments, **keywords)

        setattr(owner, name, staticmethod(watched) if isinstance(owner, type) and is_static(owner, name) else watched)


def is_static(owner: type, name: str) -> bool:
    """Whether it is called without an object of the class: a static method, or a class method bound already."""
    return isinstance(owner.__dict__.get(name), staticmethod | classmethod)


def kind(name: str) -> Callable[..., Label]:
    return lambda *_: (None, name)


#: What both kinds of iterations consist of, and what the engine does beside.
WATCHED: tuple[tuple[Any, str, Callable[..., Label]], ...] = (
    (PlainSteps, "pretrain", lambda *_: ("pretrain", None)),
    (PlainSteps, "finetune", lambda *_: ("finetune", None)),
    (PlainSteps, "mask", lambda *_: ("mask", None)),
    (Engine, "_update", lambda engine, problem: (problem.name, None)),
    (update_module, "set_gradient", kind("optimizer")),
    (update_module, "take_step", kind("optimizer")),
    (update_module, "cosine", kind("cosine")),
    (ImplicitSolver, "respond", lambda solver, lower, cotangent: (f"product at {lower.name}", None)),
    (Evaluator, "record", kind("draws")),
    (Batches, "next", kind("batch")),
    (MaskedAutoencoder, "reconstruct", kind("modules")),
    (MaskedAutoencoder, "encode", kind("modules")),
    (MaskingNetwork, "forward", kind("modules")),
    (torch.autograd, "grad", kind("backward")),
    (torch.autograd, "backward", kind("backward")),
    (RandomState, "capture", kind("random state")),
    (RandomState, "restore", kind("random state")),
    (RandomState, "equals", kind("random state")),
)


def watched_iteration(side: str, overrides: list[str], ledger: Ledger) -> Iterate:
    """An iteration of a side, its losses, draws and optimizers watched."""
    recipe = recipe_for(side, overrides, [])
    for problem in recipe.graph.problems.values():
        ledger.watch(problem, "loss", kind("loss"))
        ledger.watch(problem, "draw", kind("draws"))
        ledger.watch(problem.optimizer, "step", kind("optimizer"))
    return iteration(side, recipe)


def times(iterations: dict[str, Iterate], rounds: int, ledger: Ledger) -> dict[str, Times]:
    """Mean seconds of an iteration of each side, by phase and kind; the first round warms up and does not count."""
    found: dict[str, Times] = {side: Counter() for side in iterations}
    for number in range(rounds + 1):
        for side, iterate in iterations.items():
            ledger.start()
            iterate()
            spent = ledger.stop()
            if number:
                found[side].update({key: seconds / rounds for key, seconds in spent.items()})
    return found


def print_table(found: dict[str, Times]) -> None:
    """Milliseconds of each phase and kind, a column a side, and each side's excess over the plain steps."""
    keys = {key for spent in found.values() for key in spent}
    phases = [phase for phase in PHASES if any(one == phase for one, _ in keys)]
    print(f"{'milliseconds an iteration':<34}" + "".join(f"{side:>10} {'%':>5}" for side in found))
    totals = {side: sum(spent.values()) for side, spent in found.items()}

    def row(title: str, values: dict[str, float]) -> None:
        cells = "".join(f"{1e3 * values[side]:>10.1f} {100 * values[side] / totals[side]:>5.1f}" for side in found)
        print(f"{title:<34}{cells}")

    for phase in phases:
        row(
            phase,
            {side: sum(value for (one, _), value in spent.items() if one == phase) for side, spent in found.items()},
        )
        for name in KINDS:
            if (phase, name) in keys:
                row(f"    {name}", {side: spent[phase, name] for side, spent in found.items()})
    row("all", totals)
    for name in KINDS:
        row(
            f"    {name}",
            {side: sum(v for (_, one), v in spent.items() if one == name) for side, spent in found.items()},
        )
    if "plain" in totals:
        print("x plain steps: " + ", ".join(f"{side} {total / totals['plain']:.3f}" for side, total in totals.items()))


def print_operators(iterations: dict[str, Iterate], count: int) -> None:
    """Torch's own table of the operators that take most time, of one iteration of each side."""
    for side, iterate in iterations.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            iterate()
        print(f"\n{side}")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=count, max_name_column_width=45))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed iterations of each side (default 5)")
    parser.add_argument("--operators", type=int, default=0, metavar="N", help="list N operators of each side as well")
    parser.add_argument("overrides", nargs="*", metavar="SETTING=VALUE", help="as for multilevel train")
    add_clock(parser)
    options = parser.parse_intermixed_args(arguments)
    ledger = Ledger(options.clock)
    for owner, name, label in WATCHED:
        ledger.watch(owner, name, label)
    iterations = {side: watched_iteration(side, options.overrides, ledger) for side in SIDES}
    print(conditions(options.rounds, options.clock, options.overrides))
    print_table(times(iterations, options.rounds, ledger))
    if options.operators:
        print_operators(iterations, options.operators)


if __name__ == "__main__":
    main(sys.argv[1:])
