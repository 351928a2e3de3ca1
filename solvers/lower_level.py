"""The solver's view of a lower level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel.solvers.stages import Key, Keyed, Stage, keyed_by_kind, keyed_nested, tensors_of_kind
from multilevel.solvers.update_rules import State, UpdateRule
from multilevel.solvers.vectors import Tensors

Loss = Callable[[Tensors, Mapping[str, Tensors]], Tensor]


@dataclass(frozen=True)
class Prediction:
    """A loss on one part of a batch, split in two for Gauss-Newton products.

    Attributes:
        outputs: maps (parameters, parameters of each level read) to the level's outputs, tensors of any shape.
        criterion: maps (outputs, parameters of each level read) to the loss; convex in the outputs.

    Examples:
        Half the squared distance of p to the target r, in two parts:

        >>> parts = Prediction(
        ...     lambda parameters, reads: [parameters["p"]],
        ...     lambda outputs, reads: (outputs[0] - reads["upper"]["r"]).square().sum() / 2,
        ... )
        >>> point, reads = {"p": torch.ones(2)}, {"upper": {"r": torch.zeros(2)}}
        >>> parts.criterion(parts.outputs(point, reads), reads)
        tensor(1.)
    """

    outputs: Callable[[Tensors, Mapping[str, Tensors]], Sequence[Tensor]]
    criterion: Callable[[Sequence[Tensor], Mapping[str, Tensors]], Tensor]


@dataclass(frozen=True)
class Step:
    """One recorded update of a lower level, with everything that it depends on.

    Attributes:
        losses: the loss on each part of the update's batch.
        parameters: before the update, detached.
        reads: parameters of every level read, at that time.
        rule: the optimizer's update rule, with its state before the update.
        ascends: whether the optimizer maximizes. ``losses`` are then negated, and hooks saw their negated gradient.
        before: the changes by hooks to parameters, gradient and state before the optimizer's update; None: no change.
        after: the changes by hooks and callbacks to parameters and state after the update.
        position: its place in the order of the updates of all levels.
        restarted: keys of the parameters and state that the level reset before the update, so that they do not depend
            on earlier updates.
    """

    losses: Sequence[Loss]
    parameters: Tensors
    reads: Mapping[str, Tensors]
    rule: UpdateRule
    ascends: bool = False
    before: Stage | None = None
    after: Sequence[Stage] = ()
    position: int = 0
    restarted: frozenset[Key] = frozenset()

    def stages(self, gradient: Tensors) -> list[Stage]:
        """The update's stages in order; their inputs are ``parameters``, the ``gradient`` of the losses, and the
        state."""
        sign = -1 if self.ascends else 1

        def arrive(values: Keyed) -> Keyed:
            gradients = {name: sign * slope for name, slope in tensors_of_kind("gradient", values).items()}
            return keyed_by_kind("gradient", self.rule.clipped(gradients))

        def update(values: Keyed) -> Keyed:
            gradients = {name: sign * slope for name, slope in tensors_of_kind("gradient", values).items()}
            state: State = {name: {} for name in self.parameters}
            for key, tensor in values.items():
                if key[0] == "state":
                    state[key[1]][key[2]] = tensor
            updated, updated_state = self.rule.update(tensors_of_kind("parameters", values), gradients, state)
            return keyed_by_kind("parameters", updated) | keyed_nested("state", updated_state)

        arrival = Stage.of(arrive, keyed_by_kind("gradient", gradient))
        point = arrival.values(keyed_by_kind("parameters", self.parameters))
        if self.before is not None:
            point = self.before.values(point)
        state = keyed_nested("state", self.rule.state)
        point = {key: tensor for key, tensor in point.items() if key[0] != "state"} | state
        return [arrival, *([] if self.before is None else [self.before]), Stage.of(update, point), *self.after]


@dataclass
class ProductChoice:
    """The products that a level's loss allows, kept to spare later solves the search.

    Attributes:
        name: forward, reverse or finite_difference.
        reason: why earlier forms were rejected.
        detaches: whether the loss is known to detach values, which finite differences then hold constant.
    """

    name: str = "forward"
    reason: str = "every operator of the loss has a forward derivative"
    detaches: bool = False

    def __str__(self) -> str:
        return f"product={self.name}: {self.reason}"


@dataclass(frozen=True)
class LowerLevel:
    """The solver's view of a lower level: a function of its parameters and of the parameters of the levels it reads.

    Attributes:
        losses: the level's loss on each part of its last batch; their mean is the objective. Each is called
            with (parameters, parameters of each level read), replays its random draws, and returns a scalar.
        parameters: the trained parameters at the current point, detached.
        reads: the trained parameters, detached, of every level that the loss reads and is differentiated with respect
            to.
        arithmetic: dtype of the loss's computation (bfloat16 under such an autocast), for finite differences.
        predictions: the same losses, split in two; None if the level does not declare this.
        rule: the optimizer's next update; None if the level has no differentiable optimizer.
        steps: the level's last updates, oldest first; as many as the solver requested, or fewer.
        start: the solution of the last solve, if the solver uses it; None at the first.
        choice: the choice of ``product=auto``, kept between solves.
        gradient: the gradient of the level's last update, for solvers that count updates; None if it is not known, or
            was clipped.
        name: the level's name, for messages.

    Examples:
        The loss p' H p / 2 - r' p with H = diag(1, 2, 4). Its minimum is H^-1 r, so a cotangent a contributes H^-1 a to
        r. The solvers' examples use this level.

        >>> hessian = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        >>> def loss(parameters, reads):
        ...     return parameters["p"] @ hessian @ parameters["p"] / 2 - reads["upper"]["r"] @ parameters["p"]
        >>> lower = LowerLevel([loss], {"p": torch.zeros(3)}, {"upper": {"r": torch.zeros(3)}})
        >>> cotangent = {"p": torch.ones(3)}
        >>> loss(cotangent, lower.reads)
        tensor(3.5000)
    """

    losses: Sequence[Loss]
    parameters: Tensors
    reads: Mapping[str, Tensors]
    arithmetic: torch.dtype = torch.float32
    predictions: Sequence[Prediction] | None = None
    rule: UpdateRule | None = None
    steps: Sequence[Step] = ()
    start: Tensors | None = None
    choice: ProductChoice = field(default_factory=ProductChoice)
    name: str = ""
    gradient: Tensors | None = None
