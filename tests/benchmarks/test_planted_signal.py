"""The arms of the planted signals that are told where the signal is."""

from types import SimpleNamespace

import planted_signal
import pytest
import torch
from scipy.stats import hypergeom

from multilevel.recipes.data.planted import signal_patches

HIDDEN_PATCHES = 12


@pytest.mark.parametrize("hidden", [0, 3, 4])
def test_so_many_of_the_patches_that_show_the_class_are_hidden(hidden):
    torch.manual_seed(0)
    view = SimpleNamespace(images=torch.zeros(400, 1), patches=16, side=4)
    masks = []
    for share in (1.0, 0.5):
        scores = planted_signal.Told(hidden, share).scores(view)
        masks.append(torch.zeros_like(scores).scatter_(1, scores.topk(HIDDEN_PATCHES).indices, 1))
    counts = [mask[:, signal_patches(4)].sum(1) for mask in masks]
    assert counts[0].eq(hidden).all()
    by_chance = hypergeom(view.patches, 4, HIDDEN_PATCHES).pmf(hidden)
    assert counts[1].eq(hidden).double().mean() == pytest.approx(0.5 + 0.5 * by_chance, abs=0.075)  # 3 deviations
    assert masks[0][:, signal_patches(4)].mean(0).std() < 0.05  # any of them


def test_accuracies_stand_beside_those_of_random_masks():
    rows = [
        {"arm": arm, "seed": seed, "signal_auc": 0.5, "signal_gap": 0.0, "accuracy": {"knn": value}, "cpu_seconds": 1.0}
        for arm, values in (("random", (0.5, 0.7)), ("block", (0.6, 0.8)))
        for seed, value in enumerate(values)
    ]
    *_, random, block = planted_signal.table(rows).splitlines()
    assert "| 60.0 (50.0 to 70.0) |" in random
    assert "| 70.0 (60.0 to 80.0); +10.0" in block
