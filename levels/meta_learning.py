"""Levels: adapt shared parameters to several tasks, and learn the parameters to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from multilevel.problems import Problem
from multilevel.problems.levels import Levels


class Tasks(NamedTuple):
    """T tasks of equal size: samples to adapt to (``support``, S) and samples to evaluate on (``query``, Q).

    Inputs are float [T, S, ...] and [T, Q, ...]; targets are float with the predictions' shapes, or classes int64 [T,
    S] and [T, Q].
    """

    support_inputs: Tensor
    support_targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor


#: Predictions [N, ...] and targets [N, ...] to their mean error.
Error = Callable[[Tensor, Tensor], Tensor]


class SharedNetwork(nn.Module):
    """A network whose parameters every task starts from."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, offsets: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Each task's predictions [T, N, ...] for its inputs [T, N, ...], with the task's offsets, [T, ...] for each
        parameter [...], added to the network's parameters."""
        shared = dict(self.network.named_parameters())

        def predictions(offsets: Sequence[Tensor], task_inputs: Tensor) -> Tensor:
            moved = {name: value + offset for (name, value), offset in zip(shared.items(), offsets, strict=True)}
            return functional_call(self.network, moved, (task_inputs,))

        return vmap(predictions)(tuple(offsets), inputs)

    def no_offsets(self, tasks: int) -> tuple[Tensor, ...]:
        """Offsets of 0."""
        return tuple(parameter.new_zeros(tasks, *parameter.shape) for parameter in self.network.parameters())


class TaskOffsets(nn.Module):
    """The offsets of T tasks for every parameter of a network, initially 0, and the number of rounds so far."""

    round: Tensor

    def __init__(self, offsets: Sequence[Tensor]) -> None:
        super().__init__()
        self.offsets = nn.ParameterList(offsets)
        self.register_buffer("round", torch.tensor(0))

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(self.offsets)


class Adaptation(Problem):
    """Each task's error on its support set plus a proximal penalty, summed over the tasks.

    Every round has new tasks, which start at the shared parameters. The penalty is that of iMAML (Rajeswaran et al.
    2019, equation 4); without it, gradient descent of this level is the inner loop of MAML (Finn et al. 2017).

    Args:
        tasks: maps the number of a round to its tasks.
        error: the error of predictions.
        proximal: weight of half the squared distance from the shared parameters.
        shared: name of the level with a ``SharedNetwork``; this level's module is ``TaskOffsets``.
    """

    def __init__(
        self,
        *arguments: Any,
        tasks: Callable[[int], Tasks],
        error: Error,
        proximal: float,
        shared: str,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.tasks, self.error, self.proximal, self.shared = tasks, error, proximal, shared

    def begin(self) -> None:
        with torch.no_grad():
            for value in self.module.parameters():
                value.zero_()
            self.module.get_buffer("round").add_(1)
        if self.optimizer is not None:
            self.optimizer.state.clear()

    def draw(self, levels: Levels, batch: Any) -> Tasks:
        return self.tasks(int(getattr(levels, self.name).round))

    def outputs(self, levels: Levels, batch: Any, draws: Tasks) -> list[Tensor]:
        """The predictions, and the offsets."""
        offsets = getattr(levels, self.name)()
        return [getattr(levels, self.shared)(offsets, draws.support_inputs), *offsets]

    def criterion(self, outputs: Sequence[Tensor], levels: Levels, batch: Any, draws: Tasks) -> Tensor:
        return support_loss(outputs[0], outputs[1:], draws, self.error, self.proximal)


class MetaLearning(Problem):
    """Mean error of adapted tasks on their query sets.

    Args:
        tasks: the same as for the level below, by its round.
        error: the error of predictions.
        adaptation: name of the level with ``TaskOffsets``; this level's module is a ``SharedNetwork``.
    """

    def __init__(
        self, *arguments: Any, tasks: Callable[[int], Tasks], error: Error, adaptation: str, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.tasks, self.error, self.adaptation = tasks, error, adaptation

    def draw(self, levels: Levels, batch: Any) -> Tasks:
        return self.tasks(int(getattr(levels, self.adaptation).round))

    def loss(self, levels: Levels, batch: Any, draws: Tasks) -> Tensor:
        predictions = getattr(levels, self.name)(getattr(levels, self.adaptation)(), draws.query_inputs)
        return mean_error(predictions, draws.query_targets, self.error)


class PooledLearning(Problem):
    """Mean error of one network on all samples of all tasks without adaptation, as a baseline. A batch is a round."""

    def __init__(self, *arguments: Any, tasks: Callable[[int], Tasks], error: Error, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.tasks, self.error = tasks, error

    def draw(self, levels: Levels, batch: int) -> Tasks:
        return self.tasks(batch)

    def loss(self, levels: Levels, batch: int, draws: Tasks) -> Tensor:
        inputs = torch.cat([draws.support_inputs, draws.query_inputs], 1)
        targets = torch.cat([draws.support_targets, draws.query_targets], 1)
        return self.error(getattr(levels, self.name).network(inputs.flatten(0, 1)), targets.flatten(0, 1))


def mean_error(predictions: Tensor, targets: Tensor, error: Error) -> Tensor:
    """Mean error over tasks and samples of predictions [T, N, ...] against targets [T, N, ...]."""
    return error(predictions.flatten(0, 1), targets.flatten(0, 1))


def support_loss(predictions: Tensor, offsets: Sequence[Tensor], tasks: Tasks, error: Error, proximal: float) -> Tensor:
    """The loss that ``Adaptation`` minimizes."""
    distance = sum((offset.square().sum() for offset in offsets), start=predictions.new_zeros(()))
    fit = mean_error(predictions, tasks.support_targets, error)
    return len(predictions) * fit + proximal / 2 * distance


def adapt(
    offsets: TaskOffsets,
    optimizer: torch.optim.Optimizer,
    network: SharedNetwork,
    tasks: Tasks,
    steps: int,
    error: Error,
    proximal: float,
) -> None:
    """Adapt to tasks outside the graph with ``steps`` updates of their offsets, as ``Adaptation`` does."""
    for _ in range(steps):
        loss = support_loss(network(offsets(), tasks.support_inputs), offsets(), tasks, error, proximal)
        slopes = torch.autograd.grad(loss, list(offsets.parameters()))
        for parameter, slope in zip(offsets.parameters(), slopes, strict=True):
            parameter.grad = slope
        optimizer.step()
