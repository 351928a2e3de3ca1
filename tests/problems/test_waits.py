"""How often the host waits for the device in a step: on a GPU, each time the queue of kernels runs dry."""

import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from multilevel import Callback, Engine, Graph, Problem
from multilevel.configuration import build_recipe, compose_config
from multilevel.runs.training import new_engine
from multilevel.solvers import Identity, Sama

ATEN = torch.ops.aten
#: Operators whose result, or its shape, the host must know.
WAITING = {
    ATEN._local_scalar_dense.default,
    ATEN.equal.default,
    ATEN.is_nonzero.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.unique_dim.default,
    ATEN._unique2.default,
}
#: Those that do so where an index is a mask.
MASKED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}


def in_torchs_optimizers():
    """They read how often they have stepped from a tensor that is never on the device."""
    frame = sys._getframe()
    while frame is not None and "torch/optim/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


class Waits(TorchDispatchMode):
    """Counts them; what is read by ``tolist`` is one of them, which the dispatcher does not see."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.counts["tolist"] += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        by_mask = function in MASKED and any(one is not None and one.dtype == torch.bool for one in arguments[1])
        if (function in WAITING or by_mask) and not in_torchs_optimizers():
            self.counts[function] += 1
        return function(*arguments, **(keywords or {}))

    def of(self, engine):
        """In one step, after one that looks at what later ones need not look at."""
        engine.run(1)
        self.counts.clear()
        with self:
            engine.run(1)
        return self.counts.total()


@pytest.fixture
def waits(monkeypatch):
    return Waits(monkeypatch)


def test_the_counter_sees_what_waits(waits):
    tensor = torch.arange(3.0)
    with waits:
        tensor.sum().item(), bool(tensor.any()), torch.equal(tensor, tensor + 1), tensor.nonzero(), tensor.tolist()
        tensor[tensor > 1], float(tensor[0]), int(tensor[1])
    assert waits.counts.total() == 8


class Silent(Callback):
    """Is told of every update, with its metrics and its cosine."""


@pytest.mark.parametrize("callbacks", [(), (Silent(),)], ids=["unobserved", "observed"])
def test_a_step_of_the_main_recipe_waits_at_most_24_times(waits, callbacks):
    small = "model=mini model.width=8 model.depth=2 model.heads=2 model.decoder_width=8 model.decoder_heads=2"
    recipe = build_recipe(compose_config(["data=digits", "data.batch_size=8", *small.split()]))
    engine = new_engine(recipe)
    engine.callbacks += callbacks
    assert waits.of(engine) <= 24, waits.counts


class Fit(Problem):
    def loss(self, levels, batch, draws):
        values = zip(levels.fit, levels.scale, strict=True)
        loss = sum((own - scale).square().sum() for own, scale in values)
        return loss, {"loss": loss, "twice": 2 * loss, "number": 1.0}


class Scale(Problem):
    def loss(self, levels, batch, draws):
        return sum((own - 1).square().sum() for own in levels.fit), {"first": levels.fit[0].sum()}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("solver", [Identity(), Identity(product="reverse"), Sama()], ids=str)
@pytest.mark.parametrize("callbacks", [(), (Silent(),)], ids=["unobserved", "observed"])
def test_no_wait_is_for_a_single_parameter(waits, solver, optimizer, callbacks):
    def engine_of(count):
        fit, scale = (nn.ParameterList(nn.Parameter(torch.full((2,), 0.5 * k)) for _ in range(count)) for k in (1, 3))
        below = Fit("fit", fit, optimizer=optimizer(fit.parameters(), 0.1), solver=solver)
        return Engine(
            Graph(below, Scale("scale", scale, optimizer=optimizer(scale.parameters(), 0.1))), callbacks=callbacks
        )

    assert waits.of(engine_of(2)) == waits.of(engine_of(30)) <= 12
