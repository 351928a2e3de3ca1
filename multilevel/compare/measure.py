"""Measures one solver's hypergradient at a stored point: a row of ``multilevel compare``."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf

from multilevel.betty.solvers import BETTY_SOLVERS, BettySolver
from multilevel.compare.memory import MemoryTracker
from multilevel.configuration.composition import build_recipe
from multilevel.problems import Engine
from multilevel.problems.engine import Hypergradient
from multilevel.problems.evaluation.evaluator import REFERENCE_PRECISION
from multilevel.problems.reference import largest_residual, reference_hypergradient
from multilevel.recipes.base import Recipe
from multilevel.recipes.settings import chosen_device
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.solvers import SOLVERS, MultilevelError, SettingError, Solver
from multilevel.solvers.registry import build
from multilevel.solvers.unrolled import Unrolled

#: Every solver by its name, Betty's as betty/NAME.
OFFERS: dict[str, type[Any]] = {**SOLVERS, **BETTY_SOLVERS}
#: The task that measures the derivative through the last updates.
UNROLLED = "unrolled reference"
LONG = 20.0  # seconds; longer solves are timed only once


def store_point(path: Path, engine: Engine, config: Any) -> None:
    """Store everything that a solve at the engine's point needs."""
    point = {"config": OmegaConf.to_yaml(config), "state": engine.state_dict(), "records": engine.records()}
    torch.save(point, path)


def load_point(path: Path, make: Callable[..., Engine] = Engine) -> tuple[Engine, Recipe]:
    """An engine made by ``make`` at a stored point, and its recipe."""
    # This program has just written the file.
    point = torch.load(path, weights_only=False)
    config = OmegaConf.create(point["config"])
    recipe = build_recipe(config)
    engine = make(recipe.graph, seed=recipe.settings.seed, precision=recipe.settings.precision)
    engine.load_state_dict(point["state"])
    engine.load_records(point["records"])
    return engine, recipe


def measure(
    engine: Engine, device: torch.device, solver: Solver | None, rounds: int, precision: str | None = None
) -> tuple[dict[str, Any], Hypergradient]:
    """The cost and reports of the top level's hypergradient with ``solver`` at every level (None keeps the engine's
    solvers), and the hypergradient itself."""
    top = engine.graph.top
    solvers = None if solver is None else dict.fromkeys(engine.graph.passes(top), solver)
    solve = partial(engine.solve_hypergradient, top, solvers, precision)
    seconds: list[float] = []
    with MemoryTracker(device) as tracker:  # the first run warms up and is not timed
        hypergradient = solve()
    while len(seconds) < rounds and not (seconds and seconds[0] > LONG):
        start = time.perf_counter()
        solve()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    reports = hypergradient.reports
    return {
        "residual": largest_residual(hypergradient),
        "memory_mib": (tracker.peak + engine.recorded_bytes(solver.recorded_steps if solver else 0)) / 2**20,
        "seconds": median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "evaluations": sum(report.evaluations for report in reports.values()),
        "products": sum(report.products for report in reports.values()),
        "failed": [level for level, report in reports.items() if report.failed],
        "cause": next((f"{level}: {report.cause}" for level, report in reports.items() if report.cause), ""),
        "choice": ", ".join(f"{level}: {report.choice}" for level, report in reports.items() if report.choice),
    }, hypergradient


def measure_reference(engine: Engine, damping: float, iterations: int) -> tuple[dict[str, Any], Any]:
    start = time.perf_counter()
    top = engine.graph.top
    reference = reference_hypergradient(engine, top, dict.fromkeys(engine.graph.passes(top), damping), iterations)
    cost = {"solver": reference.solver, "residual": reference.residual, "usable": reference.usable}
    return {**cost, "seconds": time.perf_counter() - start}, reference


def unrolled_hypergradient(engine: Engine) -> Hypergradient:
    """The derivative through the updates of the last outer step, in the order of the schedule, in float64."""
    top = engine.graph.top
    solvers = dict.fromkeys(engine.graph.passes(top), Unrolled(outer_steps=1))
    return engine.solve_hypergradient(top, solvers, REFERENCE_PRECISION, whole=True)


@contextmanager
def with_share(engine: Engine, solver: Solver | None, share: float | None) -> Iterator[None]:
    """A block in which the solves at every level take a share of each batch; None leaves each level's own.

    Raises:
        SettingError: the solver differentiates whole updates.
    """
    if share is None:
        yield
        return
    problems = [engine.graph.problems[level] for level in engine.graph.passes(engine.graph.top)]
    before = [problem.solve_share for problem in problems]
    for problem in problems:
        problem.check_share(share, solver)
        problem.solve_share = share
    try:
        yield
    finally:
        for problem, own in zip(problems, before, strict=True):
            problem.solve_share = own


def on_betty(solver: BettySolver) -> Callable[..., Engine]:
    """A factory of Betty's engine with one solver at every level."""
    bridge = importlib.import_module("multilevel.betty")  # raises an error with the install command if Betty is missing
    return partial(bridge.BettyEngine, solver=solver)


def option_names(name: str) -> list[str]:
    """The options of a solver."""
    return [option.name for option in fields(OFFERS[name])]


def solver_of(name: str, options: Mapping[str, Any], damping: float) -> Any:
    """A solver with the comparison's damping, unless its options have their own."""
    common = {"damping": damping} if "damping" in option_names(name) else {}
    return build("solver", OFFERS, name, {**common, **options})


def prepare(task: dict[str, Any]) -> tuple[Engine, Recipe, Solver | None]:
    """The engine at the point of a row's task, its recipe, and the solver of every level; None for Betty's, which the
    engine then has.

    Raises:
        SettingError: an unusable option, or a setting that Betty does not have.
    """
    name = task["name"]
    solver = solver_of(name, task["options"], task["damping"])
    if name in SOLVERS:
        return *load_point(Path(task["point"])), solver
    for axis in ("precision", "share"):
        if task[axis] is not None:
            raise SettingError(f"{axis}s", task[axis], "no value: Betty uses the recipe's precision, and all rows")
    return *load_point(Path(task["point"]), on_betty(solver)), None


def measure_task(task: dict[str, Any]) -> dict[str, Any]:
    """The figures of one row or of the reference, or under ``problem`` why they are missing. The hypergradient goes
    into the file ``task["output"]``.

    Args:
        task: written by ``multilevel.compare.command``: ``point`` (a file of ``store_point``), ``name`` (a solver, or
            ``reference``, or ``UNROLLED``), ``damping``, ``rounds``, and the settings of the row.
    """
    try:
        if task["name"] == "reference":
            engine, recipe = load_point(Path(task["point"]))
            with cpu_threads(recipe):
                result, hypergradient = measure_reference(engine, task["damping"], task["iterations"])
        elif task["name"] == UNROLLED:
            engine, recipe = load_point(Path(task["point"]))
            with cpu_threads(recipe):
                result, hypergradient = {}, unrolled_hypergradient(engine)
        else:
            engine, recipe, solver = prepare(task)
            with with_share(engine, solver, task["share"]), cpu_threads(recipe):
                device = chosen_device(recipe.settings.device)
                result, hypergradient = measure(engine, device, solver, task["rounds"], task["precision"])
    except MultilevelError as error:
        return {"problem": " ".join(str(error).split())}
    torch.save(dict(hypergradient.values), task["output"])
    return result
