"""Generates docs/solvers.md from the docstrings of the solvers: ``python -m multilevel.commands.solver_page``."""

from __future__ import annotations

import inspect
import re
import textwrap

from multilevel.configuration.command_line import own_descriptions
from multilevel.solvers import SOLVERS, LowerLevel, Solver

TITLE = """# Solvers

For a lower level with loss g, parameters p and cotangent a, every solver approximates `- d/dr <dg/dp, x>` with
`(H + damping I) x = a` for each level r that g reads, where H is the Hessian of g with respect to p. The unrolled
solvers and the penalty method do so without a linear system. `python -m multilevel.commands.solver_page` generates this
page from the docstrings; `multilevel compare` measures the error, memory and time of each solver. The examples use the
lower level below the table.

| solver | assumes | costs, in addition to the mixed product of a solve | use when |
|---|---|---|---|"""


def sections(solver: type[Solver]) -> dict[str, str]:
    """Assumptions, costs and use of a solver from its docstring, each on one line."""
    text = inspect.getdoc(solver) or ""
    texts = {}
    for name in ("Assumes", "Costs", "Use when"):
        match = re.search(rf"^{name}: (.+?)(?=\n\S|\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        if match is None:
            raise ValueError(f"the docstring of {solver.__name__} has no line '{name}: ...'")
        texts[name] = " ".join(match[1].split()).replace("``", "`")
    return texts


def shared_options() -> list[str]:
    """A section on the options that solvers take from a base class, for each such class."""
    takers: dict[type, list[str]] = {}
    for name, solver in SOLVERS.items():
        for base in solver.__mro__[1:]:
            if base not in SOLVERS.values() and own_descriptions(base):
                takers.setdefault(base, []).append(f"`{name}`")
    lines = []
    for base, names in takers.items():
        lines += ["", textwrap.fill(f"Options of {', '.join(names)}:", 120), ""]
        for option, text in own_descriptions(base).items():
            described = f"- `{option}`: {text}".replace("``", "`")
            lines.append(textwrap.fill(described, 120, subsequent_indent="  ", break_on_hyphens=False))
    return ["", "## Options that several solvers have", *lines]


def solver_page() -> str:
    """The whole page."""
    _, _, example = (inspect.getdoc(LowerLevel) or "").partition("Examples:\n")
    lines = [TITLE]
    lines += [f"| `{name}` | {' | '.join(sections(solver).values())} |" for name, solver in SOLVERS.items()]
    lines += ["", "```", example, "```"]
    for name, solver in SOLVERS.items():
        lines += ["", f"## {name}", "", "```", inspect.getdoc(solver) or "", "```"]
    return "\n".join([*lines, *shared_options()]) + "\n"


if __name__ == "__main__":
    print(solver_page(), end="")
