"""Every recipe is listed, documented, and can be trained, resumed and compared by the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from multilevel.__main__ import main
from multilevel.commands.recipes import page
from multilevel.recipes.base import recipe_classes

ROOT = Path(__file__).parents[2]
RECIPES = list(recipe_classes())


def test_the_page_is_what_the_docstrings_say():
    made = subprocess.run(
        [sys.executable, "-m", "multilevel.commands.recipes"], capture_output=True, text=True, check=True
    )
    assert made.stdout == page()
    assert (ROOT / "docs" / "recipes.md").read_text() == page(), (
        "make it anew: python -m multilevel.commands.recipes > docs/recipes.md"
    )


def test_recipes_are_listed_in_a_line_each_and_told_in_full(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == RECIPES
    assert all(len(line) < 160 for line in lines)
    assert main(["recipes", "hyper_cleaning"]) == 0
    assert "Franceschi" in capsys.readouterr().out
    assert main(["recipes", "none"]) == 2
    assert f"recipes: got 'none'; expected one of {', '.join(RECIPES)}" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_files_of_a_run_and_a_resumed_run_has_ended(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", f"recipe={recipe}", "steps=2", "evaluate=false", f"output={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["recipe"] == recipe
    assert all(level["last_loss"] is not None for level in summary["levels"].values())
    assert (run / "curves.png").is_file()
    assert main(["train", f"resume={run}"]) == 0
    assert "has ended" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipes_graph_is_drawn(recipe, tmp_path, capsys):
    assert main(["graph", f"recipe={recipe}", f"output={tmp_path / 'graph.png'}"]) == 0
    assert "reads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "a run that trains an encoder, which hyper_cleaning does not"),
        (["export"], "a run that trains an encoder, which hyper_cleaning does not"),
    ],
)
def test_what_needs_an_encoder_refuses_a_run_without_one(arguments, expected, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "recipe=hyper_cleaning", "steps=1", "evaluate=false", f"output={run}"]) == 0
    assert main([*arguments, str(run)]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_run_of_a_recipe_that_is_not_there_is_told(command, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("recipe: gone\n")
    assert main([command, str(tmp_path)]) == 2
    assert "recipe: got 'gone'; expected one of" in capsys.readouterr().err


def test_a_study_refuses_a_recipe_without_masks(capsys):
    assert main(["study", "recipe=hyper_cleaning"]) == 2
    assert "recipe: got 'hyper_cleaning'; expected a recipe with masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("noise=2", "noise: got 2.0; expected a share above 0 and below 1"),
        ("noize=0.1", "noize: got '0.1'; expected a known setting, such as noise"),
        (
            "experiment=cifar10_paper",
            "experiment: got 'cifar10_paper'; expected an experiment of recipe=hyper_cleaning",
        ),
        ("model=tiny", "model: got 'tiny'; expected a known setting"),
        ("levels.classify.solver=none", "levels.classify.solver: got 'none'; expected one of"),
        ("levels.classify.solver.terms=3", "levels.classify.solver.terms: got '3'; expected"),
    ],
)
def test_wrong_settings_of_a_recipe_are_told_in_a_line(setting, expected, capsys):
    assert main(["train", "recipe=hyper_cleaning", setting]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_an_option_of_one_levels_solver_starts_from_the_recipes_solver(tmp_path):
    run = tmp_path / "run"
    option = "levels.classify.solver.radius=0.5"
    assert main(["train", "recipe=hyper_cleaning", option, "steps=1", "evaluate=false", f"output={run}"]) == 0
    solver = json.loads((run / "summary.json").read_text())["solvers"]["classify"]
    assert (solver["name"], solver["radius"]) == ("identity", 0.5)
