"""The order of batches depends on seed, level and epoch alone, and a position is enough to go on from."""

import functools
import operator
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding, BatchFeature
from transformers.modeling_outputs import BaseModelOutput

from multilevel.problems.batches import Batches, first_rows, fresh, map_tensors, to_device, versions
from multilevel.solvers import DataError

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


@dataclass
class Sample:
    x: torch.Tensor
    label: str = "a"


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    label: str | None = "a"


@dataclass(frozen=True, slots=True)
class Slots:
    x: torch.Tensor


class Attributes(dict):
    """A dict whose items are its attributes."""

    def __init__(self, **items):
        super().__init__(items)
        self.__dict__ = self


class Counted(dict):
    count = 3


class Images(list):
    pass


class Pair(namedtuple("Pair", ["x", "y"])):
    pass


class Plain:
    def __init__(self, x):
        self.x, self.name = x, "a"


CONTAINERS = {
    "tuple": lambda x: (x, "a"),
    "named tuple": lambda x: namedtuple("Two", ["x", "y"])(x, 1),
    "subclass of a named tuple": lambda x: Pair(x, 1),
    "list": lambda x: [x],
    "subclass of list": lambda x: Images([x]),
    "deque": lambda x: deque([x]),
    "dict": lambda x: {"x": x},
    "ordered dict": lambda x: OrderedDict(x=x),
    "default dict": lambda x: defaultdict(list, x=x),
    "subclass of dict": lambda x: Counted(x=x),
    "dict of attributes": lambda x: Attributes(x=x),
    "read-only mapping": lambda x: MappingProxyType({"x": x}),
    "BatchEncoding": lambda x: BatchEncoding({"x": x}),
    "BatchFeature": lambda x: BatchFeature({"x": x}),
    "ModelOutput": lambda x: BaseModelOutput(x),
    "dataclass": Sample,
    "frozen dataclass": Frozen,
    "frozen dataclass with slots": Slots,
    "namespace": lambda x: SimpleNamespace(x=x),
    "object": Plain,
    "nested": lambda x: {"a": [Frozen(x), (Attributes(x=x), BatchEncoding({"x": x}))]},
}


def found_tensors(batch):
    tensors = []
    fresh(batch, listed=tensors)
    return tensors


def tensors_of(value):
    """Every tensor, found by hand: items, then attributes."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, tuple | list | deque):
        return [tensor for item in value for tensor in tensors_of(item)]
    return tensors_of(value.x) if hasattr(value, "x") else []


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_every_container_is_mapped_and_stays_what_it_is(kind):
    x = torch.ones(2)
    batch = CONTAINERS[kind](x)
    mapped = map_tensors(torch.Tensor.double, batch)
    assert type(mapped) is type(batch)
    assert [tensor.dtype for tensor in tensors_of(batch)] == [torch.float32] * len(tensors_of(batch))
    assert [tensor.dtype for tensor in tensors_of(mapped)] == [torch.float64] * len(tensors_of(batch))
    assert len(tensors_of(batch)) == len(versions(found_tensors(batch))) * (3 if kind == "nested" else 1) > 0
    assert all(tensor is x for tensor in tensors_of(fresh(batch)))
    assert all(tensor is not x and torch.equal(tensor, x) for tensor in tensors_of(fresh(batch, tensors=True)))
    assert tensors_of(to_device(batch, torch.device("meta")))[0].device.type == "meta"


def test_attributes_of_mapped_containers_stay():
    counted, attributes, output = Counted(x=torch.ones(1)), Attributes(x=torch.ones(1)), BaseModelOutput(torch.ones(1))
    counted.weight, counted.count = torch.ones(1), 4
    mapped = map_tensors(torch.neg, counted)
    assert (mapped.weight.item(), mapped.count, mapped["x"].item()) == (-1, 4, -1)
    mapped = map_tensors(torch.neg, attributes)
    mapped["y"] = 2
    assert (mapped.x.item(), mapped.y, mapped["x"].item()) == (-1, 2, -1)
    assert set(attributes) == {"x"}
    mapped = map_tensors(torch.neg, output)
    assert (mapped.last_hidden_state.item(), mapped["last_hidden_state"].item()) == (-1, -1)
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    moved = to_device(packed, torch.device("meta"))
    assert (moved.data.device.type, moved.batch_sizes.device.type) == ("meta", "cpu")


def test_what_a_fresh_batch_is_made_to_hold_is_its_own():
    x = torch.ones(2)
    batch = {"x": x, "rest": [x], "encoding": BatchEncoding({"x": x})}
    copied = fresh(batch)
    copied.pop("x")
    copied["rest"].append(1)
    copied["encoding"].pop("x")
    assert list(batch) == ["x", "rest", "encoding"]
    assert len(batch["rest"]) == 1
    assert "x" in batch["encoding"]
    before = versions(found_tensors(batch))
    fresh(batch, tensors=True)["x"].mul_(2)
    assert versions(found_tensors(batch)) == before
    assert x.tolist() == [1, 1]
    both = fresh((x, x), tensors=True)
    both[0].mul_(2)
    assert both[1].tolist() == [2, 2]
    batch["rest"][0].mul_(2)
    assert versions(found_tensors(batch)) != before
    with torch.inference_mode():
        assert versions([torch.ones(1)]) == [0]


def test_the_share_of_a_batch_is_taken_in_every_container():
    batch = BatchEncoding({"x": torch.arange(4), "rest": Frozen(torch.arange(4), None)})
    part = first_rows(batch, 0.5, "fit")
    assert part["x"].tolist() == part["rest"].x.tolist() == [0, 1]
    with pytest.raises(DataError, match="holds a PackedSequence"):
        first_rows(pack_sequence([torch.ones(1), torch.ones(1)]), 0.5, "fit")
    with pytest.raises(DataError, match="holds a str"):
        first_rows(Sample(torch.arange(4)), 0.5, "fit")


@pytest.mark.parametrize("data", [[torch.tensor(i) for i in range(3)], iter(range(20))])
def test_batches_taken_in_a_rewound_block_come_again(data):
    source = Batches("a", data, CPU)
    source.next()
    with source.rewound():
        outer = [int(source.next()) for _ in range(2)]
        with source.rewound():
            inner = [int(source.next()) for _ in range(5)]
        assert [int(source.next()) for _ in range(5)] == inner
    assert source.state_dict() == {"seed": 0, "epoch": 0, "position": 1}
    assert [int(source.next()) for _ in range(7)] == outer + inner


def test_a_position_with_batches_read_ahead_resumes_at_the_next_batch():
    source = batches()
    with source.rewound():
        take(source, 13)
    take(source, 7)
    resumed = batches()
    resumed.load_state_dict(source.state_dict())
    assert take(resumed, 12) == take(source, 12)
