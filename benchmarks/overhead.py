"""Measures the overhead of an engine: steps of levels so small that nothing else takes time.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py --rounds 20 --clock cpu

Every level k is a list of one-element tensors w_k. The lowest is attracted to the top level, every other level to the
level below it, and the top level to 2 through the level below it:

    loss_0 = sum of (w_0 - w_top)^2 + 0.1 w_0^2
    loss_k = sum of (w_k - w_(k-1))^2 + 0.1 w_k^2
    loss_top = sum of (w_(top-1) - 2)^2

One iteration is one update of the top level, after ``--updates`` of each level below for one of the next. Sides:
multilevel with its default solver, Betty (darts), torchopt (implicit differentiation with one term of a Neumann series,
two levels), and a loop by hand with the product that the default solver forms. Sides that cannot be imported are
omitted. Times are medians of alternating rounds; calls and operations are counted.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from side_by_side import Spread, add_clock, alternate, ratio
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multilevel import Engine, Graph, Problem

RATE = 0.1


@dataclass(frozen=True)
class Size:
    """How many levels, tensors in each, and updates of a level for one of the next."""

    levels: int = 2
    tensors: int = 1
    updates: int = 1

    def modules(self) -> list[nn.ParameterList]:
        """The levels' variables, lowest first."""
        return [
            nn.ParameterList(nn.Parameter(torch.tensor(1.0 / (1 + level + index))) for index in range(self.tensors))
            for level in range(self.levels)
        ]

    def loss(self, level: int, values: list[Any]) -> Tensor:
        """The loss of a level, ``values`` being every level's variables."""
        total = torch.tensor(0.0)
        for index in range(self.tensors):
            if level == self.levels - 1:
                total = total + (values[level - 1][index] - 2.0) ** 2
            else:
                own, other = values[level][index], values[level - 1][index]  # level 0 reads the top, which is -1
                total = total + (own - other) ** 2 + 0.1 * own**2
        return total


@dataclass
class Side:
    """Trains; ``step`` is an iteration, ``modules`` what it trains."""

    step: Callable[[], object]
    modules: list[nn.ParameterList]


def optimizers(modules: list[nn.ParameterList]) -> list[torch.optim.SGD]:
    return [torch.optim.SGD(module.parameters(), RATE) for module in modules]


def multilevel_side(size: Size) -> Side:
    class Level(Problem):
        def __init__(self, index: int, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
            super().__init__(f"level{index}", module, optimizer=optimizer, data=[torch.zeros(1)], steps=steps)
            self.index = index

        def loss(self, levels: Any, batch: Any, draws: Any) -> Tensor:
            return size.loss(self.index, [levels[f"level{index}"] for index in range(size.levels)])

    modules = size.modules()
    problems = [
        Level(index, module, optimizer, size.updates if index < size.levels - 1 else 1)
        for index, (module, optimizer) in enumerate(zip(modules, optimizers(modules), strict=True))
    ]
    engine = Engine(Graph(*problems))
    return Side(lambda: engine.run(1), modules)


def betty_side(size: Size) -> Side:
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine as BettyEngine
    from betty.problems import ImplicitProblem

    logging.disable(logging.INFO)  # it describes every problem
    modules, levels = size.modules(), []

    class Level(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return size.loss(levels.index(self), [level.module for level in levels])

    for index, (module, optimizer) in enumerate(zip(modules, optimizers(modules), strict=True)):
        unrolled = size.updates if index < size.levels - 1 else 1
        config = Config(type="darts", unroll_steps=unrolled, retain_graph=index == size.levels - 1)
        loader = [torch.zeros(1)]
        levels.append(Level(f"level{index}", config, module, optimizer, train_data_loader=loader))
    up = {below: [above] for below, above in itertools.pairwise(levels)}
    engine = BettyEngine(list(levels), EngineConfig(), {"u2l": {levels[-1]: [levels[0]]}, "l2u": up})
    engine.train()
    for level in levels:
        level.train()

    def step() -> None:
        for _ in range(size.updates ** (size.levels - 1)):
            engine.global_step += 1
            engine.train_step()

    return Side(step, modules)


def torchopt_side(size: Size) -> Side | None:
    if size.levels != 2:
        return None
    from torchopt.diff.implicit import ImplicitMetaGradientModule
    from torchopt.linear_solve import solve_inv

    lower, upper = size.modules()

    class Lower(ImplicitMetaGradientModule, linear_solve=solve_inv(ns=True, maxiter=1)):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.meta = nn.ParameterList(lower), list(upper)

        def objective(self) -> Tensor:
            return size.loss(0, [self.own, self.meta])

        def solve(self) -> Lower:
            optimizer = torch.optim.SGD(self.own.parameters(), RATE)
            with torch.enable_grad():
                for _ in range(size.updates):
                    optimizer.zero_grad()
                    self.objective().backward(inputs=list(self.own.parameters()))
                    optimizer.step()
            return self

    module, optimizer = Lower(), torch.optim.SGD(upper.parameters(), RATE)

    def step() -> None:
        module.solve()
        optimizer.zero_grad()
        size.loss(1, [module.own, upper]).backward()
        optimizer.step()

    return Side(step, [module.own, upper])


def hand_side(size: Size) -> Side:
    modules = size.modules()
    steppers = optimizers(modules)
    variables = [list(module.parameters()) for module in modules]
    top = size.levels - 1

    def update(level: int) -> None:
        for _ in range(size.updates if level else 0):
            update(level - 1)
        gradient = torch.autograd.grad(size.loss(level, variables), variables[level - (level == top)])
        if level == top:  # minus the mixed product with the cotangent, from level to level
            for below in reversed(range(top)):
                slopes = torch.autograd.grad(size.loss(below, variables), variables[below], create_graph=True)
                gradient = torch.autograd.grad(slopes, variables[below - 1], [-one for one in gradient])
        for variable, slope in zip(variables[level], gradient, strict=True):
            variable.grad = slope
        steppers[level].step()

    return Side(lambda: update(top), modules)


SIDES: dict[str, Callable[[Size], Side | None]] = {
    "by hand": hand_side,
    "multilevel": multilevel_side,
    "betty": betty_side,
    "torchopt": torchopt_side,
}


class Operations(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(keywords or {}))


def counted(side: Side, steps: int = 10) -> tuple[float, float]:
    """Python calls and operations of a step."""
    calls = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(watch)
    try:
        for _ in range(steps):
            side.step()
    finally:
        sys.setprofile(None)
    with Operations() as operations:
        for _ in range(steps):
            side.step()
    return calls / steps, operations.count / steps


def sides(size: Size) -> dict[str, Side]:
    """Those that can be imported and know such a problem, a few steps done."""
    made = {name: make(size) for name, make in SIDES.items() if name not in ("betty", "torchopt") or find_spec(name)}
    present = {name: side for name, side in made.items() if side is not None}
    for side in present.values():
        for _ in range(3):
            side.step()
    return present


def row(size: Size, rounds: int, steps: int, clock: str) -> str:
    """A row of the table: times of each side, and calls and operations of it."""

    def several(side: Side) -> Callable[[], object]:
        return lambda: [side.step() for _ in range(steps)]

    present = sides(size)
    times = alternate({name: several(side) for name, side in present.items()}, rounds, clock)
    cells = [f"{size.levels} x {size.tensors} x {size.updates}"]
    for name in SIDES:
        if name in present:
            calls, operations = counted(present[name])
            milliseconds = Spread.of([1e3 * time / steps for time in times[name]]).median
            cells.append(f"{milliseconds:.2f} ms, {calls:,.0f} calls, {operations:,.0f} operations")
        else:
            cells.append("")
    cells.append(ratio(times["multilevel"], times["betty"]).text() if "betty" in present else "")
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--tensors", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of each side in a round")
    add_clock(parser)
    chosen = parser.parse_args(arguments)
    print("| levels x tensors x updates | " + " | ".join(SIDES) + " | multilevel / betty |")
    print("|---" * (len(SIDES) + 2) + "|")
    for levels, tensors, updates in itertools.product(chosen.levels, chosen.tensors, chosen.updates):
        print(row(Size(levels, tensors, updates), chosen.rounds, chosen.steps, chosen.clock), flush=True)


if __name__ == "__main__":
    main()
