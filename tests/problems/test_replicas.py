"""Two ranks with half of every batch each, against one rank with the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import replicas
import torch
from toy import relative_error

#: Largest relative difference of a hypergradient, by dtype: exact products, finite differences.
TOLERANCE = {"float32": (1e-5, 1e-2), "float64": (1e-10, 1e-8)}
NAMES = [name for name, _ in replicas.cases(torch.float32)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    tests = Path(replicas.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    outputs = [folder / f"{rank}.pt" for rank in range(2)]
    commands = [
        [sys.executable, "-m", "replicas", str(folder / "store"), str(rank), "2", str(output)]
        for rank, output in enumerate(outputs)
    ]
    processes = [subprocess.Popen(command, env=environment, cwd=tests.parent) for command in commands]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [torch.load(output) for output in outputs]


@pytest.fixture(scope="module")
def single():
    return {dtype: replicas.evaluated(dtype) for dtype in TOLERANCE}


def approximate(name):
    return "finite_difference" in name or name in ("first_order-steps=6-step_size=0.1", "sama")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_hypergradients_agree(name, dtype, ranks, single):
    found, expected = ranks[0][dtype][name]["hypergradient"], single[dtype][name]["hypergradient"]
    assert expected.norm() > 1e-4
    assert relative_error(found, expected) < TOLERANCE[dtype][approximate(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_has_the_same_bits(name, ranks):
    for dtype in TOLERANCE:
        one, other = (rank[dtype][name] for rank in ranks)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_updates_buffers_and_losses_agree(name, ranks, single):
    for key in ("state", "losses"):
        error = relative_error(ranks[0]["float64"][name][key], single["float64"][name][key])
        assert error < (1e-6 if approximate(name) else 1e-9)
