"""``multilevel new``: what it writes works as it stands, and folders in MULTILEVEL_PATH extend the project's rooms."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multilevel.__main__ import main
from multilevel.commands.new import rendered, titled, write_all

ROOT = Path(__file__).parents[2]


def run(folder, *arguments):
    environment = {**os.environ, "MULTILEVEL_PATH": "."}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a recipe, a level and a solver."""
    folder = tmp_path_factory.mktemp("own")
    for kind, name in (("recipe", "other_penalty"), ("level", "z"), ("solver", "other_descent")):
        assert main(["new", kind, name, f"output={folder}"]) == 0
    return folder


def test_what_is_written_passes_its_own_tests(folder):
    ended = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert ended.returncode == 0, ended.stdout
    assert "9 passed" in ended.stdout


def test_what_is_written_can_be_trained(folder):
    arguments = ["recipe=other_penalty", "solver=other_descent", "steps=1,2", "--multirun", "hydra.sweep.dir=sweep"]
    ended = run(folder, "-m", "multilevel", "train", *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("solver OtherDescent()") == 2
    assert len(list(folder.glob("sweep/*/summary.json"))) == 2


def test_without_the_variable_there_is_no_such_recipe(folder, capsys):
    assert main(["train", "recipe=other_penalty"]) == 2
    assert "recipe: got 'other_penalty'; expected one of" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["recipe", "level", "solver"])
@pytest.mark.parametrize("name", ["b", "x2", "a_name_that_is_rather_long"])
def test_what_is_written_is_linted_and_formatted(kind, name, tmp_path):
    write_all(tmp_path, rendered(kind, name))
    for command in (["check"], ["format", "--check"]):
        options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        ended = subprocess.run([sys.executable, "-m", "ruff", *command, *options, tmp_path], capture_output=True)
        assert ended.returncode == 0, ended.stdout


def test_it_says_what_it_wrote_and_what_to_do_with_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "recipe", "my_recipe"]) == 0
    *files, test, use = capsys.readouterr().out.splitlines()
    assert files == ["recipes/config/recipe/my_recipe.yaml", "recipes/my_recipe.py", "tests/test_my_recipe.py"]
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == set(files)
    assert test == "to test it: MULTILEVEL_PATH=. python -m pytest tests/test_my_recipe.py"
    assert use == "to use it:  MULTILEVEL_PATH=. multilevel train recipe=my_recipe"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "new: got None; expected one of recipe, level, solver, and a name for it"),
        (["problem", "mine"], "new: got 'problem mine'; expected one of recipe, level, solver"),
        (["solver", "my-solver"], "new: got 'my-solver'; expected a Python identifier in lower case"),
        (["solver", "2nd"], "new: got '2nd'; expected a Python identifier"),
        (["level", "class"], "new: got 'class'; expected a Python identifier"),
        (["recipe", "Mine"], "new: got 'Mine'; expected a Python identifier in lower case"),
        (["solver", "../mine"], "new: got '../mine'; expected a Python identifier"),
        (["solver", "neumann"], "new: got 'neumann'; expected another name: multilevel.solvers.neumann exists"),
        (["recipe", "data"], "new: got 'data'; expected another name: multilevel.recipes.data exists"),
        (["level", "finetune"], "new: got 'finetune'; expected another name"),
        (["solver", "solution"], "new: got 'solution'; expected another name: the files import solution or Solution"),
        (["recipe", "run"], "new: got 'run'; expected another name: the files import run or Run"),
        (["solver", "mine", "folder=x"], "folder: got 'x'; expected a setting of new: output"),
    ],
)
def test_a_name_that_cannot_be_is_told_in_a_line_and_nothing_is_written(
    arguments, expected, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["new", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_files_are_written_all_or_none(tmp_path, capsys):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_mine.py").write_text("kept")
    assert main(["new", "recipe", "mine", f"output={tmp_path}"]) == 2
    assert "test_mine.py'; expected another name, or output=FOLDER (File exists)" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["kept"]
    assert main(["new", "solver", "mine", f"output={tmp_path / 'tests' / 'test_mine.py'}"]) == 2
    assert "expected a writable output=FOLDER (Not a directory)" in capsys.readouterr().err


def test_a_folder_that_is_not_there_and_a_hidden_file_are_told_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MULTILEVEL_PATH", str(tmp_path / "none"))
    assert main(["recipes"]) == 2
    assert "none'; expected existing folders, separated by ':'" in capsys.readouterr().err
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "neumann.py").touch()
    monkeypatch.setenv("MULTILEVEL_PATH", str(tmp_path))
    assert main(["recipes"]) == 2
    assert "neumann.py'; expected another name: " in capsys.readouterr().err


PYTHON, YAML = "recipes/mine.py", "recipes/config/recipe/mine.yaml"
NO_YAML = "mine.yaml:2'; expected YAML (expected ',' or ']', but got"


@pytest.mark.parametrize(
    ("file", "text", "settings", "expected"),
    [
        (PYTHON, "import nothing_there", [], "mine.py:1'; expected a file that can be imported (ModuleNotFound"),
        (PYTHON, "\ndef (", [], "mine.py:2'; expected a file that can be imported (SyntaxError: invalid syntax"),
        (YAML, "a: [b\n", ["--multirun"], NO_YAML),
    ],
)
def test_a_broken_file_is_told_in_a_line(file, text, settings, expected, tmp_path):
    (tmp_path / YAML).parent.mkdir(parents=True)
    (tmp_path / YAML).touch()
    (tmp_path / file).write_text(text)
    ended = run(tmp_path, "-m", "multilevel", "train", "recipe=mine", "steps=1", *settings)
    assert ended.returncode == 2
    assert ended.stderr.startswith("multilevel: MULTILEVEL_PATH: got '")
    assert expected in ended.stderr


@pytest.mark.parametrize("settings", [[], ["levels.z.solver.terms=3"]])
def test_a_file_that_is_no_yaml_is_told_in_a_line(settings, tmp_path, capsys, monkeypatch):
    (tmp_path / YAML).parent.mkdir(parents=True)
    (tmp_path / YAML).write_text("a: [b\n")
    monkeypatch.setenv("MULTILEVEL_PATH", str(tmp_path))
    assert main(["train", "recipe=mine", "steps=1", *settings]) == 2
    said = capsys.readouterr().err
    assert said.startswith("multilevel: MULTILEVEL_PATH: got '")
    assert NO_YAML in said


def test_in_the_projects_own_checkout_files_need_no_path(capsys, monkeypatch):
    monkeypatch.setattr("multilevel.commands.new.write_all", lambda folder, files: None)
    assert main(["new", "solver", "mine", f"output={ROOT}"]) == 0
    assert "to use it:  multilevel train solver=mine" in capsys.readouterr().out


def test_a_class_is_named_after_its_file():
    assert [titled(name) for name in ("mine", "my_solver", "x2_b")] == ["Mine", "MySolver", "X2B"]
