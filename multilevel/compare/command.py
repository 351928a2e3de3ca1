"""multilevel compare [SETTING=VALUE ...]: compare accuracy, memory and time of the solvers at one point

Computes the top level's hypergradient at the same point with every solver, each in its own process, and prints a table:
relative error and cosine against a float64 reference (dense where a level is small, else MINRES), residual, peak memory
in addition to what training needs anyway, time, evaluations of losses, and products. Writes compare.json, compare.csv
and compare.png. Settings are those below, SOLVER.OPTION=VALUE for an option of one solver, and those of multilevel
train.

  multilevel compare recipe=guided_mae data=digits
  multilevel compare solvers=neumann,conjugate_gradient products=reverse,forward conjugate_gradient.iterations=40
  multilevel compare replay=1,8,32 resume=runs/NAME      whose directions lower the held-out loss, and how soon
  multilevel compare reliability=24 solvers=identity,unrolled    how much of a single hypergradient is signal
  multilevel compare solvers=betty/cg,betty/neumann betty/neumann.neumann_iterations=5    by Betty (docs/from_betty.md)
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from multilevel.commands.outputs import csv_text
from multilevel.compare.measure import OFFERS, UNROLLED, measure_task, option_names, solver_of, store_point
from multilevel.compare.picture import draw_comparison
from multilevel.compare.reliability import COLUMNS as RELIABILITY_COLUMNS
from multilevel.compare.reliability import add_reliability, csv_cells, reliability_table
from multilevel.compare.replay import check_evaluate, draw_replay, replay_solvers
from multilevel.compare.table import COLUMNS, ComparisonTable
from multilevel.configuration.command_line import DERIVED, read, typed
from multilevel.configuration.composition import build_recipe, changed, compose_config
from multilevel.problems import Engine, load_checkpoint
from multilevel.problems.evaluation.evaluator import PRECISIONS
from multilevel.problems.reference import agreement
from multilevel.problems.reliability import FEWEST_STEPS
from multilevel.problems.replay import ReplaySettings
from multilevel.problems.replay_results import Replay
from multilevel.recipes.base import Recipe
from multilevel.recipes.encoder import images_per_step
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.runs.distributed import print_once
from multilevel.runs.folder import RunFolder, check_free, now, reserve, title
from multilevel.runs.progress import Progress
from multilevel.runs.safe_path import safe_path
from multilevel.runs.training import MOVED, new_engine
from multilevel.solvers import SOLVERS, MultilevelError, SettingError
from multilevel.solvers.products import ProductName
from multilevel.solvers.ranges import AtLeast, Below, Count, OneOf, PositiveShare, require
from multilevel.solvers.unrolled import UnrolledSolver

#: Starts processes, if possible as forks of a process that has already imported everything, which takes seconds.
PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)


@dataclass(frozen=True)
class SolverVariant:
    """A row of the table: a solver, and its differences from the recipe's settings.

    Args:
        solver: its name.
        options: options of the solver.
        precision: precision of all evaluations; None takes the recipe's.
        share: ``solve_share`` of every level; None takes each level's own.
    """

    solver: str
    options: dict[str, Any]
    precision: str | None = None
    share: float | None = None

    @property
    def label(self) -> str:
        """The solver with every requested difference."""
        more = {"precision": self.precision, "solve_share": self.share}
        settings = {**self.options, **{key: value for key, value in more.items() if value is not None}}
        text = ", ".join(f"{key}={'null' if value is None else value}" for key, value in settings.items())
        return f"{self.solver}({text})" if text else self.solver


@dataclass
class CompareSettings:
    """A comparison, as the command line describes it.

    Args:
        solvers: names of the solvers; by default all of this project.
        products: forms of products to try each solver with; empty takes each solver's own.
        precisions: precisions to try each with; empty takes the recipe's.
        shares: shares of each batch for the solves, to try each with; empty takes the recipe's.
        options: ``{solver: {setting: value}}``.
        warmup: outer steps before the comparison.
        damping: damping of the system, the same for every solver; the default makes guided_mae's system definite.
        rounds: timed repetitions of each solve.
        iterations: largest number of MINRES iterations of the reference.
        reliability: further outer steps, at least 4, with the top level held, to measure how much of a single
            hypergradient is signal; 0 does not.
        replay: numbers of further outer steps, such as 1,8,32, after which to measure what moving the top level along
            each solver's mean hypergradient does to the upper loss; empty does not.
        replay_steps: outer steps, an even number, whose hypergradients are averaged, each half to a direction.
        replay_seeds: replays of each direction, with other batches and draws.
        replay_held_out: batches of the top level that the upper loss is measured on.
        evaluate: measure in replays also the loss of a linear probe refitted to labelled training images.
        resume: the run whose checkpoint to compare at, or None.
        settings: all other overrides, for the recipe.
    """

    solvers: list[Annotated[str, OneOf(*OFFERS)]] = field(default_factory=lambda: list(SOLVERS))
    products: list[ProductName] = field(default_factory=list)
    precisions: list[Annotated[str, OneOf(*PRECISIONS)]] = field(default_factory=list)
    shares: list[PositiveShare] = field(default_factory=list)
    options: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=DERIVED)
    warmup: Annotated[int, AtLeast(0)] = 10
    damping: Annotated[float, AtLeast(0), Below(math.inf)] = 30.0
    rounds: Count = 3
    iterations: Count = 1000
    reliability: Annotated[int, AtLeast(0)] = 0
    replay: list[Count] = field(default_factory=list)
    replay_steps: Count = 24
    replay_seeds: Count = 3
    replay_held_out: Count = 4
    evaluate: bool = False
    resume: str | None = None
    settings: list[str] = field(default_factory=list, metadata=DERIVED)

    @classmethod
    def parsed(cls, arguments: Sequence[str]) -> CompareSettings:
        """Parse ``SETTING=VALUE`` arguments.

        Raises:
            SettingError: a setting without a value or out of range.
        """
        line = read("compare", arguments, cls)
        result = line.settings
        steps = result.reliability
        require("reliability", steps, steps == 0 or steps >= FEWEST_STEPS, f"0, or at least {FEWEST_STEPS} steps")
        even = result.replay_steps % 2 == 0
        require("replay_steps", result.replay_steps, even, "an even number: each half gives a direction")
        require("evaluate", result.evaluate, bool(result.replay) or not result.evaluate, "replay=N,... with it")
        texts: dict[str, dict[str, str]] = {}
        for override in line.overrides:
            setting, _, text = override.partition("=")
            solver, dot, option = setting.partition(".")
            if dot and solver in OFFERS:
                texts.setdefault(solver, {})[option] = text
            else:
                result.settings.append(override)
        result.options = {solver: _options(solver, options) for solver, options in texts.items()}
        return result

    def replay_settings(self) -> ReplaySettings:
        return ReplaySettings(
            self.replay, steps=self.replay_steps, seeds=self.replay_seeds, held_out=self.replay_held_out
        )

    def tasks(self) -> list[SolverVariant]:
        """The rows to measure."""
        precisions: list[Any] = self.precisions or [None]
        shares: list[Any] = self.shares or [None]
        tasks: list[SolverVariant] = []
        for name in self.solvers:
            base = self.options.get(name, {})
            settable = "product" in option_names(name) and name != "finite_difference" and "product" not in base
            options = [{**base, "product": product} for product in self.products if settable] or [base]
            tasks += [SolverVariant(name, *variation) for variation in itertools.product(options, precisions, shares)]
        return tasks


SETTINGS = CompareSettings


def main(arguments: Sequence[str]) -> int:
    """Measure every solver at one point, print the table, and write it and its picture."""
    table, folder = compare_solvers(arguments)
    print(table)
    if any("reliability" in row for row in table.rows):
        print(f"\n{reliability_table(table.rows)}")
    pictures = [folder.path / "compare.png"]
    if "replay" in table.result:
        replay = Replay.of(table.result["replay"])
        print(f"\n{replay}")
        if replay.rows:
            pictures.append(folder.path / "replay.png")
            draw_replay(pictures[-1], replay)
    json_file = folder.write_json("compare.json", table.result)
    csv_file = folder.write("compare.csv", _as_csv(table.result["rows"]))
    draw_comparison(pictures[0], table.result)
    print(json_file, csv_file, *pictures, sep="\n")
    return 0


def compare_solvers(arguments: Sequence[str]) -> tuple[ComparisonTable, RunFolder]:
    """The table for these command-line arguments, and a new folder to write it into.

    Raises:
        MultilevelError: an unusable setting, or a top level without a hypergradient.
    """
    comparison = CompareSettings.parsed(arguments)
    config = _config(comparison)
    if config.output:
        check_free(Path(str(config.output)))
    recipe = build_recipe(config)
    check_evaluate(comparison.evaluate, recipe)
    with cpu_threads(recipe):
        threads = torch.get_num_threads()
        engine = _engine_at_the_point(comparison, recipe)
    if not engine.graph.passes(engine.graph.top):
        raise MultilevelError(f"the top level {engine.graph.top!r} has a plain gradient: there is nothing to compare")
    with tempfile.TemporaryDirectory() as scratch:
        store_point(Path(scratch) / "point.pt", engine, config)
        rows, reference = _measured(comparison, Path(scratch))
        point = {"step": engine.step, "damping": comparison.damping, "threads": threads, "device": config.device}
        data = {"recipe": config.recipe, "data": OmegaConf.select(config, "data.name")}
        table = ComparisonTable({**data, **point, "reference": reference, "rows": rows})
        named = Path(f"runs/compare-{title(config)}-{now()}")
        folder = RunFolder.create(Path(str(config.output)) if config.output else reserve(named), config)
        folder.write_json("compare.json", table.result)  # kept if the rest, which can take long, is interrupted
        if comparison.reliability:
            common = {"point": str(Path(scratch) / "point.pt"), "damping": comparison.damping}
            add_reliability(rows, {**common, "steps": comparison.reliability}, _in_a_process)
    if comparison.replay:
        settings, damping = comparison.replay_settings(), comparison.damping
        replay = replay_solvers(engine, recipe, rows, settings, damping, comparison.evaluate)
        table.result["replay"] = replay.as_dict()
    return table, folder


def _config(comparison: CompareSettings) -> DictConfig:
    if comparison.resume is None:
        return compose_config(comparison.settings)
    outputs = [setting.partition("=")[2] for setting in comparison.settings if setting.startswith("output=")]
    moved = [setting for setting in comparison.settings if setting.partition("=")[0] in MOVED]
    unusable = [
        setting for setting in comparison.settings if not setting.startswith("output=") and setting not in moved
    ]
    if unusable:
        raise SettingError("resume", unusable[0], f"no setting of the recipe but {', '.join(MOVED)}")
    config = changed(RunFolder.open("resume", Path(comparison.resume)).config_with_division(), moved)
    config.output = outputs[0] if outputs else None
    return config


def _engine_at_the_point(comparison: CompareSettings, recipe: Recipe) -> Engine:
    engine = new_engine(recipe)
    if comparison.resume is not None:
        verify = recipe.settings.checkpoint.verify
        print_once(*load_checkpoint(engine, Path(comparison.resume) / "checkpoint", verify))
    solvers = [solver_of(task.solver, task.options, comparison.damping) for task in comparison.tasks()]
    unrolled = [solver for solver in solvers if isinstance(solver, UnrolledSolver)]
    engine.recorded_steps = sys.maxsize if comparison.warmup else 0
    engine.recorded_outer_steps = max((solver.recorded_outer_steps for solver in unrolled), default=1)
    engine.callbacks.append(Progress(images_per_step(recipe)))
    engine.run(comparison.warmup)
    engine.callbacks.clear()
    if engine.recorded_outer_steps > 1:  # those that such a solver looks back on, at one value of the top level
        engine.advance(engine.recorded_outer_steps)
    return engine


def _measured(comparison: CompareSettings, scratch: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each solver, each measured in its own process, and the reference."""
    common = {"point": str(scratch / "point.pt"), "damping": comparison.damping, "rounds": comparison.rounds}
    tasks = comparison.tasks()
    bar = tqdm(total=len(tasks) + 2, unit="solver", disable=None)
    print("computing the references, then each solver in its own process", file=sys.stderr, flush=True)
    exactly = {"name": "reference", "iterations": comparison.iterations, "output": str(scratch / "reference.pt")}
    reference = _in_a_process(measure_task, {**common, **exactly})
    bar.update()
    unrolled = _in_a_process(measure_task, {**common, "name": UNROLLED, "output": str(scratch / "unrolled.pt")})
    bar.update()
    usable, reference["unrolled"] = reference.get("usable", False), unrolled
    truths = {
        "stationary": torch.load(scratch / "reference.pt") if usable else None,
        "unrolled": torch.load(scratch / "unrolled.pt") if "problem" not in unrolled else None,
    }
    rows = []
    for task in tasks:
        settings = {"name": task.solver, "options": task.options, "precision": task.precision, "share": task.share}
        result = _in_a_process(measure_task, {**common, **settings, "output": str(scratch / "found.pt")})
        row = {"solver": task.label, **settings, **result}
        if "problem" not in result:
            values = torch.load(scratch / "found.pt")
            stationary, path = (agreement(values, truth) if truth else (None, None) for truth in truths.values())
            row |= {"error": stationary[0], "cosine": stationary[1], "cosine_unrolled": path[1]}
        rows.append(row)
        bar.update()
        if bar.disable:
            print(f"{len(rows)}/{len(tasks)} {task.label}", file=sys.stderr, flush=True)
    bar.close()
    return rows, reference


def _in_a_process(call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of a call in a separate process; the reason for a missing result under ``problem``."""
    PROCESSES.set_forkserver_preload([measure_task.__module__])
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_answer, args=(sender, call, arguments), daemon=True)
    try:
        with safe_path():
            process.start()
        sender.close()  # only the process holds the other end, so its end also ends the wait
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        answer = {"problem": f"its process ended with status {process.exitcode} (-9: often out of memory)"}
    finally:
        if process.pid is not None:  # an interrupt may come before the start
            process.kill()
            process.join()
    return answer


def _answer(sender: Connection, call: Callable[..., dict[str, Any]], arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the waiting process handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # in place of a semaphore, which would outlive this process when it is killed
    try:
        answer = call(*arguments)
    except Exception as error:  # any error concerns only this row
        answer = {"problem": " ".join(f"{type(error).__name__}: {error}".split())}
    with contextlib.suppress(BrokenPipeError):  # interrupted: nothing waits any more
        sender.send(answer)


def _end_with_parent() -> None:
    """End this process when the one that waits for it has ended, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    more = RELIABILITY_COLUMNS if any("reliability" in row for row in rows) else ()
    writer = csv.DictWriter(text, ["solver", *COLUMNS, *more, "failed", "cause", "problem"], extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        cells = {**row, **csv_cells(row), "failed": " ".join(row.get("failed", []))}
        writer.writerow({name: csv_text(cell) if isinstance(cell, str) else cell for name, cell in cells.items()})
    return text.getvalue()


def _options(solver: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of a solver, as typed on the command line."""
    for option, text in texts.items():
        if option not in option_names(solver):
            raise SettingError(f"{solver}.{option}", text, f"a setting of {solver}: {', '.join(option_names(solver))}")
    try:
        chosen = typed(OFFERS[solver], texts)
    except SettingError as error:  # a solver does not know its name here
        option = error.setting.removeprefix("solver.")
        raise SettingError(f"{solver}.{option}", error.got, error.expected) from None
    return {option: getattr(chosen, option) for option in texts}
