"""Imports point one way: multilevel -> recipes -> levels -> problems -> solvers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["solvers", "problems", "levels", "recipes", "multilevel"]
FORBIDDEN = {"solvers": {"transformers", "hydra", "omegaconf"}, "problems": {"transformers", "hydra", "omegaconf"}}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)


def room_of(module):
    """The room of an imported module; None outside the project."""
    parts = module.split(".")
    if parts[0] != "multilevel":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "multilevel"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_rooms_below_it_alone(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            assert room_of(module) in (None, *allowed), f"{path} imports {module}"
            assert module.split(".")[0] not in FORBIDDEN.get(room, ()), f"{path} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_files_stay_short(room):
    for path in (ROOT / room).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
