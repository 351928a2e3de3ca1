"""Steps a level's optimizer along a hypergradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from multilevel.problems.errors import GraphError, NotFiniteError
from multilevel.problems.problem import Problem, required_arguments
from multilevel.solvers.vectors import scalar_values, total_norm


def set_gradient(problem: Problem, gradient: dict[str, Tensor]) -> float:
    """Set ``gradient`` for the optimizer's step, after the parameters' hooks and then clipping.

    Returns:
        The norm of ``.grad`` after the hooks and before clipping.

    Raises:
        NotFiniteError: the norm is not finite.
        GraphError: a gradient is sparse, or a hook changes a gradient although the level's solver differentiates
            updates.
    """
    assert problem.optimizer is not None
    parameters = problem.variables()
    _clear(problem.optimizer)
    hooked = [key for key, variable in parameters.items() if key in gradient and _has_hooks(variable)]
    for key, value in _writable(problem, gradient).items():
        if key not in hooked:
            parameters[key].grad = value
    if hooked:
        # A hook may step its own optimizer; a hook on the tensor itself may repair values that are not finite.
        unmended = [value for key, value in gradient.items() if not parameters[key]._backward_hooks]
        _check_norm(problem, math.hypot(*scalar_values([value.norm() for value in unmended])))
        leaves = {key: parameters[key] for key in hooked}
        torch.autograd.backward(list(leaves.values()), [gradient[key].clone() for key in hooked])
        _check_followed(problem, leaves, gradient)
    if problem.clip_norm is None:
        length = total_norm([variable.grad for variable in parameters.values() if variable.grad is not None])
    else:
        length = torch.nn.utils.clip_grad_norm_(list(parameters.values()), problem.clip_norm)
    norm = length.item()
    _check_norm(problem, norm)
    return norm


def take_step(problem: Problem, loss: float) -> None:
    """Let the optimizer and the scheduler take their step after an update with mean loss ``loss``."""
    assert problem.optimizer is not None
    problem.optimizer.step()
    _clear(problem.optimizer)
    if problem.scheduler is not None:
        problem.scheduler.step(**dict.fromkeys(required_arguments(problem.scheduler), loss))


def _clear(optimizer: torch.optim.Optimizer) -> None:
    """Equivalent to ``optimizer.zero_grad()``, which torch wraps in twenty calls."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _has_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _check_followed(problem: Problem, leaves: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> None:
    """Raise GraphError if the level's solver would differentiate an update that hooks have changed."""
    if problem.solver is None or not problem.solver.recorded_steps:
        return
    for key, leaf in leaves.items():
        if leaf.grad is None or not torch.equal(leaf.grad, gradient[key]):
            raise GraphError(
                f"level {problem.name!r}: a hook of the parameter {key!r} changes its gradient, which "
                f"{type(problem.solver).__name__} does not follow: remove the hook, or use a solver that does not "
                "differentiate updates"
            )


def _check_norm(problem: Problem, norm: float) -> None:
    if not math.isfinite(norm):
        assert problem.optimizer is not None
        _clear(problem.optimizer)
        raise NotFiniteError(
            f"the hypergradient of level {problem.name!r} has norm {norm}: lower learning rates, clip gradients, "
            "or use another solver"
        )


def _writable(problem: Problem, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that clipping may write to, since autograd shares one gradient in ``a + b`` and expands one number in
    ``a.sum()``."""
    writable: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in gradient.items():
        if value.layout != torch.strided:
            raise GraphError(
                f"level {problem.name!r}: the gradient of the parameter {key!r} is sparse; set sparse=False where its "
                "loss looks up its rows"
            )
        storage = value.untyped_storage()
        shared = storage.data_ptr() in storages or storage.nbytes() < value.numel() * value.element_size()
        storages.add(storage.data_ptr())
        writable[key] = value.clone() if shared else value
    return writable
