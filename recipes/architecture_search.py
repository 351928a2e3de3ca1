"""Recipe: choose the operations of a convolutional cell by gradient descent (DARTS).

Follows: Liu et al. 2019, "DARTS: Differentiable Architecture Search": CIFAR-10, test error 2.76% (second order) and
3.00% (first). ``solver=unrolled`` through one update is its second order, but with exact products instead of finite
differences and with an Adam update instead of SGD. The cell has three nodes and one input, sees images of 8 x 8, and is
not stacked.

Result: ``multilevel train recipe=architecture_search`` (digits, seed 0) chooses five convolutions, four dilated: test
accuracy 96.8% (mean of three trainings), against 72.1% for random cells (mean of six) but 96.5% for random cells of
only convolutions: it learns to choose convolutions, but no better arrangement of them. It chooses no skip connection,
so it does not collapse to them (Zela et al. 2020, Chu et al. 2020) within these 250 steps. With ``steps=1000
evaluate=false`` one edge of five is a skip connection, and their mean weight rises from 0.076 to 0.116.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch

from multilevel.levels.architecture_search import (
    CONVOLUTIONS,
    OPERATIONS,
    Cell,
    CellNetwork,
    MixedClassification,
    Mixture,
    chosen_cell,
    mixed_cell,
    random_cell,
)
from multilevel.levels.classification import Classification, accuracy
from multilevel.problems import Engine, Graph
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.base import Recipe
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.tensors import batches, tensors
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings
from multilevel.solvers.ranges import AtLeast, Count

REPEATS = 3  # trainings of the chosen cell, from different weights


@dataclass(kw_only=True)
class ArchitectureSearchLevels:
    """The two levels."""

    weights: LowerLevelSettings
    architecture: LevelSettings


@dataclass(kw_only=True)
class ArchitectureSearchSettings(RunSettings):
    """Settings of ``recipe=architecture_search``.

    Args:
        nodes: nodes of the cell after its input; each keeps two edges.
        width: channels of a node.
        random_cells: number of random cells of each kind to compare with.
    """

    data: DataSettings
    nodes: Count
    width: Count
    random_cells: Annotated[int, AtLeast(2)]
    levels: ArchitectureSearchLevels


class ArchitectureSearch(Recipe):
    """The level ``weights`` trains a network in which every edge of a cell is a mixture of operations; the level
    ``architecture`` updates the mixtures to lower the loss on held-out images."""

    settings_class: ClassVar[type[RunSettings]] = ArchitectureSearchSettings
    held_out_from = MappingProxyType({"architecture": "weights"})
    settings: ArchitectureSearchSettings

    def __init__(self, settings: ArchitectureSearchSettings) -> None:
        super().__init__(settings)
        data, size = load_data(settings.data), settings.data.batch_size
        self.image_data = data
        self.classes = len(data.class_names)
        self.training, self.held_out, self.test = (
            tensors(data, part) for part in (data.finetune, data.mask, data.test)
        )
        self.cell = mixed_cell(settings.nodes)
        network = self._new_network(self.cell, settings.seed)
        with RandomState.seeded(settings.seed).active():
            self.mixture = Mixture(len(self.cell)).to(self.device)
        common = {"network": "weights", "mixture": "architecture"}
        lower, upper = self.update_arguments("weights", network), self.update_arguments("architecture", self.mixture)
        self.graph = Graph(
            MixedClassification("weights", network, data=batches(*self.training, size=size), **common, **lower),
            MixedClassification(
                "architecture", self.mixture, data=batches(*self.held_out, size=size), **common, **upper
            ),
        )

    def findings(self) -> dict[str, Any]:
        """The chosen cell, the weight of each operation in the mixture, the share of chosen edges that are skip
        connections (1 in 5 for random edges), and the test accuracy of the cell trained from new weights, next to
        random cells with as many edges, of all operations and of only convolutions."""
        mixture = self.mixture().detach().cpu()
        cell = chosen_cell(mixture, self.cell)
        findings: dict[str, Any] = {"cell": _described(cell)}
        counts = Counter(operation for (operation,) in cell.values())
        findings["mean_weight"] = dict(zip(OPERATIONS, mixture.mean(0).tolist(), strict=True))
        findings["skip_share"] = counts["skip"] / len(cell)
        if self.settings.evaluate:
            findings["test_accuracy"] = self._compared(cell)
        return findings

    def _compared(self, cell: Cell) -> dict[str, dict[str, float]]:
        """Test accuracy of a cell trained from several initial weights, and of random cells trained once each."""
        generator, settings = torch.Generator().manual_seed(self.settings.seed), self.settings
        scores = {"chosen cell": [self._test_accuracy(cell, seed) for seed in range(REPEATS)]}
        for name, operations in (("random cells", OPERATIONS[1:]), ("random convolutions", CONVOLUTIONS)):
            cells = [random_cell(settings.nodes, generator, operations) for _ in range(settings.random_cells)]
            scores[name] = [self._test_accuracy(drawn, seed) for seed, drawn in enumerate(cells)]
        return {
            name: {"mean": fmean(values), "deviation": stdev(values), "least": min(values), "most": max(values)}
            for name, values in scores.items()
        }

    def _test_accuracy(self, cell: Cell, seed: int) -> float:
        """The test accuracy of a cell trained on all training images, for as many updates as the recipe's."""
        settings, network = self.settings, self._new_network(cell, seed)
        inputs, labels = (torch.cat(parts) for parts in zip(self.training, self.held_out, strict=True))
        data = batches(inputs, labels, size=settings.data.batch_size)
        problem = Classification("weights", network, data=data, **self.update_arguments("weights", network))
        Engine(Graph(problem), seed=seed).run(settings.steps * settings.levels.weights.steps)
        return accuracy(network.eval(), *self.test)

    def _new_network(self, cell: Cell, seed: int) -> CellNetwork:
        with RandomState.seeded(seed).active():
            return CellNetwork(cell, self.training[0].shape[1], self.settings.width, self.classes).to(self.device)


def _described(cell: Cell) -> dict[str, str]:
    """Describe, node by node, the operations on its edges and where the edges start."""
    nodes = sorted({end for _, end in cell})
    return {
        f"node {node}": " + ".join(f"{name}({start})" for (start, end), (name,) in cell.items() if end == node)
        for node in nodes
    }
