"""After a rehearsal, an engine continues as if there had been none."""

import copy

import pytest
import torch
from torch import nn

from multilevel import Callback, Engine, Graph, Problem
from multilevel.problems.rehearsal import Saved, unchanged
from multilevel.solvers import ConjugateGradient, Unrolled


def batches(iterator):
    generator = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)) for _ in range(40)]
    if iterator:
        return iter(pairs)
    shuffled = torch.utils.data.TensorDataset(*map(torch.cat, zip(*pairs[:5], strict=True)))
    return torch.utils.data.DataLoader(shuffled, batch_size=6, shuffle=True)


class Fit(Problem):
    """A regression with noise from its own generator and from the global one, weighted by the level above."""

    def __init__(self, name, weighted, **keywords):
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
        module.register_buffer("center", torch.ones(2), persistent=False)
        module.history = [torch.zeros(1)]  # neither parameter nor buffer
        super().__init__(name, module, optimizer=torch.optim.AdamW(module.parameters(), 0.01), **keywords)
        self.scheduler = torch.optim.lr_scheduler.SequentialLR(
            self.optimizer,
            [
                torch.optim.lr_scheduler.ConstantLR(self.optimizer, 0.5, 3),
                torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9),
            ],
            [4],
        )
        self.weighted = weighted
        self.own = torch.Generator().manual_seed(5)
        self.seen = [torch.Generator().manual_seed(6)]

    def draw(self, levels, batch):
        return torch.randn(2) + torch.randn(2, generator=self.own)

    def loss(self, levels, batch, draws):
        x, y = batch
        fit = levels.fit(x)
        noise = torch.randn(2, generator=self.seen[0])
        weight = levels.weight if self.weighted else torch.ones(2)
        return ((fit - y - 0.1 * draws - 0.1 * noise).square() * weight.exp()).mean()


class Weight(Problem):
    def loss(self, levels, batch, draws):
        x, y = batch
        return (levels.fit(x) - y).square().mean() + 0.01 * levels.weight.square().sum()


def new_engine(iterator, solver):
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    fit = Fit("fit", True, data=batches(iterator), steps=2, solver=solver)
    return Engine(Graph(fit, Weight("weight", weight, optimizer=optimizer, data=batches(iterator))))


def state(engine):
    """The state of an engine as far as training depends on it, without the positions of an iterator's data."""
    fit = engine.graph.problems["fit"]
    return copy.deepcopy(
        {
            **engine.state_dict(),
            "center": fit.module.center,
            "history": fit.module.history,
            "own": [generator.get_state() for generator in (fit.own, *fit.seen)],
            "global": torch.random.get_rng_state(),
            "gradients": [parameter.grad for parameter in fit.module.parameters()],
        }
    )


def assert_equal(left, right):
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_equal(*pair)
    elif type(left).__module__ == "numpy":
        assert (left == right).all()
    else:
        assert left == right


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("iterator", [False, True])
@pytest.mark.parametrize("solver", [ConjugateGradient(iterations=3, warm_start=True), Unrolled(steps=2)], ids=type)
def test_training_continues_as_if_there_had_been_no_rehearsal(solver, iterator, before):
    rehearsed, plain = new_engine(iterator, solver), new_engine(iterator, solver)
    for engine in (rehearsed, plain):
        engine.run(before)
    expected, records = state(plain), {name: vars(one).copy() for name, one in rehearsed.histories.items()}
    hypergradient = plain.hypergradient("weight") if before else None  # there are no updates to unroll before the first
    with unchanged(rehearsed):
        rehearsed.advance(2)
        with unchanged(rehearsed):
            rehearsed.run(7)  # beyond an epoch
        rehearsed.run(2)
        module = rehearsed.graph.problems["fit"].module
        module.center.add_(1)
        module.history[0] += 1
        module.eval()
        rehearsed.graph.problems["fit"].optimizer.zero_grad()
        torch.randn(1)
        assert rehearsed.step == before + 2
    assert_equal(state(rehearsed), expected)
    assert module.training
    assert {name: vars(one) for name, one in rehearsed.histories.items()} == records
    if before:
        assert_equal(rehearsed.hypergradient("weight"), hypergradient)
    for engine in (rehearsed, plain):
        engine.run(6)
    assert_equal(state(rehearsed), state(plain))


def test_tensors_optimizers_and_gradients_stay_the_same_objects():
    engine = new_engine(False, Unrolled())
    engine.run(1)
    fit = engine.graph.problems["fit"]
    parameter = fit.module[0].weight
    parameter.grad = gradient = torch.full_like(parameter, 2.0)
    objects = [*fit.module.parameters(), *fit.module.buffers(), fit.optimizer.state[parameter]["exp_avg"]]
    group = fit.optimizer.param_groups[0]
    with unchanged(engine):
        engine.run(1)
        assert parameter.grad is None
        fit.optimizer.state.clear()
        fit.module.center = torch.zeros(2)
    after = [*fit.module.parameters(), *fit.module.buffers(), fit.optimizer.state[parameter]["exp_avg"]]
    assert all(first is second for first, second in zip(objects, after, strict=True))
    assert fit.optimizer.param_groups[0] is group
    assert parameter.grad is gradient
    assert torch.equal(gradient, torch.full_like(parameter, 2.0))


def test_an_error_in_the_block_leaves_the_engine_unchanged_too():
    engine = new_engine(True, Unrolled())
    expected = state(engine)

    class Stop(Callback):
        def on_update(self, engine, update):
            raise KeyboardInterrupt

    engine.callbacks = [Stop()]
    with pytest.raises(KeyboardInterrupt), unchanged(engine):
        engine.run(1)
    assert_equal(state(engine), expected)


def test_an_unchanged_tensor_is_not_written_to():
    rate, saved = torch.ones(1, requires_grad=True), Saved()
    product = rate * rate.exp()
    saved.add([rate])
    saved.restore()
    product.backward()  # would refuse if a tensor that it has kept had been written to
    zero = torch.zeros(1)
    saved.add(zero)
    zero.neg_()
    saved.restore()
    assert not torch.signbit(zero).item()
