"""Pages made from the code are what the code says now."""

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from claims import above, claims

from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.commands.solver_page import sections, solver_page
from multilevel.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
FROM_BETTY = (ROOT / "docs" / "from_betty.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", FROM_BETTY, re.DOTALL)


def test_the_solver_page_is_what_the_docstrings_say():
    made = subprocess.run(
        [sys.executable, "-m", "multilevel.commands.solver_page"], capture_output=True, text=True, check=True
    ).stdout
    assert made == solver_page()
    assert (ROOT / "docs" / "solvers.md").read_text() == made, (
        "make it anew: python -m multilevel.commands.solver_page > docs/solvers.md"
    )


def test_every_solver_says_what_it_assumes_costs_and_is_for():
    for name, solver in SOLVERS.items():
        assert all(len(text) > 10 for text in sections(solver).values()), name


def run(code):
    names = {"__name__": "example"}
    exec(compile(code, "from_betty.md", "exec"), names)
    return names["weights"].weight.detach()


@claims(mean_of_others_above_theirs=above(0))
def three_inputs_matter(seed):
    program = PROGRAMS[1].replace("manual_seed(0)", f"manual_seed({seed})")
    return gap(run(program.replace("manual_seed(1)", f"manual_seed({seed + 1})")))


def gap(weights):
    return {"mean_of_others_above_theirs": (weights[:, 3:].mean() - weights[:, :3].mean()).item()}


def test_the_programs_of_the_page_from_betty_come_to_the_same():
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    on_betty, here, taken_over = PROGRAMS
    expected = run(on_betty)
    three_inputs_matter.hold(gap(expected))
    defined = on_betty.replace("Engine([", "# ")  # what the third block goes on from
    for code in (here, defined + taken_over):
        assert (run(code) - expected).abs().max() < 1e-5


def test_the_page_from_betty_has_every_setting_of_betty():
    pytest.importorskip("betty", reason=BETTY_COMMAND)
    configs = importlib.import_module("betty.configs")
    names = [one.name for kind in (configs.Config, configs.EngineConfig) for one in fields(kind)]
    assert len(names) == 31
    assert [name for name in names if f"`{name}" not in FROM_BETTY] == []
    assert BETTY_COMMAND in FROM_BETTY
