"""Settings of ``multilevel study`` from the command line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

from multilevel.configuration.command_line import DERIVED, read, settable
from multilevel.levels.masks import POLICIES
from multilevel.recipes.evaluation.labels import Amount, LabelNumber, amounts_of
from multilevel.reports.costs import MoneySettings, money_settings
from multilevel.reports.texts import LANGUAGES
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import Above, AtLeast, AtMost, Below, Count, OneOf, Seed, Text, require

PolicyName = Annotated[str, OneOf(*POLICIES)]
INSTEAD = {
    "mask.policy": "policies=A,B",
    "seed": "seeds=N or seeds=A,B",
    "evaluation.labels": "labels=A,B",
    "evaluation.labels_per_class": "labels_per_class=A,B",
    "evaluate": "no such setting; a study always evaluates",
}
#: Settings and groups in which arms may not differ, since that would be another comparison.
ARMS_SHARE = ("data", "task", "evaluation", "evaluate", "seed", "steps", "output", "resume", "experiment", "checkpoint")
#: Settings allowed together with resume; none of them changes a trained part.
WITH_RESUME = ("resume", "jobs", "seeds", "hydra/launcher", "loggers", "language", *settable(MoneySettings))


@dataclass
class StudySettings(MoneySettings):
    """The study's own settings; None is resolved later, when the recipe is known.

    Args:
        policies: mask policies to compare; None: random and the recipe's own.
        baseline: the policy that the others are compared with; None: the first.
        seeds: number of seeds or a list of them: seeds=5 or seeds=0,3,7. The comparison pairs arms by seed. None: 0 to
            4, or the seeds of a resumed study.
        labels: amounts of labels that the evaluation uses. Up to 1 a number is a share (1 is all labels), from 2 on it
            is a number of labelled images: 0.1,10,1 is a tenth, ten, and all. The verdict is about the largest amount.
            None: all, unless labels_per_class is set.
        labels_per_class: further amounts, as numbers of labelled images of each class; a class with fewer gives all it
            has.
        guidance: values of ``mask.guidance`` for additional arms of each learned policy.
        arms: additional arms by name, with the settings of each.
        transfer: settings of another data set to evaluate on; empty: none.
        equal: the budget that is equal for all arms: pretraining updates or wall time.
        metric: metric of the verdict, and of evaluation.metric unless that is set; None takes the task's own.
        protocol: evaluation protocol of the verdict; None takes the first of evaluation.protocols, or of the task's
            own.
        minimum_effect: the smallest worthwhile difference of the metric.
        good: the class of good parts, for the counts and costs as an inspection. None: the class named good, ok,
            normal, free, fine, 良品 or similar, if there is one.
        language: of the report: en or ja. None: en, or that of a resumed study.
        jobs: parts that run side by side; None: 1, or as many as a Hydra launcher runs.
        launcher: Hydra's launcher and its settings, as overrides; empty: none.
        output: the study's folder; None generates a name.
        resume: the folder of a study to continue.
        settings: settings of ``multilevel train``, for every part.
        given: names of the study's own settings on the command line.
    """

    policies: list[PolicyName] | None = None
    baseline: PolicyName | None = None
    seeds: list[Seed] | None = None
    labels: list[LabelNumber] | None = None
    labels_per_class: list[Count] | None = None
    guidance: list[Annotated[float, AtLeast(0), AtMost(1)]] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict, metadata=DERIVED)
    transfer: list[str] = field(default_factory=list, metadata=DERIVED)
    equal: Annotated[str, OneOf("updates", "time")] = "updates"
    metric: Text | None = None
    protocol: Text | None = None
    minimum_effect: Annotated[float, Above(0), Below(math.inf)] = 0.01
    good: Text | None = None
    language: Annotated[str | None, OneOf(*LANGUAGES)] = None
    jobs: Count | None = None
    launcher: list[str] = field(default_factory=list, metadata=DERIVED)
    output: Text | None = None
    resume: Text | None = None
    settings: list[str] = field(default_factory=list, metadata=DERIVED)
    given: list[str] = field(default_factory=list, metadata=DERIVED, compare=False)

    @classmethod
    def parsed(cls, arguments: Sequence[str]) -> StudySettings:
        """Parse ``SETTING=VALUE`` arguments.

        Raises:
            SettingError: a setting is out of range, or does not go with ``resume``.

        >>> StudySettings.parsed(["seeds=3,", "labels=1,0.1", "steps=5"]).settings
        ['steps=5']
        """
        pairs = [tuple(argument.partition("=")[::2]) for argument in arguments]
        for setting, text in pairs:
            if setting in INSTEAD:
                raise SettingError(setting, text, INSTEAD[setting])
        line = read("study", [_seeds_listed(argument) for argument in arguments], cls)
        result = line.settings
        result.given = [setting for setting, _ in pairs if setting in settable(cls)]
        for override in line.overrides:
            result._take(override)
        for name in ("policies", "seeds", "guidance"):
            setattr(result, name, getattr(result, name) and list(dict.fromkeys(getattr(result, name))))
        if any(override.startswith("data.") for override in result.transfer) and result.transfer[0][:5] != "data=":
            raise SettingError("transfer", None, "the name of a data set, in addition to transfer.SETTING=VALUE")
        if result.resume is not None:
            for setting, _ in pairs:
                allowed = setting.removeprefix("+") in WITH_RESUME or setting.startswith("hydra.")
                expected = "only seeds, jobs, hydra/launcher, loggers, language and costs: study.yaml has the rest"
                require("resume", f"{setting}=...", allowed, expected)
        return result

    @property
    def amounts(self) -> list[Amount]:
        """The amounts of labels, in the order given."""
        return amounts_of(self.labels, self.labels_per_class)

    def changed_money(self, stored: MoneySettings) -> MoneySettings:
        """The stored settings of counts and costs, with the given ones in place of theirs."""
        values, own = asdict(stored), asdict(self)
        for name in self.given:
            group, _, leaf = name.partition(".")
            if leaf:
                values[group][leaf] = own[group][leaf]
            elif name in values:
                values[name] = own[name]
        return money_settings(values)

    def _take(self, override: str) -> None:
        setting, _, text = override.partition("=")
        if setting.startswith("arm."):
            self.arms[_arm_name(setting)] = _arm_settings(setting, text)
        elif setting == "transfer":
            self.transfer.insert(0, f"data={text}")
        elif setting.startswith("transfer."):
            self.transfer.append(f"data.{override.removeprefix('transfer.')}")
        elif setting.startswith("hydra"):
            self.launcher.append(override)
        else:
            self.settings.append(override)


def _seeds_listed(argument: str) -> str:
    """``seeds=5`` stands for the seeds 0,1,2,3,4; ``seeds=3,`` and ``seeds=[3]`` for only the seed 3."""
    setting, _, text = argument.partition("=")
    if setting != "seeds" or "," in text or text.startswith("["):
        return argument
    usable = text.isdecimal() and int(text) >= 1
    require("seeds", text, usable, "a number of seeds of at least 1, or a list of seeds such as 0,3,7")
    return f"seeds={','.join(map(str, range(int(text))))}"


def _arm_name(setting: str) -> str:
    name = setting.removeprefix("arm.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in POLICIES:
        expected = f"arm.NAME, a name of letters, digits, - and _ that is not a policy ({', '.join(POLICIES)})"
        raise SettingError("arm", name, expected)
    return name


def _arm_settings(setting: str, text: str) -> list[str]:
    """``"paths=direct mask.ratio=0.5"``, as on a command line."""
    overrides = shlex.split(text)
    for override in overrides:
        name, sign, _ = override.partition("=")
        if not sign or name.split(".")[0] in ARMS_SHARE:
            shared = ", ".join(ARMS_SHARE)
            raise SettingError(setting, override, f"SETTING=VALUE for the training; all arms share {shared}")
    if not overrides:
        raise SettingError(setting, text, "at least one SETTING=VALUE for the training")
    return overrides
