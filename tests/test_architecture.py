"""Imports point one way: multilevel -> recipes -> levels -> problems -> solvers, and in no circle."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from multilevel.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
ROOMS = ["solvers", "problems", "levels", "recipes", "multilevel"]
#: What the framework may import: solvers, problems, and what ``import multilevel`` loads.
FRAMEWORK = {*sys.stdlib_module_names, "multilevel", "torch", "numpy", "safetensors"}
#: What a package or module stands below, and reaches by no chain of imports.
ABOVE = {
    "multilevel.problems.evaluation": [
        f"multilevel.problems.{name}" for name in ("engine", "graph", "hypergradient", "checkpoint")
    ],
    "multilevel.solvers.products": [
        *(f"multilevel.solvers.{name}" for name in ("base", "linear_system")),
        *(solver.__module__ for solver in SOLVERS.values()),
    ],
    "multilevel.recipes.base": ["multilevel.recipes.evaluation", "multilevel.recipes.export"],
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "multilevel" else ("multilevel", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def imports(path):
    """Modules that a file imports anywhere, for typing too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in MODULES)
            if not all(name in MODULES for name in names):
                yield str(node.module)


#: The project's modules that each imports itself.
IMPORTED = {name: {module for module in imports(path) if module in MODULES} - {name} for name, path in MODULES.items()}


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


def test_no_circle_of_imports():
    try:
        TopologicalSorter(IMPORTED).prepare()
    except CycleError as error:  # its path runs from what is imported to what imports it
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", ABOVE)
def test_a_package_does_not_reach_what_stands_above_it(package):
    reached = {name for name in MODULES if name == package or name.startswith(f"{package}.")}
    assert reached
    assert set(ABOVE[package]) <= MODULES.keys()
    waiting = list(reached)
    while waiting:
        for module in IMPORTED[waiting.pop()] - reached:
            reached.add(module)
            waiting.append(module)
    assert not reached & set(ABOVE[package])


def test_the_framework_imports_torch_numpy_and_safetensors_alone():
    for name, path in MODULES.items():
        if room_of(name) in ("solvers", "problems") or name == "multilevel":
            for module in imports(path):
                assert module.split(".")[0] in FRAMEWORK, f"{path} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_files_stay_short(room):
    for path in (ROOT / room).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
