"""Two ranks with half of every batch each, against one rank with the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import choices
import pytest
import several_ranks
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from toy import relative_error

from multilevel.problems import GraphError
from multilevel.problems.batches import Batches, own_share
from multilevel.solvers import DataError

#: Largest relative difference of a hypergradient, by dtype: exact products, finite differences.
TOLERANCE = {"float32": (1e-5, 1e-2), "float64": (1e-10, 1e-8)}
NAMES = [name for name, _ in several_ranks.cases(torch.float32)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    tests = Path(several_ranks.__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    outputs = [folder / f"{rank}.pt" for rank in range(2)]
    commands = [
        [sys.executable, "-m", "several_ranks", str(folder / "store"), str(rank), "2", str(output)]
        for rank, output in enumerate(outputs)
    ]
    processes = [subprocess.Popen(command, env=environment, cwd=tests.parent) for command in commands]
    assert [process.wait(300) for process in processes] == [0, 0]
    return [torch.load(output) for output in outputs]


@pytest.fixture(scope="module")
def single():
    return {dtype: several_ranks.evaluated(dtype) for dtype in TOLERANCE}


def test_draws_differ_by_rank(ranks):
    one, other = (rank["drawn"] for rank in ranks)
    assert torch.equal(one, several_ranks.drawn())
    assert not torch.isclose(one, other).any()


def test_draws_have_a_baseline_on_each_rank(ranks):
    expected = choices.hypergradient_by_hand(2, exact=False)
    assert relative_error(choices.hypergradient_by_hand(1, exact=False), expected) > 0.01
    for rank in ranks:
        assert relative_error(rank["chosen"], expected) < 1e-10


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(ranks):
    for rank in ranks:
        count, before, later, after = rank["skipped"]
        assert (count, later) == (1, 0)
        assert before.isfinite().all()
        assert after.isfinite().all()
        assert not torch.equal(before, after)
        assert torch.equal(after, ranks[0]["skipped"][3])


def test_tasks_are_spread_and_their_errors_reach_all(ranks):
    for rank in ranks:
        assert rank["spread"] == (
            [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)],
            "output: got 'here'; expected another place",
        )


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_modules_are_refused(group):
    module = torch.nn.Linear(4, 4)
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(GraphError, match=r"level 'one': its parameters are sharded \(fully_shard\)"):
        several_ranks.Level("one", module)


def test_replicated_modules_are_refused(group):
    module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    with pytest.raises(GraphError, match="pass the module itself, not DistributedDataParallel"):
        several_ranks.Level("one", module)


@pytest.fixture
def second_of_three(monkeypatch):
    monkeypatch.setattr("multilevel.problems.replicas.count", lambda: 3)
    monkeypatch.setattr("multilevel.problems.replicas.rank", lambda: 1)


def test_a_share_is_the_rows_of_a_rank(second_of_three):
    batch = {"rows": torch.arange(6), "pair": (torch.arange(12).reshape(6, 2), None), "scale": torch.tensor(2.0)}
    share = own_share(batch, "one")
    assert share["rows"].tolist() == [2, 3]
    assert share["pair"][0].tolist() == [[4, 5], [6, 7]]
    assert share["pair"][1] is None
    assert share["scale"] == 2


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(7, 2), "a batch of level 'one' has 7 rows, which 3 ranks cannot share evenly"),
        ((torch.zeros(6, 2), torch.zeros(3)), r"has tensors of \[3, 6\] rows: .* batch_share"),
        ([torch.zeros(6), ["a", "b"]], "holds a str, which has no rows: give .* batch_share"),
    ],
)
def test_what_cannot_be_shared_is_named(batch, message, second_of_three):
    with pytest.raises(DataError, match=message):
        own_share(batch, "one")


def test_data_that_is_sharded_already_is_refused(second_of_three):
    samples = torch.utils.data.TensorDataset(torch.zeros(12))
    sampler = torch.utils.data.DistributedSampler(samples, num_replicas=3, rank=1)
    with pytest.raises(DataError, match="has a DistributedSampler"):
        Batches("one", torch.utils.data.DataLoader(samples, 2, sampler=sampler), torch.device("cpu"))


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
