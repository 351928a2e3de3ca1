"""The order of batches depends on seed, level and epoch alone, and a position is enough to go on from."""

import functools
import operator
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from multilevel.problems.batches import Batches, to_device

CPU = torch.device("cpu")


def batches(level="a", seed=0):
    loader = DataLoader(TensorDataset(torch.arange(20)), batch_size=4, shuffle=True)
    return Batches(level, loader, CPU, seed)


def take(source, count):
    return [source.next()[0].tolist() for _ in range(count)]


def test_order_depends_on_seed_level_and_epoch_alone():
    torch.manual_seed(0)
    first = take(batches(), 15)
    torch.manual_seed(1)
    source = batches()
    second = []
    for _ in range(15):
        second += take(source, 1)
        torch.rand(3)
    assert first == second
    assert sorted(functools.reduce(operator.iadd, first[:5], [])) == list(range(20))
    assert len({str(first[epoch * 5 : epoch * 5 + 5]) for epoch in range(3)}) == 3
    assert take(batches(seed=1), 5) != first[:5]
    assert take(batches(level="b"), 5) != first[:5]


def test_the_global_generator_does_not_move():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(batches(), 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_peeked_batch_stays_the_next():
    source = batches()
    peeked = source.peek()[0].tolist()
    assert source.state_dict()["position"] == 0
    assert take(source, 1) == [peeked]


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_a_position_is_enough_to_go_on_from(count):
    source = batches()
    take(source, count)
    state = source.state_dict()
    resumed = batches(seed=9)
    resumed.load_state_dict(state)
    assert take(resumed, 8) == take(source, 8)


def test_nested_batches_are_moved():
    Pair = namedtuple("Pair", ["x", "y"])
    moved = to_device({"a": [torch.ones(1), "text"], "b": Pair(torch.ones(2), 3)}, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["a"][1] == "text"
    assert isinstance(moved["b"], Pair)
    assert moved["b"].x.device.type == "meta"


def test_no_data_gives_none():
    assert Batches("a", None, CPU).next() is None


def test_the_time_that_the_data_takes_is_counted_once_a_batch(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("multilevel.problems.batches.perf_counter", lambda: clock[0])

    def slow():
        for number in range(3):
            clock[0] += 2.0
            yield torch.tensor([number])

    source = Batches("a", slow(), CPU)
    source.peek()
    clock[0] += 5.0  # the work of an update
    take_all = [source.next().item() for _ in range(3)]
    assert take_all == [0, 1, 2]
    assert source.waited == 6.0
