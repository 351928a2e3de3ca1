"""What ``multilevel study`` is asked for on the command line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from multilevel.levels.masks import POLICIES
from multilevel.solvers import SettingError

EQUAL = ("updates", "time")
INSTEAD = {
    "mask.policy": "policies=A,B",
    "seed": "seeds=N or seeds=A,B",
    "evaluation.labels": "labels=A,B",
    "evaluate": "no such setting: a study always evaluates",
}
#: Settings, and groups of them, in which arms may not differ: that would be another comparison.
ARMS_SHARE = ("data", "task", "evaluation", "evaluate", "seed", "steps", "output", "resume", "experiment", "checkpoint")
#: What may be given together with resume: none of them changes a part that has been trained.
WITH_RESUME = ("resume", "jobs", "seeds", "hydra/launcher")


@dataclass
class StudySettings:
    """The study's own settings; what is None is chosen later, when the recipe is known.

    Args:
        policies: mask policies to compare.
        baseline: the policy that the others are compared with.
        seeds: of every arm; the seeds are the pairs of the comparison. None: 0 to 4, or those of a resumed study.
        labels: shares of the labels that the evaluation is given.
        guidance: values of ``mask.guidance`` for arms beside that of each learned policy.
        arms: further arms by name, and the settings of each.
        transfer: settings of another data set to evaluate on; empty: none.
        equal: what all arms have the same of, pretraining updates or wall time.
        metric: what the verdict is about; None takes the task's own.
        protocol: of the evaluation, that the verdict is about; None takes the first of evaluation.protocols, or of the
            task's own.
        minimum_effect: the smallest difference of the metric that would be worth it.
        jobs: parts that run side by side; None: 1, or as many as a Hydra launcher takes.
        launcher: Hydra's launcher and its settings, as overrides; empty: none.
        output: the study's folder; None makes a name.
        resume: the folder of a study to go on with.
        settings: of ``multilevel train``, for every part.
    """

    policies: list[str] | None = None
    baseline: str | None = None
    seeds: list[int] | None = None
    labels: list[float] = field(default_factory=lambda: [1.0])
    guidance: list[float] = field(default_factory=list)
    arms: dict[str, list[str]] = field(default_factory=dict)
    transfer: list[str] = field(default_factory=list)
    equal: str = "updates"
    metric: str | None = None
    protocol: str | None = None
    minimum_effect: float = 0.01
    jobs: int | None = None
    launcher: list[str] = field(default_factory=list)
    output: str | None = None
    resume: str | None = None
    settings: list[str] = field(default_factory=list)

    @classmethod
    def parsed(cls, arguments: Sequence[str]) -> StudySettings:
        """From ``SETTING=VALUE`` arguments.

        Raises:
            SettingError: one that has no value, is out of range, or does not go with ``resume``.
        """
        result, given = cls(), []
        for argument in arguments:
            setting, sign, text = argument.partition("=")
            if not sign:
                raise SettingError(setting, argument, "SETTING=VALUE")
            if setting in INSTEAD:
                raise SettingError(setting, text, INSTEAD[setting])
            result._take(setting, text, argument)
            given.append(setting)
        if any(one.startswith("data.") for one in result.transfer) and result.transfer[0][:5] != "data=":
            raise SettingError("transfer", None, "the name of a data set, beside transfer.SETTING=VALUE")
        if result.resume is not None:
            other = next(
                (one for one in given if one.removeprefix("+") not in WITH_RESUME and one[:6] != "hydra."), None
            )
            if other:
                expected = "no other setting than seeds, jobs and hydra/launcher: those of study.yaml hold"
                raise SettingError("resume", f"{other}=...", expected)
        return result

    def _take(self, setting: str, text: str, argument: str) -> None:
        parse = _PARSERS.get(setting)
        if parse is not None:
            setattr(self, setting, parse(setting, text))
        elif setting.startswith("arm."):
            self.arms[_arm_name(setting)] = _arm_settings(setting, text)
        elif setting == "transfer":
            self.transfer.insert(0, f"data={text}")
        elif setting.startswith("transfer."):
            self.transfer.append(f"data.{argument.removeprefix('transfer.')}")
        elif setting.startswith("hydra"):
            self.launcher.append(argument)
        else:
            self.settings.append(argument)


def numbers(setting: str, text: str, kind: Callable[[str], Any], expected: str, usable: Callable[[Any], bool]) -> list:
    """A list ``A,B,C`` (brackets allowed) without doubles.

    Raises:
        SettingError: one that is not of the kind, or not usable.
    """
    found: dict[Any, None] = {}
    for part in text.strip("[] ").split(","):
        try:
            value = kind(part)
        except ValueError:
            value = None
        if value is None or not usable(value):
            raise SettingError(setting, part.strip() or text, expected)
        found[value] = None
    return list(found)


def _names(setting: str, text: str) -> list[str]:
    expected = f"some of {', '.join(POLICIES)}"
    return numbers(setting, text, str.strip, expected, lambda name: name in POLICIES)


def _policy(setting: str, text: str) -> str:
    if text not in POLICIES:
        raise SettingError(setting, text, f"one of {', '.join(POLICIES)}")
    return text


def _seeds(setting: str, text: str) -> list[int]:
    """``5`` stands for 0,1,2,3,4; ``3,`` and ``[3]`` for the seed 3 alone."""
    expected = "a number of seeds of at least 1, or a list of seeds such as 0,3,7"
    if "," in text or text.startswith("["):
        return numbers(setting, text.rstrip(","), int, expected, lambda seed: 0 <= seed < 2**32)
    return list(range(numbers(setting, text, int, expected, lambda count: count >= 1)[0]))


def _labels(setting: str, text: str) -> list[float]:
    expected = "shares of the labels, above 0 and at most 1, such as 0.01,0.1,1.0"
    return sorted(numbers(setting, text, float, expected, lambda share: 0 < share <= 1))


def _guidance(setting: str, text: str) -> list[float]:
    expected = "shares of guided masks, from 0 to 1, such as 0.25,0.5"
    return numbers(setting, text, float, expected, lambda share: 0 <= share <= 1)


def _arm_name(setting: str) -> str:
    name = setting.removeprefix("arm.")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in POLICIES:
        expected = f"arm.NAME, a name of letters, digits, - and _ that is no policy ({', '.join(POLICIES)})"
        raise SettingError("arm", name, expected)
    return name


def _arm_settings(setting: str, text: str) -> list[str]:
    """``"paths=direct mask.ratio=0.5"``, as on a command line."""
    own = shlex.split(text)
    for one in own:
        name, sign, _ = one.partition("=")
        if not sign or name.split(".")[0] in ARMS_SHARE:
            shared = ", ".join(ARMS_SHARE)
            raise SettingError(setting, one, f"SETTING=VALUE of the training; all arms share {shared}")
    if not own:
        raise SettingError(setting, text, "at least one SETTING=VALUE of the training")
    return own


def _equal(setting: str, text: str) -> str:
    if text not in EQUAL:
        raise SettingError(setting, text, f"one of {', '.join(EQUAL)}")
    return text


def _effect(setting: str, text: str) -> float:
    expected = "a difference above 0, such as 0.01 for one percent point"
    return numbers(setting, text, float, expected, lambda value: 0 < value < math.inf)[0]


def _jobs(setting: str, text: str) -> int:
    return numbers(setting, text, int, "a whole number of at least 1", lambda count: count >= 1)[0]


def _text(setting: str, text: str) -> str:
    if not text:
        raise SettingError(setting, text, "some text")
    return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "policies": _names,
    "baseline": _policy,
    "seeds": _seeds,
    "labels": _labels,
    "guidance": _guidance,
    "equal": _equal,
    "minimum_effect": _effect,
    "jobs": _jobs,
    **dict.fromkeys(("metric", "protocol", "output", "resume"), _text),
}
