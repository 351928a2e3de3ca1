"""Pages made from the code are what the code says now."""

import subprocess
import sys
from pathlib import Path

from multilevel.solver_page import sections, solver_page
from multilevel.solvers import SOLVERS

ROOT = Path(__file__).parent.parent


def test_the_solver_page_is_what_the_docstrings_say():
    made = subprocess.run(
        [sys.executable, "-m", "multilevel.solver_page"], capture_output=True, text=True, check=True
    ).stdout
    assert made == solver_page()
    assert (ROOT / "docs" / "solvers.md").read_text() == made, "python -m multilevel.solver_page > docs/solvers.md"


def test_every_solver_says_what_it_assumes_costs_and_is_for():
    for name, solver in SOLVERS.items():
        assert all(len(text) > 10 for text in sections(solver).values()), name
