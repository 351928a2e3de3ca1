"""The interface of products of second derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from multilevel.solvers.autograd_graph import nodes
from multilevel.solvers.differentiation import higher_derivatives
from multilevel.solvers.errors import MultilevelError, ProductError, SolveError, is_out_of_memory
from multilevel.solvers.gradients import detached_leaves, filled, gradients, mean_over_parts, pulled
from multilevel.solvers.lower_level import LowerLevel, Prediction
from multilevel.solvers.vectors import Tensors

Reads = dict[str, dict[str, Tensor]]


class Products(ABC):
    """Products of second derivatives of one lower level at one point, and their cost so far.

    Attributes:
        evaluations: evaluations of the loss over the whole batch.
        products: Hessian-vector, Gauss-Newton-vector and mixed products formed.
    """

    #: The mode of differentiation, the derivative that an operator may lack, and the remedy.
    mode: str
    lacks: str
    remedy: str

    def __init__(self, lower: LowerLevel, radius: float | None = None) -> None:
        self.lower = lower
        self.radius = radius
        self.evaluations = 0
        self.products = 0

    @property
    def chosen(self) -> str:
        """The chosen form and the reason; empty without a choice."""
        return ""

    @abstractmethod
    def hessian(self, direction: Tensors, read_direction: Mapping[str, Tensors] | None = None) -> dict[str, Tensor]:
        """The derivative of dg/dp along ``direction`` in p, the Hessian times ``direction``, with the same names and
        shapes.

        With ``read_direction``, ``{level: {parameter: tensor}}``, also along this direction in the levels read.
        """

    @abstractmethod
    def mixed(self, direction: Tensors) -> Reads:
        """d/dr <dg/dp, v> for every level r read, where v is ``direction``: ``{level: {parameter: tensor}}``."""

    def gradient(self) -> dict[str, Tensor]:
        """dg/dp, same names and shapes as the parameters; 0 for parameters that g does not depend on."""
        leaves = detached_leaves(self.lower.parameters)
        self.evaluations += 1
        return mean_over_parts(
            lambda loss: gradients(loss(leaves, self.lower.reads), leaves), self.lower.losses, leaves
        )

    def gauss_newton(self, direction: Tensors) -> dict[str, Tensor]:
        """The generalized Gauss-Newton matrix times ``direction``: ``J^T C J v``, same names and shapes.

        J is the Jacobian of the level's outputs, C the Hessian of its criterion in them (Schraudolph 2002).

        Raises:
            SolveError: the level does not declare outputs.
        """
        if self.lower.predictions is None:
            raise SolveError(
                "curvature=gauss_newton needs a level that defines outputs and criterion; curvature=hessian works "
                "with any level"
            )
        leaves = detached_leaves(self.lower.parameters)
        with self.explained():
            product = mean_over_parts(
                lambda part: self._gauss_newton_part(part, leaves, direction), self.lower.predictions, leaves
            )
        self.evaluations += 1
        self.products += 1
        return product

    def _gauss_newton_part(
        self, prediction: Prediction, leaves: dict[str, Tensor], direction: Tensors
    ) -> dict[str, Tensor | None]:
        tangents = self.output_tangents(prediction, direction)
        outputs = prediction.outputs(leaves, self.lower.reads)
        points = {index: output.detach().requires_grad_() for index, output in enumerate(outputs)}
        inputs = list(points.values())
        value = prediction.criterion(inputs, self.lower.reads)
        slopes = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        if not any(slope.requires_grad for slope in slopes):  # a criterion linear in the outputs has no curvature
            return {}
        bent = filled(pulled(dict(enumerate(slopes)), dict(enumerate(tangents)), points), points)
        return pulled(dict(enumerate(outputs)), bent, leaves)

    @abstractmethod
    def output_tangents(self, prediction: Prediction, direction: Tensors) -> list[Tensor]:
        """``J v``: the derivative of a part's outputs along ``direction``."""

    @contextmanager
    def explained(self, fused: bool = False) -> Iterator[None]:
        """Within the block, errors name an operator that lacks a derivative.

        Everything beyond a gradient must be formed in this block, see ``higher_derivatives``. Errors from merely
        evaluating the loss, and out-of-memory errors, pass unchanged.

        Raises:
            ProductError: an operator lacks the derivative, or torch cannot form it.
        """
        try:
            with higher_derivatives(fused):
                yield
        except MultilevelError:
            raise
        except Exception as error:  # torch.func raises errors of any type
            if is_out_of_memory(error):
                raise
            operator = lacking_operator(error)
            if operator is not None:
                named = self._custom_function() if operator == CUSTOM_FUNCTION else operator
                raise ProductError(f"{named} has no {self.lacks}: {self.remedy}") from error
            if self.lower.arithmetic == torch.bfloat16 and any(text in str(error) for text in _MIXED):
                raise ProductError(
                    f"under precision=bf16 an operator's {self.lacks} mixes dtypes: {self.remedy}; "
                    "every product works with precision=float32"
                ) from error
            if self._loss_fails():
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
            raise ProductError(f"{self.mode} cannot follow the loss ({reason}): {self.remedy}") from error

    def _loss_fails(self) -> bool:
        """Whether merely evaluating the loss raises an error."""
        try:
            for loss in self.lower.losses:
                loss(self.lower.parameters, self.lower.reads)
        except Exception:
            return True
        return False

    def _custom_function(self) -> str:
        """Name the autograd.Function of the loss that lacks a derivative, since torch does not."""
        parameters = detached_leaves(self.lower.parameters)
        reads = {level: detached_leaves(tensors) for level, tensors in self.lower.reads.items()}
        for loss in self.lower.losses:
            for node in nodes(loss(parameters, reads)):
                function = getattr(type(node), "_forward_cls", None)
                if function is not None and function.jvp is torch.autograd.Function.jvp:
                    return f"the autograd.Function {function.__name__}"
        return CUSTOM_FUNCTION


CUSTOM_FUNCTION = "a custom autograd.Function"
LONGEST_REASON = 160


def lacking_operator(error: Exception) -> str | None:
    """The operator without a derivative, parsed from torch's error; None for other errors."""
    text = str(error)
    for start, end in _MESSAGES:
        _, separator, tail = text.partition(start)
        if separator:
            return "operator " + tail.partition(end)[0].removeprefix("aten::")
    if "must override the setup_context staticmethod" in text or "jvp is not implemented" in text.lower():
        return CUSTOM_FUNCTION
    if "implement the jvp" in text or "marked with @once_differentiable" in text:
        return CUSTOM_FUNCTION
    return None


_MESSAGES = (
    ("Trying to use forward AD with ", " that does not support it"),
    ("derivative for '", "' is not implemented"),
    ("derivative for ", " is not implemented"),
)


#: torch's messages for dtypes that an operator cannot combine.
_MIXED = ("expected scalar type", "to have the same dtype", "should be the same")
