"""The search chooses operations that do better than random ones."""

import pytest

from multilevel.configuration import build_recipe, compose_config
from multilevel.recipes.architecture_search import _described
from multilevel.train import new_engine


def test_the_chosen_cell_is_better_than_random_ones():
    small = ["steps=80", "nodes=2", "width=6", "random_cells=3"]
    recipe = build_recipe(compose_config(["recipe=architecture_search", *small]))
    assert all(one == pytest.approx(1 / 6, abs=0.01) for one in recipe.mixture().flatten().tolist())
    new_engine(recipe).run(80)
    found = recipe.findings()
    assert sum(found["mean_weight"].values()) == pytest.approx(1)
    assert found["mean_weight"]["conv"] + found["mean_weight"]["dilated_conv"] > 0.5
    assert found["skip_share"] == sum(line.count("skip") for line in found["cell"].values()) / 3
    scores = found["test_accuracy"]
    assert scores["chosen cell"]["mean"] > scores["random cells"]["mean"] + 0.05


def test_a_cell_is_described_by_nodes():
    cell = {(0, 1): ("skip",), (0, 2): ("conv",), (1, 2): ("max_pool",)}
    assert _described(cell) == {"node 1": "skip(0)", "node 2": "conv(0) + max_pool(1)"}
