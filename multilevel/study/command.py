"""multilevel study [SETTING=VALUE ...]: report whether guided masking pays on your data

Does guided masking pay on your data, and at what cost? Trains the recipe with each mask policy at equal budget over
several seeds, evaluates every encoder on the same test split, and writes report.html (one file, opens offline),
study.json and pictures. The verdict says whether any encoder is better than the references (an untrained one, raw
pixels, the majority class and, once per seed, the same network trained from scratch on the labels), and whether guided
masks pay, do not pay, or why these seeds cannot decide it. Every part is an ordinary run in FOLDER/runs. Settings are
those below, those of multilevel train, and

  arm.NAME="A=B C=D"     another arm with its own settings, such as another solver (the data stay the same)
  transfer=NAME          also evaluate every encoder on another data set: transfer.path=DIR, transfer.SETTING=VALUE
  hydra/launcher=joblib  run the parts through a Hydra launcher: joblib (pip install multilevel[study], jobs=N says how
                         many), or one for a cluster, such as submitit_slurm with hydra.launcher.partition=NAME

  multilevel study data=folder data.path=DIR
  multilevel study data=cifar10 data.path=DIR policies=random,sampled,topk seeds=10 jobs=2 steps=2000
  multilevel study data=folder data.path=DIR policies=random arm.solved="solver=conjugate_gradient solver.damping=0.1"
  multilevel study data=folder data.path=DIR labels=10,100 labels_per_class=5,20
  multilevel study resume=FOLDER seeds=8                 add seeds to a study that has ended
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.data.good import named_good
from multilevel.recipes.evaluation import PROTOCOLS
from multilevel.recipes.evaluation.evaluate import amount_images
from multilevel.recipes.evaluation.labels import Amount, overrides_of
from multilevel.recipes.evaluation.remarks import fitted_images
from multilevel.reports.costs import money_settings
from multilevel.runs.folder import RunFolder, check_free, now, reserve
from multilevel.runs.lock import only_process
from multilevel.runs.training import check_named
from multilevel.solvers import DataError, MultilevelError, SettingError
from multilevel.solvers.ranges import require
from multilevel.study.launch import check_launcher, run_parts, stored_launcher
from multilevel.study.part import is_done
from multilevel.study.plan import (
    SAME_IMAGES,
    VERSION,
    Arm,
    Study,
    arm_name,
    arm_settings,
    equal_updates,
    updates_per_step,
    usable_cores,
)
from multilevel.study.report import write_report
from multilevel.study.results import collect
from multilevel.study.settings import StudySettings
from multilevel.study.transfer import transfer_config
from multilevel.study.watch import Watch

DEFAULT_GUIDED = "sampled"
OWN = ("labels", "labels_per_class")  # settings of the evaluation that a study has under these names
SEEDS = 5
DEFAULTS = 2  # see ``Study``


SETTINGS = StudySettings


def main(arguments: Sequence[str]) -> int:
    """Run or continue a study; returns 0 if all parts succeeded, 1 if some failed."""
    settings = StudySettings.parsed(arguments)
    check_launcher(settings.launcher)
    if settings.resume is None:
        study = plan(settings, arguments)
        folder = new_folder(settings.output, study)
    else:
        folder = Path(settings.resume)
        study = resumed(Study.read(folder), settings)
        check_loggers(study, settings, folder)
    with only_process("output" if settings.resume is None else "resume", folder):
        study.write(folder)
        if study.equal == "time" and study.seconds_per_step is None:
            study = _calibrated(folder)
        return run(study, folder)


def new_folder(output: str | None, study: Study) -> Path:
    """Create the folder of a study.

    Raises:
        SettingError: it is not empty, or cannot be created.
    """
    if output is None:
        folder = reserve(Path(f"runs/study-{study.data}-{now()}"))
    else:
        folder = Path(output)
        check_free(folder)
    try:
        (folder / "runs").mkdir(parents=True)
    except OSError as error:
        raise SettingError("output", str(folder), f"a writable folder ({error.strerror})") from error
    return folder


def check_loggers(study: Study, settings: StudySettings, folder: Path) -> None:
    """Raise SettingError if a stored study has a logger of its own that the command line does not name."""
    named = compose_config(settings.settings).loggers
    for arm in study.arms:
        check_named(compose_config(study.overrides(arm, study.seeds[0])).loggers, named, folder)


def run(study: Study, folder: Path) -> int:
    """Run every part to its end, then write study.json, the pictures and report.html."""
    pending = [part.name for part in study.parts() if not is_done(study, folder, part.name)]
    with Watch(study, folder):
        run_parts(study, folder, pending)
    result = collect(study, folder)
    written = [RunFolder(folder).write_json("study.json", result)]
    if result["parts"]:
        localized = result if study.language == "en" else collect(study, folder, study.language)
        written += write_report(localized, folder, study.language)
    if result["verdict"]:
        print(result["verdict"]["sentence"])
    if result["notes"]:
        print("\n".join(result["notes"]))
    print("\n".join(str(path) for path in written))
    for name, reason in result["failed"].items():
        print(f"multilevel: the part {name} failed: {reason}", file=sys.stderr)
    return 1 if result["failed"] else 0


def plan(settings: StudySettings, arguments: Sequence[str]) -> Study:
    """Plan the study; every arm's recipe is built once, so that errors show up now and not later.

    Raises:
        SettingError: an unusable setting.
        DataError: unusable data, or data without labels.
    """
    config = compose_config(settings.settings)
    if "mask" not in config:
        raise SettingError("recipe", config.recipe, "a recipe with masks, such as guided_mae")
    policies = _policies(settings, config)
    settings, question = _about(settings, policies[0])
    arms = [_arm(settings, policy, None) for policy in policies]
    guided = [_arm(settings, arm.policy, share) for arm in arms if arm.learned for share in settings.guidance]
    if settings.guidance and not guided:
        raise SettingError("guidance", settings.guidance, "at least one policy that learns its masks")
    arms += guided
    for name, overrides in settings.arms.items():
        policy = compose_config([*settings.settings, *overrides]).mask.policy
        arms.append(_arm(settings, policy, None, name, overrides))
    steps = equal_updates([arm.updates_per_step for arm in arms], config.steps)
    transfer_name = _data_name(transfer_config(config, settings.transfer)) if settings.transfer else ""
    jobs = settings.jobs or 1
    return Study(
        arguments=[argument for argument in arguments if not argument.startswith("output=")],
        settings=settings.settings,
        arms=[replace(arm, steps=count) for arm, count in zip(arms, steps, strict=True)],
        seeds=settings.seeds or list(range(SEEDS)),
        labels=question.labels,
        transfer=settings.transfer,
        transfer_name=transfer_name,
        equal=settings.equal,
        metric=question.metric,
        protocol=question.protocol,
        split=OmegaConf.select(config, "evaluation.split", default="test"),
        minimum_effect=settings.minimum_effect,
        threads=int(os.environ.get("OMP_NUM_THREADS") or max(1, usable_cores() // jobs)),
        jobs=jobs,
        launcher=settings.launcher,
        data=_data_name(config),
        labelled=question.labelled,
        training_labels=question.training_labels,
        good=question.good,
        money=money_settings(asdict(settings)),
        language=settings.language or "en",
        version=VERSION,
    )


def resumed(study: Study, settings: StudySettings) -> Study:
    """Load a study to continue, optionally with another number of jobs or more seeds.

    Raises:
        SettingError: the seeds omit some of the study's.
    """
    if settings.seeds is not None:
        if not set(study.seeds) <= set(settings.seeds):
            raise SettingError("seeds", settings.seeds, f"at least the study's own: {study.seeds}")
        unchanged = [argument for argument in study.arguments if not argument.startswith("seeds=")]
        seeds = f"seeds=[{','.join(map(str, settings.seeds))}]"
        study = replace(study, seeds=settings.seeds, arguments=[*unchanged, seeds])
    money = settings.changed_money(study.money)
    expected = "null: this study knows no good class, or is of a version that stored none"
    require("cost.miss", money.cost.miss, not money.cost.known or study.good is not None, expected)
    jobs, launcher = settings.jobs or study.jobs, settings.launcher or stored_launcher(study.launcher)
    return replace(study, jobs=jobs, launcher=launcher, money=money, language=settings.language or study.language)


def _policies(settings: StudySettings, config: DictConfig) -> list[str]:
    """The policies to compare, baseline first."""
    recipes_own = config.mask.policy if config.mask.policy != "random" else DEFAULT_GUIDED
    policies = settings.policies or ["random", recipes_own]
    baseline = settings.baseline or policies[0]
    policies = [baseline, *(policy for policy in policies if policy != baseline)]
    if len(policies) + len(settings.arms) < 2:
        raise SettingError("policies", ",".join(policies), "at least two, such as random,sampled: one is the baseline")
    return policies


def _arm(
    settings: StudySettings, policy: str, guidance: float | None, name: str | None = None, overrides: Sequence[str] = ()
) -> Arm:
    """An arm, after building its recipe; its steps are not known yet."""
    recipe = _built(settings, [*arm_settings(policy, guidance), *overrides])
    learned = "mask" in recipe.graph.names
    return Arm(
        name=name or arm_name(policy, guidance),
        policy=policy,
        guidance=guidance,
        learned=learned,
        guided_share=getattr(recipe.settings.mask, "guidance", 1.0) if learned else 0.0,
        updates_per_step=updates_per_step(recipe.graph),
        steps=0,
        settings=list(overrides),
    )


def _built(settings: StudySettings, overrides: Sequence[str]) -> Any:
    """Build and check the recipe of an arm."""
    config = compose_config([SAME_IMAGES, *settings.settings, *overrides, *overrides_of(settings.amounts)])
    try:
        recipe: Any = build_recipe(config)
    except SettingError as error:
        name = error.setting.removeprefix("evaluation.")
        raise SettingError(name if name in OWN else error.setting, error.got, error.expected) from None
    if getattr(recipe, "task", None) is None:
        raise DataError("the images have no labels, so a study cannot compare encoders")
    return recipe


@dataclass(frozen=True)
class Question:
    """The question of the verdict.

    Attributes:
        metric, protocol: of the score.
        labels: amounts of labels, the largest last.
        labelled: labelled training images of each class that protocols can be fitted to.
        training_labels: all labelled training images.
        good: the good class; None if there is none.
    """

    metric: str
    protocol: str
    labels: list[Amount]
    labelled: dict[str, int]
    training_labels: int
    good: str | None


def _about(settings: StudySettings, policy: str) -> tuple[StudySettings, Question]:
    """The question of the verdict, and the evaluation settings that every part needs for it.

    Raises:
        SettingError: an unknown protocol, or a metric that the protocol does not report.
    """
    recipe = _built(settings, arm_settings(policy, None))
    evaluation, task = recipe.settings.evaluation, recipe.task
    protocols = evaluation.protocols_of(task)
    protocol = settings.protocol or protocols[0]
    if protocol not in protocols:
        if evaluation.protocols is not None:
            raise SettingError("protocol", protocol, f"one of evaluation.protocols: {', '.join(protocols)}")
        if protocol not in PROTOCOLS:
            raise SettingError("protocol", protocol, f"one of {', '.join(PROTOCOLS)}")
        added = f"evaluation.protocols=[{','.join([*protocols, protocol])}]"
        settings = replace(settings, settings=[*settings.settings, added])
    metric, known = settings.metric or task.headline, evaluation.metrics_of(task, protocol)
    if metric not in known:
        raise SettingError("metric", metric, f"a metric that {protocol} reports: {', '.join(known)}")
    if settings.metric and evaluation.metric is None:  # linear probes choose their regularization by it
        settings = replace(settings, settings=[*settings.settings, f"evaluation.metric={metric}"])
    images = amount_images(recipe.data, evaluation)
    labels = sorted(images, key=lambda amount: (images[amount], amount == 1))
    labelled = fitted_images(recipe.data, evaluation)
    good = _good(settings, list(labelled))
    return settings, Question(metric, protocol, labels, labelled, len(recipe.data.train), good)


def _good(settings: StudySettings, names: Sequence[str]) -> str | None:
    """The good class of these, which are none if images have no single class.

    Raises:
        SettingError: ``good`` is not a class, or costs need a good class.
    """
    listed = ", ".join(names) or "none: images have no single class"
    require("good", settings.good, settings.good is None or settings.good in names, f"one of the classes ({listed})")
    good = settings.good or named_good(names)
    expected = f"null, or good=CLASS: the name of no class says that it is the good one ({listed})"
    require("cost.miss", settings.cost.miss, not settings.cost.known or good is not None, expected)
    return good


def _data_name(config: DictConfig) -> str:
    """The data set's name; for a folder of images, the folder's name."""
    return Path(config.data.path).resolve().name if config.data.name == "folder" else str(config.data.name)


def _calibrated(folder: Path) -> Study:
    """Calibrate in a separate process, which frees all its memory when it ends."""
    command = [sys.executable, "-P", "-m", "multilevel.study.calibration", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise MultilevelError(f"the seconds per step could not be measured; to continue: resume={folder}")
    return Study.read(folder)
