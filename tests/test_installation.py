"""The package works as an ordinary and as an editable install, configuration files included."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "recipes" / "config"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # not in the checkout: building leaves files behind
    source.mkdir()
    for room in ("multilevel", "recipes", "levels", "problems", "solvers"):
        (source / room).symlink_to(ROOT / room)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("multilevel-*.whl"))


def test_the_wheel_holds_every_module_and_configuration_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("recipes", "levels", "problems", "solvers"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                assert f"multilevel/{path.relative_to(ROOT)}" in names
    assert "multilevel/recipes/config/recipe/guided_mae.yaml" in names
    assert "multilevel/__main__.py" in names
    assert "multilevel/study/report.html" in names
    for path in (ROOT / "multilevel" / "templates").rglob("*new_*.*"):
        assert "__pycache__" in path.parts or str(path.relative_to(ROOT)) in names


def test_an_ordinary_install_runs_from_anywhere(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    where = python("-c", "import multilevel.solvers, multilevel.recipes; print(multilevel.solvers.__file__)")
    assert Path(where.strip()) == target / "multilevel" / "solvers" / "__init__.py"
    assert "hypergradient through finetune, pretrain" in python("-m", "multilevel", "graph")
    assert (tmp_path / "graph.png").exists()
    python("-m", "multilevel", "new", "solver", "mine")
    environment["MULTILEVEL_PATH"] = "."
    assert python("-c", "from multilevel.solvers import Mine, SOLVERS; print(SOLVERS['mine'] is Mine)") == "True\n"


def test_the_editable_install_reads_the_checkout():
    for room in ("recipes", "levels", "problems", "solvers"):
        spec = importlib.util.find_spec(f"multilevel.{room}")
        assert Path(spec.origin) == ROOT / room / "__init__.py"
