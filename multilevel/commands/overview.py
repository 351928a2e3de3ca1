"""Lists the commands with the first line of each module's docstring."""

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
    "inspect": "commands.inspect",
    "monitor": "commands.monitor",
    "suggest": "commands.suggest",
    "compare-models": "commands.compare_models",
    "promote": "commands.promote",
    "completion": "commands.completion",
    "new": "commands.new",
}


def overview() -> str:
    """The commands, one line each.

    >>> overview().splitlines()[3].split()[:2]
    ['multilevel', 'compare']
    """
    lines = (text_of(command).splitlines()[0].partition(": ") for command in COMMANDS)
    entries = [f"  {usage:<54}  {summary}" for usage, _, summary in lines]
    last = "Run multilevel COMMAND --help for a command's settings."
    return "\n".join(["multilevel: multilevel optimization in PyTorch", "", *entries, "", last])


def text_of(command: str) -> str:
    """The docstring of a command's module, read without importing it, which takes seconds."""
    spec = find_spec(f"multilevel.{COMMANDS[command]}")
    assert spec is not None
    assert spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
