"""A stranger's run, export, study and table: their code does not run, and no secret of the reader is read."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from trials.base import TINY, Named, command, contents, copied, kind
from trials.signals import COMPARE, STUDY, studied

Change = Callable[[Path], object]  # of the folder of a trial
SECRET = "hunter2-of-the-reader"
MARK = "MARK"  # the file that a stranger's code creates
TRAIN = ["train", *TINY, "steps=1", "evaluate=false", "output=fresh"]
COMMANDS = {
    "resume": ["train", "resume=run"],
    "evaluate": ["evaluate", "run"],
    "export": ["export", "run", "output=new", "head=own", "references=false"],
    "init=run": [*TRAIN, "data.path=images", "init=run"],
    "compare": ["compare", "resume=run", "solvers=identity", "rounds=1", "warmup=0", "output=compared"],
    "predict": ["predict", "export", "images"],
    "monitor": ["monitor", "export", "images"],
    "suggest": ["suggest", "export", "images"],
    "inspect": ["inspect", "export", "images", "good=a"],
    "evaluate an export": ["evaluate", "export", "data.path=images"],
    "init=export": [*TRAIN, "data.path=images", "init=export"],
    "study": ["study", "resume=study"],
    "folder": [*TRAIN, "data.path=table", "data.batch_size=2"],
}
CODE = "import pathlib\npathlib.Path({mark!r}).touch()\n"
LOGGER = CODE + "from multilevel.loggers import Logger\nclass Mine(Logger):\n    def write(self, step, values): pass\n"


class Opened:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def pickled(name: str, torch_format: bool) -> Change:
    """Put a pickle in place of a file; digests fit."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        (folder / "run" / "summary.json").unlink(missing_ok=True)
        if torch_format:
            torch.save(Opened(folder / MARK), path)
        else:
            path.write_bytes(pickle.dumps(Opened(folder / MARK)))
        digests = path.with_name("digests.json")
        if digests.exists():
            known = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.iterdir()}
            digests.write_text(json.dumps(known))

    return apply


def bare(name: str) -> Change:
    """A pickle under a name that libraries know, without the weights."""

    def apply(folder: Path) -> None:
        pickled(name, True)(folder)
        (folder / "export" / "model.safetensors").unlink()

    return apply


def config(**values: Any) -> Change:
    """Change settings of the run; ``__`` stands for the dots of their names."""

    def apply(folder: Path) -> None:
        path = folder / "run" / "config.yaml"
        settings = yaml.safe_load(path.read_text())
        for name, value in values.items():
            *groups, last = name.split("__")
            group = settings
            for part in groups:
                group = group[part]
            group[last] = value
        path.write_text(yaml.safe_dump(settings))
        (folder / "run" / "summary.json").unlink()

    return apply


def module(name: str, text: str = CODE) -> Change:
    def apply(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(mark=str(folder / MARK)))

    return apply


def export_json(name: str, **values: Any) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "export" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def study(**values: Any) -> Change:
    """A study of which nothing is done yet; FOLDER in a value is that of the trial."""

    def apply(folder: Path) -> None:
        shutil.copytree(studied() / "study", folder / "study")
        shutil.rmtree(folder / "study" / "runs")
        (folder / "study" / "runs").mkdir()
        path = folder / "study" / "study.yaml"
        changed = {**yaml.safe_load(path.read_text()), **values}
        path.write_text(yaml.safe_dump(changed).replace("FOLDER", str(folder)))
        module("ext/sitecustomize.py")(folder)
        module("planted.py", LOGGER)(folder)

    return apply


def added(**values: Any) -> Change:
    """A study with more in its lists."""

    def apply(folder: Path) -> None:
        known = yaml.safe_load((studied() / "study" / "study.yaml").read_text())
        study(**{name: [*known[name], *value] for name, value in values.items()})(folder)

    return apply


def renamed_arms(folder: Path) -> None:
    known = yaml.safe_load((studied() / "study" / "study.yaml").read_text())
    study(arms=[{**arm, "name": f"../../outside-{arm['name']}"} for arm in known["arms"]])(folder)


def both(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def images(folder: Path, first: str) -> list[str]:
    """Twenty images in ``folder/table`` and one outside; returns the names of a table whose first cell is ``first``."""
    table = folder / "table"
    shutil.copytree(folder / "images" / "a", table)
    Image.new("RGB", (24, 24), (200, 0, 0)).save(folder / "secret.png")
    (table / "link.png").symlink_to(folder / "secret.png")
    return [first.replace("FOLDER", str(folder)), *(f"{number:03}.png" for number in range(1, 10))]


def table(first: str, kind_: str = "paths") -> Change:
    """A parquet table of which a cell names a file."""

    def apply(folder: Path) -> None:
        from datasets import Dataset

        names = images(folder, first)
        names = [names[0], *(str(folder / "table" / name) for name in names[1:])]
        cells: list[Any] = [{"bytes": None, "path": name} for name in names] if kind_ == "structs" else names
        Dataset.from_dict({"image": cells, "label": ["a", "b"] * 5}).to_parquet(str(folder / "table" / "train.parquet"))

    return apply


def metadata(first: str) -> Change:
    def apply(folder: Path) -> None:
        rows = "".join(f"{name},{'ab'[number % 2]}\n" for number, name in enumerate(images(folder, first)))
        (folder / "table" / "metadata.csv").write_text("file_name,label\n" + rows)
        (folder / "table" / "link.png").rename(folder / "table" / "aside.png") if first != "link.png" else None
        (folder / "table" / "aside.png").unlink(missing_ok=True)

    return apply


def attempt(
    change: Change, words: list[str], folder: Path, statuses: tuple[int, ...] = (2,), may_run: bool = False
) -> list[str]:
    folder = folder / "work"
    folder.mkdir()
    copied(folder, "images", "run", "export")
    change(folder)

    def in_current_folder(path: Path) -> None:
        sys.path.insert(0, str(path))  # as python -m multilevel does

    outcome = command(folder, *words, environment={"SECRET_TOKEN": SECRET}, before=in_current_folder)
    problems = outcome.problems(*statuses)
    if (folder / MARK).exists() and not may_run:
        problems.append("code ran")
    after = contents(folder)
    if any(SECRET.encode() in content or SECRET in name for name, content in after.items()):
        problems.append("the secret is shown or stored")
    return problems + [f"{path.name} is outside" for path in folder.parent.iterdir() if path != folder]


PICKLES = [
    ("run/checkpoint/step-4/weights.safetensors", ("resume", "evaluate", "export", "init=run", "compare")),
    ("run/checkpoint/step-4/state.safetensors", ("resume", "compare")),
    ("run/checkpoint/step-4/state.json", ("resume",)),
    ("export/model.safetensors", ("predict", "monitor", "suggest", "inspect", "evaluate an export", "init=export")),
    ("export/masking.safetensors", ("init=export",)),
    ("export/reference.safetensors", ("monitor",)),
]
ENVIRONMENT = "${oc.env:SECRET_TOKEN}"
SECRETS: list[tuple[str, dict[str, Any], str]] = [
    ("data.hub", {"data__hub": f"stranger/{ENVIRONMENT}", "data__path": None}, "evaluate"),
    ("data.path", {"data__path": f"/nowhere/{ENVIRONMENT}"}, "export"),
    ("data.name", {"data__name": ENVIRONMENT}, "resume"),
    ("recipe", {"recipe": ENVIRONMENT}, "evaluate"),
    ("a logger", {"loggers": [ENVIRONMENT]}, "resume"),
    ("evaluation.metric", {"evaluation__metric": ENVIRONMENT}, "evaluate"),
    ("a protocol", {"evaluation__protocols": [ENVIRONMENT]}, "resume"),
    ("a level's optimizer", {"levels__pretrain__optimizer": ENVIRONMENT}, "export"),
    ("steps, with a default", {"steps": "${oc.env:SECRET_TOKEN,4}"}, "resume"),
    ("init", {"init": ENVIRONMENT}, "init=run"),
    ("a nested reference", {"data__path": "/${oc.env:${data.group}}", "data__group": "SECRET_TOKEN"}, "compare"),
    ("a resolver by a reference", {"data__path": "/${${data.group}:SECRET_TOKEN}", "data__group": "oc.env"}, "export"),
    ("a decoded text", {"seed": "${oc.decode:'${oc.env:SECRET_TOKEN}'}"}, "resume"),
    ("a created mapping", {"data__hub": "${oc.create:{a:${oc.env:SECRET_TOKEN}}}", "data__path": None}, "evaluate"),
]  # fmt: skip
LAUNCHERS = [
    ["hydra/launcher=basic", "+hydra.job.env_set.PYTHONPATH=FOLDER/ext"],
    ["hydra/launcher=basic", "+hydra.callbacks.a={_target_:pathlib.Path,a:FOLDER}"],
    ["hydra/launcher=basic", "hydra.launcher._target_=planted.Mine"],
    ["hydra/launcher=basic", "hydra.searchpath=[file://FOLDER/ext]"],
]


@kind("code or secrets on load of a run, an export, a study")
def strangers(generator: random.Random) -> Iterator[Named]:
    for name, commands in PICKLES:
        for words in commands:
            torch_format = generator.random() < 0.5
            text = f"{'torch.save' if torch_format else 'a pickle'} as {name}, {words}"
            both_checkpoints = [name.replace("step-4", step) for step in ("step-3", "step-4")]
            names = both_checkpoints if "step-4" in name else [name]
            yield text, partial(attempt, both(*(pickled(each, torch_format) for each in names)), COMMANDS[words])
    for name in ("export/pytorch_model.bin", "export/model.onnx"):
        for words in ("predict", "init=export"):
            yield f"a pickle as {name} alone, {words}", partial(attempt, bare(name), COMMANDS[words])
    for name, values, words in SECRETS:
        yield f"an environment variable in {name}, {words}", partial(attempt, config(**values), COMMANDS[words])
    own = partial(attempt, config(evaluation__seed="${seed}"), COMMANDS["evaluate"], statuses=(0,))
    yield "a reference to an own setting, evaluate", own
    for number, launcher in enumerate(LAUNCHERS):
        yield f"a study's launcher {number}", partial(attempt, study(launcher=launcher), COMMANDS["study"])
    for name, values in (
        ("an environment variable in its settings", {"settings": [f"data.hub={ENVIRONMENT}"]}),
        ("settings of Hydra", {"settings": ["+hydra.job.env_set.PYTHONPATH=FOLDER/ext"]}),
        ("a logger by its module", {"settings": ["loggers=[planted.Mine]"]}),
    ):
        yield f"a study with {name}", partial(attempt, added(**values), COMMANDS["study"])
    yield (
        "a study with an environment variable as its metric",
        partial(attempt, study(metric=ENVIRONMENT), COMMANDS["study"]),
    )
    yield "a study with folders elsewhere", partial(attempt, renamed_arms, COMMANDS["study"])
    planted = both(module("planted.py", LOGGER), config(loggers=["planted.Mine"]))
    yield "a logger by its module, resume", partial(attempt, planted, COMMANDS["resume"])
    again = [*COMMANDS["resume"], "loggers=[planted.Mine]"]
    yield "the logger named again, resume", partial(attempt, planted, again, statuses=(0,), may_run=True)
    here = both(*(module(f"{name}.py") for name in ("tqdm", "filelock", "matplotlib", "sitecustomize", "selectors")))
    yield "modules in the current folder, study", partial(from_here, here, [*STUDY[:-1], "output=studied"])
    yield "modules in the current folder, compare", partial(from_here, here, COMPARE)
    yield "modules in the folder of a study, resumed there", partial(from_study, ["study", "resume=."])
    for words in ("predict", "init=export"):
        code = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "modeling.Mine")}
        change = both(module("export/modeling.py"), export_json("config.json", model_type="mine", **code))
        yield f"a model with code of its own, {words}", partial(attempt, change, COMMANDS[words], statuses=(0, 2))
    kernels = export_json("config.json", _attn_implementation="stranger/kernel", attn_implementation="stranger/kernel")
    yield "a model with kernels of the hub, predict", partial(attempt, kernels, COMMANDS["predict"], statuses=(0, 2))
    cells = (
        ("../secret.png", "structs"),
        ("FOLDER/secret.png", "structs"),
        ("link.png", "paths"),
        ("/dev/zero", "paths"),
    )
    for first, what in cells:
        yield f"a cell of a table with {first} in {what}", partial(attempt, table(first, what), COMMANDS["folder"])
    for first in ("../secret.png", "FOLDER/secret.png", "link.png"):
        yield f"metadata.csv with {first}", partial(attempt, metadata(first), COMMANDS["folder"])
    yield "metadata.csv with its own images", partial(attempt, metadata("000.png"), COMMANDS["folder"], statuses=(0,))
    scripts = both(module("stranger/data/data.py"), module("data.py"))
    for hub in ("stranger/data", "FOLDER/stranger/data"):
        for words in ("evaluate", "resume"):
            change = both(scripts, partial(from_hub, hub))
            yield f"data.hub={hub} with a loading script, {words}", partial(attempt, change, COMMANDS[words])


def from_hub(name: str, folder: Path) -> None:
    config(data__hub=name.replace("FOLDER", str(folder)), data__path=None)(folder)


def from_here(change: Change, words: list[str], folder: Path) -> list[str]:
    """A command whose processes start in a folder with modules; the command itself does not import from there."""
    copied(folder, "images")
    change(folder)
    outcome = command(folder, *words)
    return outcome.problems(0) + (["code ran"] if (folder / MARK).exists() else [])


def from_study(words: list[str], folder: Path) -> list[str]:
    """Resume a study in its folder, to which its owner has added modules."""
    copied(folder, "images")
    study()(folder)
    for name in ("tqdm", "filelock", "sitecustomize"):
        (folder / "study" / f"{name}.py").write_text(CODE.format(mark=str(folder / MARK)))
    (folder / "study" / "images").symlink_to(folder / "images")  # as the study has them, relative to the current folder
    outcome = command(folder / "study", *words)
    return outcome.problems(0) + (["code ran"] if (folder / MARK).exists() else [])
