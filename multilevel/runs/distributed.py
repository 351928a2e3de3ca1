"""Runs on several ranks, as torchrun starts them: one process per rank, each with a replica of the levels."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed as dist

from multilevel.problems import replicas
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import on_screen

Result = TypeVar("Result")
COMPARED = ("multilevel", "torch", "numpy")  # packages whose versions all ranks share


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_here() -> bool:
    """Whether this process is the only one, or the first on its machine, which reports errors that occur on every
    rank."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def restarts() -> int:
    """How often torchrun may restart the ranks after losing one."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def restart() -> int:
    """The number of this restart, from 1; 0 at the first start."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def on_first_rank(task: Callable[[], Result]) -> Result:
    """Run on rank 0 only; every rank gets the result, or the error."""
    return replicas.spread([task])[0]


def print_once(*lines: str, file: TextIO | None = None) -> None:
    """Print lines on rank 0 only; to standard error by default."""
    if replicas.rank() == 0 and lines:
        print("\n".join(lines), file=file or sys.stderr, flush=True)


def check_same(values: Mapping[str, Any]) -> None:
    """Refuse ranks that differ in a value, such as a setting or a version.

    Raises:
        MultilevelError: on every rank, the first difference.
    """
    for rank, others in enumerate(replicas.gather(dict(values))):
        for name in dict.fromkeys([*values, *others]):
            if values.get(name) != others.get(name):
                here = f"{on_screen(str(values.get(name)))[:100]} on rank {replicas.rank()}"
                there = f"{on_screen(str(others.get(name)))[:100]} on rank {rank}"
                raise MultilevelError(f"the ranks differ: {name} is {here} and {there}")


@contextmanager
def process_group(minutes: int = 60) -> Iterator[None]:
    """Within the block, the processes that torchrun has started form a process group; a single process runs unchanged.

    On GPUs each process sees only the GPU with its local rank.

    Args:
        minutes: how long a rank waits for another, which may be evaluating; a lost rank is noticed at once.

    Raises:
        SettingError: some ranks have a GPU and others do not.
        MultilevelError: the ranks cannot connect, or differ in versions.
    """
    if not launched():
        yield
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(os.environ)
    _connect(timedelta(minutes=minutes))
    try:
        check_same({name: version(name) for name in COMPARED} | {"Python": platform.python_version()})
        if replicas.rank() > 0:  # one bar is enough
            sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
        gpus = replicas.gather(torch.cuda.is_available())
        if len(set(gpus)) > 1:
            expected = f"at most the {sum(gpus)} GPUs, or CUDA_VISIBLE_DEVICES= for the CPU"
            raise SettingError("--nproc-per-node", len(gpus), expected)
        yield
    finally:
        dist.destroy_process_group()


def _connect(longest: timedelta) -> None:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=longest))
        # the store outlives a restart and still holds the addresses of lost ranks
        store = dist.PrefixStore(f"start-{restart()}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=longest)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        remedy = "check that the port is free (torchrun --master-port) and that every rank was started"
        raise MultilevelError(f"the ranks cannot connect at {place} ({reason}): {remedy}") from error


def own_gpu(environment: Mapping[str, str]) -> str:
    """The value of CUDA_VISIBLE_DEVICES for this process: one GPU, or none if there are fewer GPUs than ranks."""
    index, visible = int(environment["LOCAL_RANK"]), environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    return "".join(visible.split(",")[index : index + 1])
