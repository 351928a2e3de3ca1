"""The plan of a study: arms, seeds, and parts, one run for each pair of arm and seed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from multilevel.levels.masks import POLICIES
from multilevel.problems import Graph
from multilevel.recipes.data.settings import MASK_SHARE
from multilevel.recipes.evaluation import PROTOCOLS
from multilevel.recipes.evaluation.labels import Amount, overrides_of
from multilevel.recipes.plain_yaml import read_yaml
from multilevel.reports.costs import MoneySettings, money_settings
from multilevel.runs.folder import EARLIER, RunFolder
from multilevel.solvers import MultilevelError, SettingError

FILE = "study.yaml"
VERSION = 2
_FOLDER = re.compile(r"\w[\w.+-]*")
SAME_IMAGES = f"data.mask_share={MASK_SHARE}"  # for arms that learn masks and those that do not


@dataclass(frozen=True)
class Arm:
    """One mask policy with its settings.

    Args:
        name: used in folder names.
        policy: ``mask.policy``.
        guidance: ``mask.guidance``; None leaves the recipe's.
        learned: whether the masks are learned, so that there is a mask level.
        guided_share: the share of its masks that is guided, 0 to 1; 0 if masks are not learned.
        updates_per_step: pretraining updates for each update of its top level.
        steps: updates of its top level.
        settings: settings of ``multilevel train``, for this arm only.
    """

    name: str
    policy: str
    guidance: float | None
    learned: bool
    guided_share: float
    updates_per_step: int
    steps: int
    settings: list[str] = field(default_factory=list)

    @property
    def overrides(self) -> list[str]:
        """The settings of ``multilevel train`` for the arm."""
        return [*arm_settings(self.policy, self.guidance), *self.settings]

    @property
    def updates(self) -> int:
        """Pretraining updates."""
        return self.steps * self.updates_per_step


@dataclass(frozen=True)
class StudyRun:
    """One run."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """The whole plan, as stored in ``study.yaml``.

    Args:
        arguments: the command line, to repeat it.
        settings: settings of ``multilevel train``, for every part.
        arms: the first is the baseline.
        seeds: seeds of every arm.
        labels: amounts of labels that the evaluation uses, see ``recipes.evaluation.labels``, the largest last.
        transfer, transfer_name: settings and name of another data set to evaluate on; empty: none.
        equal: updates or time.
        metric, protocol, split: of the verdict.
        minimum_effect: the smallest worthwhile difference of the metric.
        threads: CPU threads of each part.
        jobs: parts side by side.
        launcher: overrides of Hydra's launcher; empty: none.
        data: name of the data set.
        seconds_per_step: seconds per step of each arm, measured before the first part; None if updates are equal.
        labelled: labelled training images of each class that protocols can be fitted to; empty for tasks without one
            class per image and for studies of earlier versions.
        training_labels: all labelled training images, which masks that the task guides learn from.
        good: the good class, for the counts and costs as an inspection; None leaves them out.
        money: costs and rates.
        language: of the report.
        version: 1 for studies from before the settings of ``EARLIER``, task.loss=auto, task.metric=auto and the
            supervised reference, which keep their meaning.
    """

    arguments: list[str]
    settings: list[str]
    arms: list[Arm]
    seeds: list[int]
    labels: list[Amount]
    transfer: list[str]
    transfer_name: str
    equal: str
    metric: str
    protocol: str
    split: str
    minimum_effect: float
    threads: int
    jobs: int
    launcher: list[str]
    data: str
    seconds_per_step: dict[str, float] | None = None
    labelled: dict[str, int] = field(default_factory=dict)
    training_labels: int = 0
    good: str | None = None
    money: MoneySettings = field(default_factory=MoneySettings)
    language: str = "en"
    version: int = 1

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def about(self) -> Arm:
        """The arm of the verdict: the first that the task guides, or else the first after the baseline."""
        return next((arm for arm in self.arms[1:] if POLICIES[arm.policy].learns_from == "downstream"), self.arms[1])

    @property
    def inspection_protocol(self) -> str:
        """The protocol whose errors are counted as those of an inspection: the verdict's, if it can predict held-out
        images in little time, else the linear probe."""
        return self.protocol if PROTOCOLS[self.protocol].takes_features() else "linear_probe"

    def parts(self) -> list[StudyRun]:
        """All parts, seed by seed, so that a stopped study has complete pairs."""
        return [StudyRun(arm, seed) for seed in self.seeds for arm in self.arms]

    def part(self, name: str) -> StudyRun:
        return next(part for part in self.parts() if part.name == name)

    def overrides(self, arm: Arm, seed: int) -> list[str]:
        """The settings of ``multilevel train`` for a part."""
        # References are the same for all arms of a seed, so they are scored once.
        scored = "supervised" if self.version > 1 else "true"
        references = [f"evaluation.references={scored if arm == self.baseline else 'false'}"]
        last = [*arm.overrides, *overrides_of(self.labels), f"seed={seed}", f"steps={arm.steps}"]
        return [*self._earlier(), SAME_IMAGES, *references, *self.settings, *last]

    def _earlier(self) -> list[str]:
        """Settings of a study of an earlier version, whose defaults have changed since."""
        if self.version > 1:
            return []
        other_task = any(text.startswith("task=") and text != "task=classification" for text in self.settings)
        task = [] if other_task else ["task.loss=cross_entropy", "task.metric=null"]
        return [*(f"{setting}={value}" for setting, value in EARLIER.items()), *task]

    def write(self, folder: Path) -> None:
        RunFolder(folder).write(FILE, OmegaConf.to_yaml(OmegaConf.create(asdict(self))))

    @classmethod
    def read(cls, folder: Path) -> Study:
        """Read the study in a folder.

        Raises:
            SettingError: the folder has no study.
            MultilevelError: the study's file is broken.
        """
        path = folder / FILE
        if not path.is_file():
            raise SettingError("resume", str(folder), f"the folder of a study, which holds {FILE}")
        try:
            values: Any = OmegaConf.to_container(read_yaml(path))
            arms, money = [Arm(**arm) for arm in values["arms"]], money_settings(values.get("money") or {})
            study = cls(**{**values, "arms": arms, "money": money})
            study.check_stored()
        except MultilevelError:
            raise
        except Exception as error:  # a damaged file has values of any type
            raise MultilevelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        return study

    def check_stored(self) -> None:
        """Refuse what no study stores: folders outside its own, and settings that are not those of training.

        Raises:
            ValueError: the first such value.
        """
        for part in self.parts():
            if not _FOLDER.fullmatch(part.name):
                raise ValueError(f"{part.name} is not the name of a part")
        for setting in [*self.settings, *self.transfer, *(setting for arm in self.arms for setting in arm.settings)]:
            if setting.lstrip("+~").startswith("hydra"):
                raise ValueError(f"{setting} is not a setting of multilevel train")

    def timed(self, seconds_per_step: Mapping[str, float]) -> Study:
        """This study with equal time: every arm gets as many whole steps as fit into the slowest arm's time."""
        longest = max(arm.steps * seconds_per_step[arm.name] for arm in self.arms)
        arms = [replace(arm, steps=max(arm.steps, int(longest / seconds_per_step[arm.name]))) for arm in self.arms]
        return replace(self, arms=arms, seconds_per_step=dict(seconds_per_step))


def arm_settings(policy: str, guidance: float | None) -> list[str]:
    """The settings of an arm with a policy."""
    return [f"mask.policy={policy}", *([] if guidance is None else [f"mask.guidance={guidance}"])]


def arm_name(policy: str, guidance: float | None) -> str:
    return policy if guidance is None else f"{policy}-guidance{guidance:g}"


def updates_per_step(graph: Graph) -> int:
    """Updates of the bottom level per update of the top level."""
    count = 1
    for name in graph.names[:-1]:
        count *= graph.problems[name].steps
    return count


def equal_updates(per_step: Sequence[int], steps: int) -> list[int]:
    """Steps for each arm such that all make the same number of pretraining updates.

    Args:
        per_step: pretraining updates for each step of each arm.
        steps: steps of the arm with the most updates per step.

    Raises:
        SettingError: no whole numbers of steps achieve this.
    """
    updates = steps * max(per_step)
    for count in per_step:
        if updates % count:
            expected = f"a number N with {max(per_step)} * N divisible by {count}, for equal updates of all arms"
            raise SettingError("steps", steps, expected)
    return [updates // count for count in per_step]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
