"""Data parallelism: every rank has a replica of the levels and a share of each batch, and derivatives are averaged.

The ranks are those of torch.distributed's default process group; without one there is a single rank and no
communication. The training loss is the mean of the ranks' losses, so values that depend on a share of the data (losses,
outputs) differ by rank, and others (parameters, cotangents, hypergradients) are the same on all ranks. Every rank must
make the same evaluations in the same order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from multilevel.problems.errors import RankError, ReplicaError
from multilevel.solvers import MultilevelError
from multilevel.solvers.vectors import Tensors

_AVAILABLE = dist.is_available()
Result = TypeVar("Result")
BUCKET = 2**23  # numbers in one message: enough to hide its latency, few compared with a model


class Form(NamedTuple):
    """A tensor's shape, dtype and device."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


def forms(tensors: Iterable[Tensor]) -> list[Form]:
    return [Form(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def count() -> int:
    """The number of ranks."""
    return dist.get_world_size() if _AVAILABLE and dist.GroupMember.WORLD is not None else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


def rank_seed(text: str, first: int) -> int:
    """A rank-specific seed: ``first`` on rank 0, a seed derived from ``text`` on the others."""
    return first if rank() == 0 else zlib.crc32(f"{text}/rank/{rank()}".encode())


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over ranks of each tensor, any shapes and floating-point dtypes; the same bits on every rank."""
    if count() == 1:
        return list(tensors)
    means: list[Tensor] = [torch.empty(0)] * len(tensors)
    for indices in _buckets(tensors):
        flat = torch.cat([tensors[index].detach().reshape(-1) for index in indices])
        with _connected():
            dist.all_reduce(flat)
        flat /= count()
        for index, part in zip(indices, flat.split([tensors[index].numel() for index in indices]), strict=True):
            means[index] = part.view(tensors[index].shape)
    return means


def mean_present(tensors: Sequence[Tensor | None], like: Sequence[Form]) -> list[Tensor | None]:
    """``mean`` of tensors that may be missing: None if a tensor is missing on every rank; if only here, it counts as 0.

    Args:
        tensors: tensors with the forms of ``like``.
        like: shapes and dtypes of missing tensors.
    """
    if count() == 1:
        return list(tensors)
    flags = [tensor is not None for tensor in tensors]
    present, *means = _Averaged.apply(
        torch.tensor(flags, dtype=like[0].dtype, device=like[0].device), *_filled(tensors, like)
    )
    return [mean if used else None for mean, used in zip(means, present.tolist(), strict=True)]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values to every rank, in place."""
    if count() == 1:
        return
    for tensor in tensors:
        with torch.no_grad(), _connected():
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank; values are pickled.

    Raises:
        RankError: another rank failed, see ``on_every_rank``.
    """
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _connected():
        dist.all_gather_object(values, value)
    failed = [number for number, value in enumerate(values) if isinstance(value, _Failure)]
    if failed and len(failed) < len(values):
        raise RankError(f"only on rank {failed[0]}: {values[failed[0]].error}")
    return values


class _Failure(NamedTuple):
    """The message of a failed rank, which every other rank receives in its next ``gather``."""

    error: MultilevelError


def on_every_rank(task: Callable[[], Result]) -> Result:
    """Run a task, which may gather values, on every rank; each gets its own result.

    Raises:
        RankError: on every rank, if some of them failed.
        MultilevelError: on every rank its own, if all failed.
    """
    if count() == 1:
        return task()
    result: Any = None
    failure: _Failure | None = None
    try:
        result = task()
    except RankError:  # every rank has it already
        raise
    except MultilevelError as error:
        failure = _Failure(error)
    gather(failure)
    if failure is not None:
        raise failure.error
    return result


def spread(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results, in order, of independent tasks that are distributed over the ranks.

    Raises:
        MultilevelError: on every rank, the first error that a task raised.
    """
    if count() == 1:
        return [task() for task in tasks]
    results: dict[int, Any] = {}
    error: MultilevelError | None = None
    try:
        for index in range(rank(), len(tasks), count()):
            results[index] = tasks[index]()
    except MultilevelError as raised:
        error = raised
    gathered: dict[int, Any] = {}
    for results_of_rank, problem in gather((results, error)):
        if problem is not None:
            raise problem
        gathered |= results_of_rank
    return [gathered[index] for index in range(len(tasks))]


def averaging(parameters: Tensors) -> dict[str, Tensor]:
    """Prepare parameters, which are equal on all ranks, for a loss on this rank's share of the data.

    Derivatives of that loss in ``parameters``, of any order and in either mode, are then those of the mean loss. In
    reverse mode the ranks' gradients are averaged on arrival at the parameters, all in one message; a cotangent or
    tangent from outside is the same on every rank and stays unchanged.
    """
    if count() == 1 or not parameters:
        return dict(parameters)
    return dict(zip(parameters, _Replicated.apply(*parameters.values()), strict=True))


class _Replicated(torch.autograd.Function):
    """Identity whose incoming gradients are averaged over ranks."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.forms = forms(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch._C._are_functorch_transforms_active():
            return tuple(mean_present(gradients, ctx.forms))
        # torch.func has no missing gradients, and no tensors with readable values
        return tuple(_Averaged.apply(*_filled(gradients, ctx.forms)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(tangent if tangent is None else tangent.view_as(tangent) for tangent in tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Any, Any]:
        return _Replicated.apply(*tensors), in_dims


class _Averaged(torch.autograd.Function):
    """The mean over ranks. Its consumers are the same on every rank, and so are incoming cotangents: each rank keeps
    its own term, and ``_Replicated`` averages the gradients."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(mean(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.forms = forms(inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return cotangents

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(_Averaged.apply(*_filled(tangents, ctx.forms)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Any, Any]:
        return _Averaged.apply(*tensors), in_dims


def _filled(tensors: Sequence[Tensor | None], forms: Sequence[Form]) -> list[Tensor]:
    """Replace missing tensors with 0."""
    return [form.zeros() if tensor is None else tensor for tensor, form in zip(tensors, forms, strict=True)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of tensors to send together: one dtype and device, up to ``BUCKET`` numbers or a single tensor."""
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(index)
    for indices in groups.values():
        bucket: list[int] = []
        size = 0
        for index in indices:
            if bucket and size + tensors[index].numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(index)
            size += tensors[index].numel()
        yield bucket


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            reason = f"{reason}; rank_minutes=N waits longer"
        raise ReplicaError(f"rank {rank()} has lost the other ranks ({reason})") from error
