"""Extends the packages with the user's own recipes, levels and solvers from the folders in MULTILEVEL_PATH."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from types import ModuleType

from multilevel.solvers.errors import MultilevelError, SettingError

VARIABLE = "MULTILEVEL_PATH"
ROOMS = ("recipes", "levels", "solvers")
HOME = Path(__file__).resolve().parents[1]  # contains the project's packages, in a checkout and in an installation


def folders() -> list[Path]:
    """The folders that MULTILEVEL_PATH lists (separated as in PATH), as absolute paths; each mirrors the project's
    packages."""
    listed = [Path(folder).resolve() for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return [folder for folder in dict.fromkeys(listed) if folder != HOME]


def extend(path: MutableSequence[str], package: str) -> None:
    """Append a user's folders for a package to its ``__path__``: FOLDER/levels for ``multilevel.levels``."""
    for folder in folders():
        subfolder = folder.joinpath(*package.split(".")[1:])
        if subfolder.is_dir() and str(subfolder) not in path:
            path.append(str(subfolder))


def load_module(module: str) -> ModuleType:
    """Import a module of this project or of the user's.

    Raises:
        SettingError: a user's file fails; the message has the location and Python's error.
    """
    try:
        return importlib.import_module(module)
    except MultilevelError:
        raise
    except Exception as error:
        location = _users_line(error)
        if location is None:
            raise
        wish = f"a file that can be imported ({type(error).__name__}: {getattr(error, 'msg', error)})"
        raise SettingError(VARIABLE, location, wish) from error


def _users_line(error: Exception) -> str | None:
    """FILE:LINE, the last line in a user's folders in an error's traceback; None if there is none."""
    lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno))
    users = [f"{file}:{line}" for file, line in lines if any(map(Path(file).is_relative_to, folders()))]
    return users[-1] if users else None


def check_folders() -> None:
    """Raise SettingError for a missing folder, or a file that another file hides."""
    searched = [HOME]
    for folder in folders():
        if not folder.is_dir():
            raise SettingError(VARIABLE, str(folder), f"existing folders, separated by '{os.pathsep}'")
        for file in _files(folder):
            first = next((root / file for root in searched if (root / file).exists()), None)
            if first is not None:
                raise SettingError(VARIABLE, str(folder / file), f"another name: {first} exists")
        searched.append(folder)


def _files(folder: Path) -> Iterator[Path]:
    """The modules and configuration files in a folder's packages, relative to the folder."""
    for room in ROOMS:
        for file in sorted(folder.joinpath(room).rglob("*")):
            if file.suffix in (".py", ".yaml") and file.name != "__init__.py":
                yield file.relative_to(folder)
