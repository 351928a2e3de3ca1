"""multilevel new KIND NAME [output=FOLDER]: create starting files for your own recipe, level or solver

Writes a short, working file for your own recipe, level or solver (KIND), and its test: recipes/NAME.py and
recipes/config/recipe/NAME.yaml, levels/NAME.py or solvers/NAME.py, and tests/test_NAME.py. It prints how to test it and
how to use it.

  multilevel new solver my_solver
  MULTILEVEL_PATH=. python -m pytest tests/test_my_solver.py
  MULTILEVEL_PATH=. multilevel train solver=my_solver

MULTILEVEL_PATH lists folders, separated as in PATH, whose recipes/, levels/ and solvers/ (and recipes/config/GROUP/)
every command then finds in addition to the project's own. docs/extending.md explains each step.
"""

from __future__ import annotations

import io
import keyword
import re
import shlex
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multilevel.configuration.command_line import read
from multilevel.solvers import SettingError
from multilevel.solvers.extensions import HOME, VARIABLE, folders
from multilevel.solvers.ranges import require

#: Working files, tested like all others; ``new_recipe`` stands for the name and ``NewRecipe`` for its class.
TEMPLATES = Path(__file__).parents[1] / "templates"
KINDS = {
    "recipe": "multilevel train recipe={name}",
    "level": "multilevel train recipe=RECIPE, where RECIPE imports {title} from multilevel.levels.{name}",
    "solver": "multilevel train solver={name}",
}  # each with the command that uses it


@dataclass
class NewSettings:
    """Settings of ``multilevel new``.

    Args:
        output: the folder to write into.
    """

    output: str = "."


SETTINGS = NewSettings


def main(arguments: Sequence[str]) -> int:
    """Write the files of one kind under a name, and print how to use them."""
    line = read("new", arguments, NewSettings, words=True, recipe=False)
    usable = len(line.words) == 2 and line.words[0] in KINDS
    require("new", " ".join(line.words) or None, usable, f"one of {', '.join(KINDS)}, and a name for it")
    (kind, name), folder = line.words, Path(line.settings.output)
    check_name(kind, name)
    files = rendered(kind, name)
    write_all(folder, files)
    known = folder.resolve() in (HOME, *folders())
    prefix = "" if known else f"{VARIABLE}={shlex.quote(str(folder))} "
    test = shlex.quote(str(folder / "tests" / f"test_{name}.py"))
    print("\n".join(f"{folder / path}" for path in files))
    print(f"to test it: {prefix}python -m pytest {test}")
    print(f"to use it:  {prefix}{KINDS[kind].format(name=name, title=titled(name))}")
    return 0


def titled(name: str) -> str:
    """The name of a class: ``my_solver`` to ``MySolver``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def rendered(kind: str, name: str) -> dict[Path, str]:
    """The files of a kind under a name: ``{path: text}``."""
    stem = f"new_{kind}"
    return {
        path.relative_to(TEMPLATES).with_name(path.name.replace(stem, name)): path.read_text()
        .replace(stem, name)
        .replace(titled(stem), titled(name))
        for path in sorted(TEMPLATES.rglob(f"*{stem}.*"))
        if path.suffix in (".py", ".yaml")
    }


def check_name(kind: str, name: str) -> None:
    """Raise SettingError for a name that is not a lower-case Python identifier, or is already taken."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise SettingError("new", name, f"a Python identifier in lower case, such as my_{kind}")
    rooms = [folder / f"{kind}s" for folder in (HOME, *folders())]
    if any((room / name).is_dir() or (room / f"{name}.py").exists() for room in rooms):
        raise SettingError("new", name, f"another name: multilevel.{kind}s.{name} exists")
    if len(_identifiers(rendered(kind, name))) < len(_identifiers(rendered(kind, f"new_{kind}"))):
        raise SettingError("new", name, f"another name: the files import {name} or {titled(name)}")


def write_all(folder: Path, files: Mapping[Path, str]) -> None:
    """Write all files into a folder, or none.

    Raises:
        SettingError: one of them exists already or cannot be written.
    """
    written: list[Path] = []
    try:
        for path, text in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x") as file:
                written.append(target)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink()
        exists = isinstance(error, FileExistsError)
        expected = "another name, or output=FOLDER" if exists else "a writable output=FOLDER"
        raise SettingError("new", str(target), f"{expected} ({error.strerror})") from error


def _identifiers(files: Mapping[Path, str]) -> set[str]:
    sources = [text for path, text in files.items() if path.suffix == ".py"]
    tokens = (token for text in sources for token in tokenize.generate_tokens(io.StringIO(text).readline))
    return {token.string for token in tokens if token.type == tokenize.NAME}
