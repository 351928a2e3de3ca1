"""Trains a new run or continues one."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multilevel.configuration.composition import build_recipe, changed, named_settings
from multilevel.loggers import Logger, new_loggers
from multilevel.problems import CheckpointError, Checkpointing, DivergedError, Engine, load_checkpoint, replicas
from multilevel.problems.checkpoint import checkpoints, newest_intact
from multilevel.problems.errors import ReplicaError
from multilevel.recipes.base import Recipe
from multilevel.recipes.data.overview import overview
from multilevel.recipes.encoder import EncoderRecipe, images_per_step
from multilevel.recipes.evaluation import describe_scores
from multilevel.recipes.initial import resolved_init
from multilevel.runs.collapse import CollapseReport
from multilevel.runs.cpu_threads import cpu_threads
from multilevel.runs.curves import CurveLabels, draw_curves
from multilevel.runs.diagnosis import Diagnosis, last_noise, noise_message
from multilevel.runs.distributed import check_same, on_first_rank, print_once, restart
from multilevel.runs.event_log import EventLog
from multilevel.runs.folder import RunFolder, check_free, now, reserve, title
from multilevel.runs.lock import only_process
from multilevel.runs.progress import Progress
from multilevel.runs.same_data import check_same_data
from multilevel.runs.stopping import StopOnSignal, Stopped
from multilevel.runs.summary import Outcome, format_findings, peak_memory_mib, summarize_run
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import parse_json, read_whole

PLACES = ("data.path", "data.unlabelled", "data.division")  # may differ by machine: the data are compared
#: Settings that a resumed run may change: where its images are, whether they may have changed, whether checkpoints need
#: digests, and loggers.
MOVED = ("data.path", "data.unlabelled", "data.changed", "checkpoint.verify", "loggers")


def is_of(path: Path, config: DictConfig) -> bool:
    """Whether a folder belongs to the run with these settings."""
    return (path / "config.yaml").is_file() and RunFolder(path).config() == recorded(config)


def recorded(config: DictConfig) -> DictConfig:
    """The settings as a run stores them: ``init=LINK`` as the folder that the link leads to, since it may be moved."""
    if config.get("init") is None:
        return config
    return OmegaConf.merge(config, {"init": resolved_init(config.init)})  # type: ignore[return-value]


def train(config: DictConfig, output: Path) -> None:
    """Train a new run.

    Args:
        config: all its settings.
        output: its folder, created after all checks have passed.
    """
    on_first_rank(lambda: check_free(output))
    config = recorded(config)
    recipe, engine, loggers = prepared(config, output)
    record = None if recipe.image_data is None else recipe.image_data.record().text()
    with only_process("output", output):
        folder = on_first_rank(lambda: RunFolder.create(output, config, record))
        if recipe.image_data is not None:
            print_once(*overview(recipe.image_data), *recipe.image_data.notes)
        print_once(*recipe.notes, recipe.graph.describe())
        finish(recipe, engine, folder, loggers, seconds=0.0)


def resume(path: Path, overrides: Sequence[str] = (), named_loggers: Sequence[str] = ()) -> None:
    """Continue a run from its newest checkpoint.

    Args:
        path: its folder.
        overrides: new values of ``MOVED``.
        named_loggers: classes that the run's configuration may name, since the user has named them.

    Raises:
        SettingError: the configuration, which may be a stranger's, names another class as a logger.
    """
    folder = RunFolder.open("resume", path)
    if (path / "summary.json").exists():
        problem = evaluation_problem(path / "summary.json") if restart() else None
        if problem is not None:  # it would only be repeated
            raise MultilevelError(problem)
        print_once(f"{path} has ended; its summary: {path / 'summary.json'}", file=sys.stdout)
        return
    with only_process("resume", path):
        config = changed(folder.config_with_division(), overrides)
        if not any(override.partition("=")[0] == "loggers" for override in overrides):
            check_named(config.get("loggers") or [], named_loggers, path)
        recipe, engine, loggers = prepared(config, path)
        if not restart() or checkpoints(folder.checkpoint):
            print_once(*load_checkpoint(engine, folder.checkpoint, recipe.settings.checkpoint.verify))
        print_once(*on_first_rank(lambda: folder.cut(engine.step, recipe.graph.names)))
        records = folder.read_metrics()
        print_once(f"{path}: resumed at step {engine.step}")
        finish(recipe, engine, folder, loggers, seconds=records[-1]["seconds"] if records else 0.0)


def check_named(stored: Sequence[str], named: Collection[str], folder: Path) -> None:
    """Refuse a stored logger that is a class by its module, which importing runs, unless the user has named it.

    Raises:
        SettingError: the first such logger.
    """
    unnamed = [name for name in stored if "." in name and name not in named]
    if unnamed:
        expected = f"loggers of this package in {folder}; to run this class: loggers=[{','.join(stored)}] again"
        raise SettingError("loggers", unnamed[0], expected)


def prepared(config: DictConfig, output: Path) -> tuple[Recipe, Engine, list[Logger]]:
    """The recipe of a configuration, its engine, and the loggers of a run; the same on all ranks.

    Raises:
        MultilevelError: unusable settings or data, or ranks that differ in them.
    """
    settings = named_settings(OmegaConf.to_container(config))
    leaves = {name: value for name, value in settings if not isinstance(value, dict)}
    check_same({name: value for name, value in leaves.items() if name not in PLACES})

    recipe = replicas.on_every_rank(lambda: build_recipe(config))
    if recipe.image_data is not None:
        check_same_data(recipe.image_data)
    return recipe, new_engine(recipe), replicas.on_every_rank(lambda: loggers_of(recipe, output, config))


def evaluation_problem(summary: Path) -> str | None:
    """Why the evaluation of an ended run failed; None if it did not, or the summary is damaged."""
    try:
        return parse_json(read_whole(summary))["evaluation_problem"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_engine(recipe: Recipe) -> Engine:
    settings = recipe.settings
    if settings.engine == "betty":
        bridge = importlib.import_module("multilevel.betty")
        return bridge.BettyEngine(recipe.graph, seed=settings.seed, precision=settings.precision)
    return Engine(
        recipe.graph,
        seed=settings.seed,
        precision=settings.precision,
        max_skipped=settings.max_skipped,
        compile=settings.compile,
        check=settings.check,
    )


def loggers_of(recipe: Recipe, output: Path, config: DictConfig) -> list[Logger]:
    """The loggers of a run; only rank 0 has any."""
    settings: Any = OmegaConf.to_container(config)
    return new_loggers(recipe.settings.loggers, output, settings) if replicas.rank() == 0 else []


def finish(recipe: Recipe, engine: Engine, folder: RunFolder, loggers: Sequence[Logger], seconds: float) -> None:
    """Train to the last step, evaluate, draw, and write the summary.

    Args:
        recipe: its graph is trained by the engine.
        engine: an engine already at the step to continue from.
        folder: the run's folder.
        loggers: the loggers named in the settings.
        seconds: seconds spent on training before.

    Raises:
        Stopped: a signal ended the run early.
        MultilevelError: the run diverged, or could not be evaluated.
    """
    settings: Any = recipe.settings
    first = replicas.rank() == 0
    log = EventLog(folder.metrics, seconds)
    # The log is flushed before a checkpoint is written, so it has every line that a resumed run does not repeat.
    engine.callbacks += [
        *([log] if first else []),
        *([Diagnosis(folder.diagnosis, settings.diagnose)] if settings.diagnose else []),
        Checkpointing(folder.checkpoint, settings.checkpoint.every),
        *loggers,
        # Callbacks that only print come last: if standard output is closed, nothing is lost.
        *([CollapseReport(), Progress(images_per_step(recipe))] if first else []),
    ]
    with StopOnSignal(engine) as stop, cpu_threads(recipe):
        try:
            engine.run(settings.steps - engine.step)
        except DivergedError as error:
            for logger in loggers:
                logger.on_end(engine)
            raise DivergedError(f"{error}. {_saved(folder)}") from error
    for number in replicas.gather(stop.number):
        if number is not None:
            text = f"stopped by {signal.Signals(number).name} after step {engine.step} of {settings.steps}"
            raise Stopped(f"{text}; multilevel train resume={folder.path} continues from there", 128 + number)
    trained = log.seconds - seconds
    waited = sum(batches.waited for batches in recipe.graph.batches.values())
    outcome = Outcome(log.seconds, max(replicas.gather(peak_memory_mib())), waited / trained if trained else None)
    try:
        outcome.findings = recipe.findings()
        if settings.evaluate and isinstance(recipe, EncoderRecipe):
            print_once(f"evaluating the encoder on the {settings.evaluation.split} split")
            outcome.scores = recipe.evaluate()
    except ReplicaError:
        raise
    except MultilevelError as error:  # the trained model is kept
        outcome.problem = error
    if first:
        conclude(recipe, folder, outcome)
    replicas.gather(None)  # an error on the other ranks would make torchrun end this one before it has written
    if outcome.problem is not None:
        raise outcome.problem


def conclude(recipe: Recipe, folder: RunFolder, outcome: Outcome) -> None:
    """Draw pictures, write the summary, and print where the results are."""
    settings: Any = recipe.settings
    records, skipped = folder.read_updates()
    pictures = [folder.path / "curves.png"]
    draw_curves(pictures[0], records, CurveLabels.of(recipe))
    pictures += recipe.write_pictures(folder.path)
    if recipe.image_data is not None:  # again, since the evaluation has read more images
        folder.write(folder.data.name, recipe.image_data.record().text())
    outcome.noise = last_noise(folder.diagnosis)
    summary = folder.write_json("summary.json", summarize_run(recipe, records, skipped, outcome))
    if outcome.findings:
        print(format_findings(outcome.findings))
    if outcome.scores:
        assert isinstance(recipe, EncoderRecipe)
        print(describe_scores(outcome.scores, recipe.data, settings.evaluation))
    if outcome.noise and (message := noise_message(recipe.graph.top, outcome.noise)):
        print(message)
    print("\n".join(f"{path}" for path in [*pictures, summary]))


def _saved(folder: RunFolder) -> str:
    """Name the checkpoint that a diverged run leaves."""
    try:
        newest, _ = newest_intact(folder.checkpoint)
    except CheckpointError:
        return "No checkpoint had been written yet"
    return f"The newest checkpoint is {newest}"


def output_folder(config: DictConfig) -> Path:
    """The folder of a run; without ``output`` a new one, which no other run takes."""
    return Path(str(config.output)) if config.output else reserve(Path(f"runs/{title(config)}-{now()}"))
