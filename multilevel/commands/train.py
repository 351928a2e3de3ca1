"""multilevel train [--multirun] [SETTING=VALUE ...]: train a recipe (by default guided_mae on digits)

Trains all levels of a recipe together, evaluates the result, and writes a run folder: config.yaml, metrics.jsonl,
summary.json, checkpoint/, curves.png, and the recipe's pictures.

  multilevel train                                             digits, a few minutes on two cores
  multilevel train recipe=hyper_cleaning                       another recipe (multilevel recipes lists them)
  multilevel train data=cifar10 data.path=DIR steps=2000       a local copy in parquet; without a path, from the hub
  multilevel train data=folder data.path=DIR                   your own images, one subfolder per class
  multilevel train solver=neumann solver.terms=5               another hypergradient solver at every level
  multilevel train levels.pretrain.solver=conjugate_gradient levels.pretrain.solver.damping=0.1    ... at only one level
  multilevel train task=segmentation data=folder data.path=DIR masks in masks/CLASS/NAME.png; task=detection: boxes
  multilevel train --multirun mask.policy=random,topk,sampled  one run for each
  multilevel train --multirun hydra/sweeper=optuna hydra.sweeper.n_trials=20 solver=conjugate_gradient \\
      'solver.damping=tag(log,interval(0.001,10))' objective=levels.mask.last_loss      search (pip install
                                                               hydra-optuna-sweeper): the best is printed
  multilevel train experiment=cifar10_small data.path=DIR      published or small settings; yours take precedence
  multilevel train init=facebook/vit-mae-base data=folder data.path=DIR data.image_size=224    from a released MAE
  multilevel train init=EXPORT data=folder data.path=DIR       a new run from old weights: of an export, or init=RUN
  multilevel train resume=RUN                                  resume from the last checkpoint; Ctrl-C or SIGTERM
                                                               writes one after the step, a second one ends at once
  torchrun --standalone --nproc-per-node=2 -m multilevel train SETTING=VALUE ...   data-parallel: each rank takes its
                                                               share of every batch; with --max-restarts=3 and
                                                               output=FOLDER a lost rank is restarted
  multilevel train --help recipe=maml                          the settings of another recipe, with their defaults
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.configuration.command_line import read
from multilevel.configuration.composition import compose_config
from multilevel.problems import replicas
from multilevel.runs.distributed import launched, on_first_rank, process_group, restart, restarts
from multilevel.runs.folder import remove_empty
from multilevel.runs.sweep import sweep
from multilevel.runs.training import MOVED, is_of, output_folder, resume, train
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import Count


@dataclass
class TrainSettings:
    """Settings of ``multilevel train`` in addition to those of the recipe.

    Args:
        resume: the folder of a run to continue from its last checkpoint.
        rank_minutes: with torchrun, how long a rank waits for another one, which may be evaluating.
    """

    resume: str | None = None
    rank_minutes: Count = 60


SETTINGS = TrainSettings
MULTIRUN = ("--multirun", "-m")


def main(arguments: Sequence[str]) -> int:
    """Train as the command line asks; returns 0 on success."""
    overrides = [argument for argument in arguments if argument not in MULTIRUN]
    line = read("train", overrides, TrainSettings)
    with process_group(line.settings.rank_minutes):
        if len(overrides) < len(arguments):
            run_several(overrides)
        else:
            run_or_resume(line.settings.resume, line.overrides)
    return 0


def run_several(overrides: Sequence[str]) -> None:
    """Train a run for each combination of values."""
    if launched():
        raise SettingError("--multirun", "torchrun", "one run with torchrun, or --multirun without it")
    sweep(overrides, train)


def run_or_resume(resumed: str | None, overrides: Sequence[str]) -> None:
    """Start a new run, or continue one."""
    if resumed is None:
        config = replicas.on_every_rank(lambda: compose_config(overrides))
        if restarts() and not config.output:
            raise SettingError("output", None, "a folder, with torchrun --max-restarts: a restart continues in it")
        if restart() and is_of(Path(config.output), config):
            resume(Path(config.output), named_loggers=config.loggers)
        else:
            output = on_first_rank(lambda: output_folder(config))
            try:
                train(config, output)
            finally:
                if not config.output:
                    remove_empty(output)
    else:
        unusable = [override for override in overrides if override.partition("=")[0] not in MOVED]
        if unusable:
            expected = f"no other setting but {', '.join(MOVED)}: a run continues with those in its config.yaml"
            raise SettingError("resume", unusable[0], expected)
        resume(Path(resumed), overrides)
