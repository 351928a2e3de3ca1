"""Settings of ``multilevel train`` with unknown names, other types, values out of range, brackets and deep nesting.

A valid one ends at the missing folder of images, the last thing that is checked before training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from trials.base import Named, command, contents

COUNT = 500
BASE = ["data=folder", "data.path=missing", "output=run"]
MISSING = "multilevel: data.path: got "
#: Settings by kind, with values that each kind takes.
COUNTS = [
    "steps", "data.image_size", "data.batch_size", "checkpoint.every", "data.min_area", "levels.pretrain.steps",
    "levels.mask.accumulate", "mask.draws", "data.limit", "data.tiles", "threads", "evaluation.neighbours",
    "data.max_pixels",
]  # fmt: skip
SHARES = ["data.test_share", "data.validation_share", "data.mask_share", "mask.ratio", "mask.guidance"]
SWITCHES = ["evaluate", "check", "compile", "approximate", "data.flip", "checkpointing", "evaluation.references"]
CHOICES = {
    "data.fit": ["crop", "stretch"],
    "precision": ["float32", "bf16"],
    "mask.policy": ["sampled", "topk", "random"],
    "mask.weights": ["normalized", "raw"],
    "data.changed": ["refuse", "accept"],
    "levels.finetune.optimizer": ["adam", "adamw", "sgd"],
    "paths": ["both", "direct"],
    "recipe": ["guided_mae", "hyper_cleaning"],
    "data": ["folder"],
    "model": ["tiny", "mini"],
    "solver": ["identity", "neumann", "conjugate_gradient"],
}
SWITCHED = ["true", "false"]
NUMBERS = ["levels.finetune.learning_rate", "levels.mask.weight_decay", "mask.entropy_bonus", "data.memory_gib"]
WRONG_COUNTS = [
    "0", "-1", "1.5", "x", "[1]", "{a:1}", "''", "1e400", "nan", "-inf", "true", "12345678901234567890x", "½", "[]",
    "1 2", "(3)", "0.0", "1,2",
]  # fmt: skip
WRONG_SHARES = ["1.5", "-0.1", "x", "[0.5]", "nan", "inf", "{a:0.5}", "''", "half", "0.5.5", "true"]
WRONG_NUMBERS = ["-1", "x", "[1]", "nan", "{a:1}", "''", "--1", "1e"]
WRONG_SWITCHES = ["2", "maybe", "[true]", "''", "1.0", "{a:true}", "nul", "None"]
UNKNOWN = [
    "stpes", "data.image_sizes", "levels.pretrain.lr", "model.widht", "evaluation.metrics", "no.such.setting", "data.",
    ".data", "levels..steps", "a" * 300, "steps.more", "データ", "data/path", "data.path.x", "mask.ratio.x", "device.x",
    "checkpoint.each", "_target_", "hydra_", "__class__", "solver.nothing", "levels.mask.solver.nothing",
]  # fmt: skip
PREFIXES = ["", "+", "++", "~"]
BROKEN = [
    "steps", "=", "=3", "steps==3", "steps=[", "steps={", "steps=}", "steps=[1,2", "steps='", 'steps="', "~", "+", "~=",
    "+=1", "steps=${", "steps=${nothing}", "steps=${oc.env:HOME}", "steps=${oc.decode:1}", "steps=${steps}", "@=1",
    "data@=x", "data@x=folder", "steps=\\", "steps=a b", "a b=1", "steps:3", "--steps", "--steps=3", "-steps=3", "",
    " ", "steps=???", "data=nothing", "recipe=../x", "recipe=/etc/passwd", "model=[tiny,mini]", "experiment=nothing",
    "solver=nothing", "task=nothing", "data={name:folder}", "levels=3", "levels=null", "data=null", "solver=[neumann]",
    "mask=null", "evaluation=null", "checkpoint=null", "model=null", "recipe=null", "steps=null", "seed=-1",
    "seed=4294967296", "device=nothing", "device=cuda:99", "device=meta", "loggers=nothing", "loggers=[nothing]",
    "loggers={a:b}", "data.pixel_range=[1]", "data.pixel_range=[2,1]", "data.pixel_range=[a,b]", "data.channels=2",
    "data.near_copies=2", "data.crop_scale=0", "hydra.run.dir=x", "hydra/launcher=nothing", "resume=", "resume=nothing",
    "objective=[1]", "evaluation.protocols=[nothing]", "evaluation.labels=[0]", "evaluation.labels=[-1]",
    "init=nothing",
]  # fmt: skip
STATUS_EITHER = {"hydra.run.dir=x", "objective=[1]", "loggers=[nothing]"}  # these are read later


def trials(random: random.Random) -> Iterator[Named]:
    made: dict[str, bool | None] = dict.fromkeys(BROKEN, False) | dict.fromkeys(STATUS_EITHER)
    while len(made) < COUNT:
        override, valid = random.choice(KINDS)(random)
        made.setdefault(override, valid)
    for number, (override, valid) in enumerate(made.items()):
        shown = ascii(override if len(override) < 60 else f"{override[:50]}... ({len(override)} characters)")
        yield f"override {number:03}: {shown}", _run(override, valid)


def _count(random: random.Random) -> tuple[str, bool | None]:
    return f"{random.choice(COUNTS)}={random.choice(WRONG_COUNTS)}", False


def _share(random: random.Random) -> tuple[str, bool | None]:
    return f"{random.choice(SHARES)}={random.choice(WRONG_SHARES)}", False


def _number(random: random.Random) -> tuple[str, bool | None]:
    return f"{random.choice(NUMBERS)}={random.choice(WRONG_NUMBERS)}", False


def _switch(random: random.Random) -> tuple[str, bool | None]:
    value = random.choice(WRONG_SWITCHES)
    return f"{random.choice(SWITCHES)}={value}", None if value in ("2", "1.0") else False  # numbers may count as true


def _choice(random: random.Random) -> tuple[str, bool | None]:
    value = random.choice(["nothing", "[a,b]", "{a:b}", "1", "''", "x/y", "a:b", "null"])
    return f"{random.choice(list(CHOICES))}={value}", False


def _unknown(random: random.Random) -> tuple[str, bool | None]:
    name = random.choice(UNKNOWN)
    later = "solver" in name  # a solver's options are read with its level, after the data
    return f"{random.choice(PREFIXES)}{name}={random.choice(['1', 'x', '[1]', '{a:1}', 'null', ''])}", later and None


def _deep(random: random.Random) -> tuple[str, bool | None]:
    depth = random.choice([10, 100, 1000, 5000])
    opening, closing = random.choice([("[", "]"), ("{a:", "}"), ("(", ")"), ("choice(", ")")])
    name = random.choice(["steps", "mask.options", "data.path", "solver", "loggers", "data.pixel_range"])
    return f"{name}={opening * depth}1{closing * depth}", None if name == "data.path" else False


def _long(random: random.Random) -> tuple[str, bool | None]:
    length = random.choice([1000, 100_000])
    return random.choice([f"data.fit={'x' * length}", f"steps={'9' * length}x", f"{'a.' * (length // 2)}b=1"]), False


def _noise(random: random.Random) -> tuple[str, bool | None]:
    name = random.choice([*COUNTS, *SHARES, *CHOICES])
    letters = "".join(random.choices("[]{}(),:='\"\\$ ~+-_.@/#%&|<>!?*abcxyz0159é傷\n\t", k=random.randint(1, 12)))
    return f"{name}={letters}", None


def _valid(random: random.Random) -> tuple[str, bool | None]:
    number = str(random.randint(1, 6) * 8)
    name, values = random.choice([
        ("steps", [number]), ("data.batch_size", [number]), ("checkpoint.every", [number, "1_000"]),
        ("data.limit", [number, "null"]), ("seed", [number, "4294967295"]), ("mask.ratio", ["0.5", "5e-1", ".6"]),
        ("data.test_share", ["0.3", "0"]), ("levels.finetune.learning_rate", ["1e-3", "0.1", "1E-2"]),
        ("mask.guidance", ["0.5", "1.0", "1", ".25"]), ("data.near_copies", ["0.9", "keep"]),
        *((name, SWITCHED) for name in SWITCHES if name != "compile"), *CHOICES.items(),
        ("evaluation.protocols", ["[knn]", "[knn,linear_probe]"]), ("data.group", ["folder", "'(\\d+)'"]),
    ])  # fmt: skip
    return f"{name}={random.choice(values)}", name != "recipe" or None


KINDS: list[Callable[[random.Random], tuple[str, bool | None]]] = [
    _count, _count, _share, _number, _switch, _choice, _unknown, _unknown, _deep, _long, _noise, _noise, _noise, _valid,
    _valid, _valid,
]  # fmt: skip


def _run(override: str, valid: bool | None) -> Callable[[Path], list[str]]:
    def run(folder: Path) -> list[str]:
        outcome = command(folder, "train", *BASE, override)
        problems = outcome.problems(2)
        lines = [line for line in outcome.err.splitlines() if line.strip()]
        if len(lines) != 1:
            problems.append(f"{len(lines)} lines: {lines[:2]}")
        reached = outcome.err.startswith(MISSING)
        if valid is not None and reached != valid:
            problems.append(f"a valid setting is refused: {lines[:1]}" if valid else "the setting is taken")
        left = [name for name in contents(folder) if name not in (".out", ".err")]
        return problems + [f"{name} is left" for name in left]

    return run
