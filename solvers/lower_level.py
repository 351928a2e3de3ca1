"""A lower level as its solver sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multilevel.solvers.stages import Keyed, Stage, keyed_by_kind, keyed_nested, tensors_of_kind
from multilevel.solvers.update_rules import State, UpdateRule
from multilevel.solvers.vectors import Tensors

Loss = Callable[[Tensors, Mapping[str, Tensors]], Tensor]


@dataclass(frozen=True)
class Prediction:
    """A loss in two parts, for Gauss-Newton products: on one part of a batch.

    Attributes:
        outputs: (parameters, parameters of each level read) to what the level computes, tensors of any shape.
        criterion: (outputs, parameters of each level read) to the loss; convex in the outputs.

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
    """One recorded update of a lower level: all that it started from.

    Attributes:
        losses: the loss on each part of the update's batch.
        parameters: before the update, detached.
        reads: parameters of every level read at that time.
        rule: the optimizer's update, with its state before it.
        ascends: the optimizer maximizes, and ``losses`` are negated: hooks saw minus their gradient.
        before: what hooks did to parameters, gradient and state before the optimizer's update; None: nothing.
        after: what hooks and callbacks did to parameters and state after it.
    """

    losses: Sequence[Loss]
    parameters: Tensors
    reads: Mapping[str, Tensors]
    rule: UpdateRule
    ascends: bool = False
    before: Stage | None = None
    after: Sequence[Stage] = ()

    def stages(self, gradient: Tensors) -> list[Stage]:
        """The update's stages in order; they take ``parameters``, the ``gradient`` of the losses, and the state."""
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
    """The products that a level's loss allows, as solves have found out; kept, it saves later solves the search.

    Attributes:
        name: forward, reverse or finite_difference.
        reason: why not the ones before it.
        detaches: whether the loss is known to detach something, which finite differences hold.
    """

    name: str = "forward"
    reason: str = "every operator of the loss has a forward derivative"
    detaches: bool = False

    def __str__(self) -> str:
        return f"product={self.name}: {self.reason}"


@dataclass(frozen=True)
class LowerLevel:
    """A lower level as its solver sees it: a function of its parameters and of those of the levels it reads.

    Attributes:
        losses: the level's loss on each part of its last batch; their mean is the objective. Each is called
            with (parameters, parameters of each level read), replays its random draws, and returns a scalar.
        parameters: the trained parameters at the current point, detached.
        reads: for every level read that is being differentiated, its trained parameters, detached.
        arithmetic: dtype in which the loss computes (bfloat16 under such an autocast), for finite differences.
        predictions: the same losses in two parts each; None where the level does not say.
        rule: the optimizer's next update; None where the level has no optimizer that can be differentiated.
        steps: the level's last updates, oldest first; as many as the solver asked to have recorded, or fewer.
        start: the solution of the last solve, where the solver asks for it; None at the first.
        choice: which products ``product=auto`` takes, kept from solve to solve.
        name: the level's, to tell it by.

    Examples:
        The loss p' H p / 2 - r' p with H = diag(1, 2, 4). Its minimum is H^-1 r, so a cotangent a contributes H^-1 a to
        r. The examples of the solvers use this level.

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
