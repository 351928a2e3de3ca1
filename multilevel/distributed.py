"""Several ranks of one run, as torchrun starts them: a process each, with a replica of the levels."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from multilevel.problems import replicas
from multilevel.solvers import SettingError

#: That a rank waits for another, which may be evaluating; one that is gone is noticed at once.
LONGEST = timedelta(days=1)


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several that torchrun has started."""
    return "LOCAL_RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1


def restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun may start the ranks again, after one of them was lost."""
    return int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether it has."""
    return int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined() -> Iterator[None]:
    """Within the block the processes that torchrun has started know each other; a process of its own is left alone.

    On GPUs each takes the one of its place on the machine, and sees no other.

    Raises:
        SettingError: some ranks have a GPU, and some have none.
    """
    if not launched():
        yield
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(os.environ)
    store, rank, count = next(dist.rendezvous("env://"))
    # the store outlives a restart, and the addresses of ranks that are gone stand in it
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST)
    try:
        if replicas.rank() > 0:  # one bar is enough
            sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
        gpus = replicas.gather(torch.cuda.is_available())
        if len(set(gpus)) > 1:
            expected = f"at most the {sum(gpus)} GPUs, or CUDA_VISIBLE_DEVICES= for the CPU"
            raise SettingError("--nproc-per-node", len(gpus), expected)
        yield
    finally:
        dist.destroy_process_group()


def own_gpu(environment: Mapping[str, str]) -> str:
    """What CUDA_VISIBLE_DEVICES is for this process: one GPU, or none where there are fewer than ranks."""
    place, visible = int(environment["LOCAL_RANK"]), environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(place)
    return "".join(visible.split(",")[place : place + 1])
