"""Replays the directions of every solver: ``multilevel compare replay=N,...``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from multilevel.compare.measure import solver_of
from multilevel.problems import Engine
from multilevel.problems.replay import RANDOM, Experiment, ReplaySettings
from multilevel.problems.replay_results import Replay, ReplayRow
from multilevel.recipes.base import Recipe
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation.probe_loss import ProbeLoss
from multilevel.recipes.pictures.figures import GREY, INK, PALETTE, WIDEST, new_figure, save_figure, styled
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.solvers import MultilevelError, Solver
from multilevel.solvers.ranges import require

PROBE = "probe loss"


def replay_solvers(
    engine: Engine,
    recipe: Recipe,
    rows: Sequence[Mapping[str, Any]],
    settings: ReplaySettings,
    damping: float,
    evaluate: bool,
) -> Replay:
    """Replay the directions of every solver of a comparison, from the engine's point, which stays unchanged.

    Args:
        engine: at the point of the comparison.
        recipe: its recipe.
        rows: of the comparison.
        settings: how to replay.
        damping: the damping of the comparison.
        evaluate: whether to measure the loss of a refitted linear probe too.

    Raises:
        DataError: ``evaluate`` without labels.
        GraphError: an engine that cannot hold its top level.
    """
    passes = engine.graph.passes(engine.graph.top)
    solvers: dict[str, dict[str, Solver]] = {}
    problems: dict[str, str] = {}
    for row in rows:
        try:
            solver = solver_of(row["name"], row["options"], damping)
        except MultilevelError as error:
            problems[row["solver"]] = str(error)
            continue
        if not isinstance(solver, Solver):
            problems[row["solver"]] = "not replayed: Betty cannot hold the top level"
        elif row["precision"] is not None or row["share"] is not None:
            problems[row["solver"]] = "not replayed: precisions= and shares= concern single solves"
        else:
            solvers[row["solver"]] = dict.fromkeys(passes, solver)
    with cpu_threads(recipe), tqdm(unit="step", desc="replay", disable=None) as bar:
        if not solvers:
            return Replay([], problems, settings.size)
        measures = {PROBE: _probe_of(recipe)} if evaluate else {}
        experiment = Experiment(engine, settings, solvers, measures, bar.update)
        bar.reset(experiment.outer_steps)
        if bar.disable:
            print(f"replay: {experiment.outer_steps} outer steps with the top level held", file=sys.stderr, flush=True)
        replay = experiment.run()
    return Replay(replay.rows, {**problems, **replay.problems}, replay.size)


def check_evaluate(evaluate: bool, recipe: Recipe) -> None:
    """Raise SettingError if a probe is asked for, and the recipe trains no encoder."""
    encodes = isinstance(recipe, EncoderRecipe)
    require("evaluate", evaluate, encodes or not evaluate, "false: the recipe trains no encoder")


def _probe_of(recipe: Recipe) -> ProbeLoss:
    assert isinstance(recipe, EncoderRecipe)
    trained, settings = recipe.trained_model(), recipe.settings
    batch_size = settings.evaluation.batch_size  # type: ignore[attr-defined]  # of every encoder recipe
    return ProbeLoss(trained.autoencoder.features, trained.data, trained.device, batch_size)


@styled
def draw_replay(path: Path, replay: Replay) -> None:
    """Draw the mean slopes against the number of outer steps: a row of axes for each measure, a column for each kind of
    draws, and a line for each solver and half, with the standard deviation over replays."""
    measures, kinds = (list(dict.fromkeys(getattr(row, key) for row in replay.rows)) for key in ("measure", "draws"))
    figure = new_figure(WIDEST, 4.2 * len(measures))
    axes = figure.subplots(len(measures), len(kinds), squeeze=False, sharey="row")
    for axis, (measure, draws) in zip(axes.flat, itertools.product(measures, kinds), strict=True):
        _draw(axis, [row for row in replay.rows if (row.measure, row.draws) == (measure, draws)])
        axis.set_ylabel(f"slope of the {measure} per unit of length")
        axis.set_title(f"{measure}, draws {draws}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle("above 0: the direction is right; solid and dashed: directions from disjoint steps")
    save_figure(figure, path)


def _draw(axis: Any, rows: Sequence[ReplayRow]) -> None:
    """Draw one measure with one kind of draws."""
    counts = list(dict.fromkeys(row.outer_steps for row in rows))
    for index, solver in enumerate(dict.fromkeys(row.solver for row in rows)):
        own = [row for row in rows if row.solver == solver]
        for half, line in enumerate(("-", "--")):
            slopes = [row.halves[half].measured for row in own]
            spreads = [stdev(values) if len(values) > 1 else 0.0 for values in slopes]
            style = {
                "ls": line,
                "color": GREY if solver == RANDOM else PALETTE[index % len(PALETTE)],
                "marker": "o",
                "ms": 3,
            }
            name = None if half else solver
            axis.errorbar(
                [row.outer_steps for row in own], [*map(fmean, slopes)], spreads, capsize=2, label=name, **style
            )
    axis.axhline(0, color=INK, linewidth=0.6)
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xlabel("further outer steps, top level held")
