"""The search chooses operations that do better than random ones."""

import pytest
from claims import above, claims, trained, untrained

from multilevel.recipes.architecture_search import _described

SMALL = ("recipe=architecture_search", "steps=80", "nodes=2", "width=6", "random_cells=3")


@claims(weight_of_convolutions=above(0.5), accuracy=above(0.8), gain_over_random_cells=above(0))
def search(seed):
    return measured(trained(*SMALL, seed=seed).findings())


def measured(findings):
    weights, scores = findings["mean_weight"], findings["test_accuracy"]
    return {
        "weight_of_convolutions": weights["conv"] + weights["dilated_conv"],
        "accuracy": scores["chosen cell"]["mean"],
        "gain_over_random_cells": scores["chosen cell"]["mean"] - scores["random cells"]["mean"],
    }


def test_the_chosen_cell_is_better_than_random_ones():
    findings = trained(*SMALL, seed=0).findings()
    search.hold(measured(findings))
    assert sum(findings["mean_weight"].values()) == pytest.approx(1)
    assert findings["skip_share"] == sum(line.count("skip") for line in findings["cell"].values()) / 3


def test_at_first_all_operations_weigh_alike():
    weights = untrained(*SMALL, seed=0).mixture().flatten()
    assert weights.tolist() == pytest.approx([1 / 6] * len(weights), abs=0.01)


def test_a_cell_is_described_by_nodes():
    cell = {(0, 1): ("skip",), (0, 2): ("conv",), (1, 2): ("max_pool",)}
    assert _described(cell) == {"node 1": "skip(0)", "node 2": "conv(0) + max_pool(1)"}
