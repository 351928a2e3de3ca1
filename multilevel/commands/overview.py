"""The commands, each with its module, and the line that each module's docstring begins with."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

COMMANDS = {
    "train": "commands.train",
    "compare": "compare.command",
    "study": "study.command",
    "recipes": "commands.recipes",
    "graph": "commands.graph",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "predict": "commands.predict",
    "monitor": "commands.monitor",
    "completion": "commands.completion",
    "new": "commands.new",
}


def overview() -> str:
    """The commands, a line each.

    >>> overview().splitlines()[3].split()[:2]
    ['multilevel', 'compare']
    """
    lines = (text_of(command).splitlines()[0].partition(": ") for command in COMMANDS)
    entries = [f"  {usage:<54}  {summary}" for usage, _, summary in lines]
    last = "multilevel COMMAND --help says more about a command."
    return "\n".join(["multilevel: multilevel optimization in PyTorch", "", *entries, "", last])


def text_of(command: str) -> str:
    """The docstring of a command's module, which is not imported: that takes seconds."""
    spec = find_spec(f"multilevel.{COMMANDS[command]}")
    assert spec is not None
    assert spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
