"""Generates few-shot tasks: regression of sinusoids, and classification."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from multilevel.levels.meta_learning import Tasks


@dataclass(frozen=True, kw_only=True)
class TaskSizes:
    """The number of tasks in a round, and their sizes.

    Args:
        tasks: T.
        shots: support samples, per class if there are classes.
        queries: query samples, in the same way.
    """

    tasks: int
    shots: int
    queries: int


@dataclass(frozen=True)
class Sinusoids:
    """``y = amplitude * sin(x - phase)``, x in [-5, 5] (Finn et al. 2017, section 5.1).

    Amplitudes are between 0.1 and 5, phases between 0 and pi; inputs and targets are float32 [T, samples, 1]. The
    tasks of a round depend only on the key and its number.
    """

    sizes: TaskSizes
    key: str

    def __call__(self, number: int) -> Tasks:
        generator, sizes = _generator(self.key, number), self.sizes
        amplitudes = 0.1 + 4.9 * torch.rand(sizes.tasks, 1, 1, generator=generator)
        phases = math.pi * torch.rand(sizes.tasks, 1, 1, generator=generator)
        inputs = 10 * torch.rand(sizes.tasks, sizes.shots + sizes.queries, 1, generator=generator) - 5
        return _divided(inputs, amplitudes * (inputs - phases).sin(), sizes.shots)


@dataclass(frozen=True)
class ClassTasks:
    """Classification tasks: tell apart a combination of classes, in random order, from ``shots`` samples of each.

    Args:
        sizes: sizes of the tasks, per class.
        key: determines the tasks, together with a round's number.
        inputs: [N, ...].
        labels: int64 [N].
        combinations: int64 [C, ways], the class combinations of tasks; a task numbers its classes from 0.
    """

    sizes: TaskSizes
    key: str
    inputs: Tensor
    labels: Tensor
    combinations: Tensor

    def __call__(self, number: int) -> Tasks:
        generator, sizes, ways = _generator(self.key, number), self.sizes, self.combinations.shape[1]
        rows = torch.stack([self._rows(generator) for _ in range(sizes.tasks)])
        targets = torch.arange(ways).expand(sizes.tasks, sizes.shots + sizes.queries, ways).flatten(1)
        return _divided(self.inputs[rows], targets, sizes.shots * ways)

    def _rows(self, generator: torch.Generator) -> Tensor:
        """The sample rows of one task, alternating between classes: [(shots + queries) * ways]."""
        count = self.sizes.shots + self.sizes.queries
        classes = self.combinations[torch.randint(len(self.combinations), (), generator=generator)]
        order = torch.randperm(len(classes), generator=generator)
        members = [torch.nonzero(self.labels == label).squeeze(1) for label in classes[order]]
        return torch.stack(
            [rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in members], 1
        ).flatten()


def held_out_combinations(classes: int, ways: int, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Split all combinations of ``ways`` classes, int64 [C, ways], into those to learn from and a held-out share."""
    every = torch.combinations(torch.arange(classes), ways)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    count = round(share * len(every))
    return every[order[count:]], every[order[:count]]


def _generator(key: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{key}/{number}".encode()))


def _divided(inputs: Tensor, targets: Tensor, support: int) -> Tasks:
    return Tasks(inputs[:, :support], targets[:, :support], inputs[:, support:], targets[:, support:])
