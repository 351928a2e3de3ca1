"""The search chooses convolutions, and a cell that learns."""

import pytest
from claims import above, claims, trained, untrained

from multilevel.recipes.architecture_search import _described

SMALL = ("recipe=architecture_search", "steps=80", "nodes=2", "width=6", "random_cells=2")


@claims(weight_of_convolutions=above(0.6), accuracy=above(0.5))
def search(seed):
    return measured(trained(*SMALL, seed=seed).findings())


def measured(findings):
    weights, scores = findings["mean_weight"], findings["test_accuracy"]
    return {
        "weight_of_convolutions": weights["conv"] + weights["dilated_conv"],  # a third at first
        "accuracy": scores["chosen cell"]["mean"],
    }


def test_convolutions_are_chosen():
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
