"""Levels: train a network of mixed operations, and choose the mixture (differentiable architecture search)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from multilevel.levels.classification import Classification
from multilevel.problems.levels import Levels

OPERATIONS = ("none", "skip", "max_pool", "avg_pool", "conv", "dilated_conv")
CONVOLUTIONS = OPERATIONS[-2:]
#: Operations on each edge of a cell, by the nodes (from, to) that the edge joins; several form a mixture.
Cell = dict[tuple[int, int], tuple[str, ...]]


class MixedClassification(Classification):
    """Cross-entropy of a ``CellNetwork`` whose operations are weighted by another level's ``Mixture``.

    Batches are (inputs [B, C, H, W], classes int64 [B]). This level's module is one of the two.

    Args:
        network: name of the level with the network.
        mixture: name of the level with the mixture.
    """

    def __init__(self, *arguments: Any, network: str, mixture: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.network, self.mixture = network, mixture

    def outputs(self, levels: Levels, batch: Any, draws: Any) -> Tensor:
        """The logits [B, classes]."""
        return getattr(levels, self.network)(batch[0], getattr(levels, self.mixture)())


class Mixture(nn.Module):
    """A distribution over operations for each edge [edges, operations], initially nearly uniform."""

    def __init__(self, edges: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(1e-3 * torch.randn(edges, len(OPERATIONS)))

    def forward(self) -> Tensor:
        return self.logits.softmax(1)


class CellNetwork(nn.Module):
    """A classifier of images: a convolution of 1 x 1, a cell, the mean over pixels, a linear layer.

    Node 0 of a cell is its input, and each later node sums over edges from earlier ones; the output concatenates all
    later nodes.

    Args:
        cell: its edges; a mixture of operations needs weights in the call.
        channels: number of the images' channels.
        width: channels of a node.
        classes: number of the images' classes.
    """

    def __init__(self, cell: Cell, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.edges = list(cell)
        self.nodes = max(end for _, end in cell)
        self.stem = nn.Conv2d(channels, width, 1)
        edges = (nn.ModuleList(operation(name, width) for name in names) for names in cell.values())
        self.operations = nn.ModuleList(edges)
        self.head = nn.Linear(self.nodes * width, classes)

    def forward(self, images: Tensor, mixture: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W].

        Args:
            images: the batch.
            mixture: weights of the operations [edges, operations]; None sums the operations of an edge.
        """
        nodes = [self.stem(images)]
        for node in range(1, self.nodes + 1):
            total = torch.zeros_like(nodes[0])
            for edge, (start, end) in enumerate(self.edges):
                if end == node:
                    for index, operate in enumerate(self.operations[edge].children()):
                        result = operate(nodes[start])
                        total = total + (result if mixture is None else mixture[edge, index] * result)
            nodes.append(total)
        return self.head(torch.cat(nodes[1:], 1).mean((2, 3)))


class Zero(nn.Module):
    """Returns 0 for any input [B, C, H, W]: no edge."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs)


def operation(name: str, width: int) -> nn.Module:
    """One of ``OPERATIONS``, [B, width, H, W] to the same shape; all except none and skip end in a normalization
    without parameters, as in DARTS."""
    normalized = nn.BatchNorm2d(width, affine=False)
    match name:
        case "none":
            return Zero()
        case "skip":
            return nn.Identity()
        case "max_pool":
            return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), normalized)
        case "avg_pool":
            return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), normalized)
    dilation = 2 if name == "dilated_conv" else 1
    convolution = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, normalized)


def mixed_cell(nodes: int) -> Cell:
    """A cell with every operation on every edge between its input and ``nodes`` nodes."""
    return dict.fromkeys(combinations(range(nodes + 1), 2), OPERATIONS)


def chosen_cell(mixture: Tensor, cell: Cell, inputs: int = 2) -> Cell:
    """The strongest operation of each edge, and the ``inputs`` strongest edges into each node (Liu et al. 2019, section
    2.4); both ignore ``none``.

    Args:
        mixture: weights [edges, operations].
        cell: the edges.
        inputs: edges that a node keeps.
    """
    strengths, best = mixture[:, 1:].max(1)
    ranked = sorted(range(len(cell)), key=lambda edge: -strengths[edge].item())
    edges = list(cell)
    by_node = [[edge for edge in ranked if edges[edge][1] == node] for node in {end for _, end in cell}]
    chosen = sorted(edge for strongest in by_node for edge in strongest[:inputs])
    return {edges[edge]: (OPERATIONS[1 + int(best[edge])],) for edge in chosen}


def random_cell(nodes: int, generator: torch.Generator, operations: Sequence[str] = OPERATIONS[1:]) -> Cell:
    """A cell with as many edges as a chosen one, with edges and operations drawn uniformly at random."""
    cell = mixed_cell(nodes)
    edges = chosen_cell(torch.rand(len(cell), len(OPERATIONS), generator=generator), cell)
    drawn = torch.randint(len(operations), (len(edges),), generator=generator).tolist()
    return {edge: (operations[index],) for edge, index in zip(edges, drawn, strict=True)}
