"""multilevel promote EXPORT [SETTING=VALUE ...]: move a link to a new exported model, or back

Moves a symbolic link, by default current, to an exported folder, in one step: a command that uses the link sees the old
model or the new one. Predict and monitor with the link: multilevel predict current images/. The last three models that
it led to are kept in a file beside it, LINK.history.json, for rollback=true; the folders stay where they are, and must
not be deleted while they are in that file.

  multilevel promote RUN/export link=line/current                    line/current leads to RUN/export
  multilevel promote rollback=true link=line/current                 and back to the model before
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from multilevel.configuration.command_line import read
from multilevel.recipes.export import ExportedModel
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import parse_json, write_whole
from multilevel.solvers.ranges import Text, require

KEPT = 3  # earlier models


@dataclass
class PromoteSettings:
    """Settings of ``multilevel promote``.

    Args:
        link: the symbolic link to move; it is made if it does not exist.
        rollback: move the link back to the model before the current one, instead of to EXPORT.
    """

    link: Text = "current"
    rollback: bool = False


SETTINGS = PromoteSettings


@dataclass(frozen=True)
class Promoted:
    """A model that a link leads or led to.

    Attributes:
        target: its folder, relative to the link's folder.
        identity: see ``ExportedModel.identity``.
        time: when the link was moved to it, in UTC.
    """

    target: str
    identity: str
    time: str


def main(arguments: Sequence[str]) -> int:
    """Move the link, or move it back."""
    line = read("promote", arguments, PromoteSettings, words=True, recipe=False)
    link, words, rollback = Path(line.settings.link), line.words, line.settings.rollback
    usage = "one exported folder, or rollback=true without one: multilevel promote EXPORT"
    require("promote", " ".join(words) or None, len(words) == (0 if rollback else 1), usage)
    usable = link.is_symlink() or not link.exists()
    require("link", str(link), usable, "a symbolic link, or a name that is not taken")
    past = history(link)
    print(roll_back(link, past) if rollback else promote(link, past, Path(words[0])))
    return 0


def promote(link: Path, past: list[Promoted], export: Path) -> str:
    """Move a link to an exported folder. Returns what happened.

    Raises:
        SettingError: the folder is not an export, or the link cannot be written.
        MultilevelError: the export is broken.
    """
    model = ExportedModel(export, torch.device("cpu"))
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(link, error) from error
    target = os.path.relpath(model.folder, link.parent.resolve())
    if past and (past[0].target, past[0].identity) == (target, model.identity):
        return f"{link} already leads to {target} ({model.identity})"
    new = Promoted(target, model.identity, datetime.now(UTC).isoformat(timespec="seconds"))
    move(link, [new, *past][: 1 + KEPT])
    before = f"; before: {past[0].target} ({past[0].identity})" if past else ""
    return f"{link} leads to {target} ({model.identity}){before}"


def roll_back(link: Path, past: list[Promoted]) -> str:
    """Move a link back to the model before the current one. Returns what happened.

    Raises:
        SettingError: there is no earlier model, or its folder no longer holds it.
    """
    require("rollback", True, len(past) > 1, f"a link with an earlier model in {history_file(link).name}")
    current, earlier = past[:2]
    folder = link.parent / earlier.target
    problem = changed(folder, earlier)
    require(
        "rollback", True, problem is None, f"the earlier model {earlier.target} ({earlier.identity}), but {problem}"
    )
    move(link, past[1:])
    left = len(past) - 2
    return (
        f"{link} leads back to {earlier.target} ({earlier.identity}) from {current.target} ({current.identity}); "
        f"{left} earlier model{'s' * (left != 1)} left"
    )


def changed(folder: Path, expected: Promoted) -> str | None:
    """Why a folder does not hold the expected model; None if it does."""
    try:
        identity = ExportedModel(folder, torch.device("cpu")).identity
    except MultilevelError as error:
        return str(error)
    return None if identity == expected.identity else f"the folder holds another one ({identity}) now"


def move(link: Path, promoted: list[Promoted]) -> None:
    """Write the history and move the link to its first model, each in one step.

    If this is interrupted between the two, ``history`` finds the link at the second model, and the first is dropped.

    Raises:
        SettingError: they cannot be written.
    """
    partial = link.with_name(f".{link.name}.partial")
    try:
        entries = [asdict(entry) for entry in promoted]
        write_whole(history_file(link), json.dumps({"current_first": entries}, indent=2) + "\n")
        partial.unlink(missing_ok=True)
        partial.symlink_to(promoted[0].target, target_is_directory=True)
        os.replace(partial, link)
    except OSError as error:
        raise unwritable(link, error) from error


def history(link: Path) -> list[Promoted]:
    """The models that a link leads and led to, the current one first; empty for a new link.

    A link that was moved by other means leads to a model that the history lacks: it comes first.

    Raises:
        MultilevelError: the history cannot be read.
    """
    if not link.is_symlink():
        return []
    path, target = history_file(link), os.readlink(link)
    try:
        stored: Any = parse_json(path.read_text())["current_first"] if path.exists() else []
        entries = [Promoted(**entry) for entry in stored]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultilevelError(f"{path} cannot be read ({error}): move it away to begin a new history") from error
    for position, entry in enumerate(entries[:2]):
        if entry.target == target:
            return entries[position:]
    return [Promoted(target, identity_of(link), ""), *entries]


def identity_of(link: Path) -> str:
    """The identity of the model that a link leads to; empty if it leads to none."""
    try:
        return ExportedModel(link, torch.device("cpu")).identity
    except MultilevelError:
        return ""


def history_file(link: Path) -> Path:
    """The file beside a link with the models that it led to."""
    return link.with_name(f"{link.name}.history.json")


def unwritable(link: Path, error: OSError) -> SettingError:
    """The error of a link that cannot be written."""
    return SettingError("link", str(link), f"a link in a folder that can be written ({error.strerror})")
