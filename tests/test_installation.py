"""The package works as an ordinary and as an editable install, configuration files included."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from multilevel.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
INSTALL = "pip install 'multilevel[recipes]'"
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


def install(wheel, target):
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)


def closure(names):
    """The distributions ``names``, and all that they need here."""
    reached, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = distribution(name)
            needed = [Requirement(line) for line in reached[name].requires or []]
            waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return reached


@pytest.fixture(scope="module")
def framework(wheel, tmp_path_factory):
    """Runs code where multilevel, its dependencies and theirs are installed, and nothing else."""
    site = tmp_path_factory.mktemp("framework") / "site-packages"
    install(wheel, site)
    for installed in closure(Requirement(line).name for line in PROJECT["dependencies"]).values():
        for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(installed.locate_file(top))

    def run(code):
        code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=site, capture_output=True, text=True)

    return run


def test_the_dependencies_are_torch_numpy_and_safetensors():
    assert {Requirement(line).name for line in PROJECT["dependencies"]} == {"torch", "numpy", "safetensors"}


def test_the_readmes_example_runs_on_torch_numpy_and_safetensors(framework):
    check = "three = penalty.weight.sigmoid().flatten()[:3]; assert three.max() < 0.5, three"
    modules = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = framework(f"{EXAMPLE}\n{check}\n{modules}")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert {"torch", "numpy", "multilevel"} <= set(loaded)
    assert not {"hydra", "omegaconf", "transformers", "sklearn", "scipy", "PIL", "tqdm"} & set(loaded)


def test_without_the_recipes_every_command_says_what_to_install(framework):
    calls = "".join(f"print('=', main([{name!r}]), file=sys.stderr)\n" for name in COMMANDS)
    done = framework(f"from multilevel.__main__ import main\n{calls}main(['--version']), main(['--help'])")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["= 2"] * len(COMMANDS)
    for command, line in zip(COMMANDS, lines[::2], strict=True):
        assert line.startswith(f"multilevel: multilevel {command} needs datasets, hydra-core, ")
        assert line.endswith(f"transformers: {INSTALL}")
    assert "multilevel COMMAND --help" in done.stdout


def test_without_the_recipes_the_levels_say_what_to_install(framework):
    done = framework("import multilevel.levels")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "multilevel.solvers.extras.MissingExtraError: multilevel.levels needs datasets, hydra-core, "
    )
    assert last.endswith(INSTALL)


def test_an_import_that_no_extra_brings_fails_as_it_is():
    code = "from multilevel.solvers.extras import needing\nwith needing('recipes', 'this'): import not_there"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'not_there'"


def test_an_ordinary_install_runs_from_anywhere(wheel, tmp_path):
    target = tmp_path / "site"
    install(wheel, target)
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
