"""What an update tells the callbacks about its hypergradient."""

import gc
import weakref

import pytest
import torch
from toy import toy_graph

from multilevel import Engine
from multilevel.problems import Callback
from multilevel.solvers import Neumann

DOUBLE = {"dtype": torch.float64}


def test_residual_and_cosine_are_those_of_dense_algebra():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.diag(torch.tensor([1.0, 2.0, 4.0], **DOUBLE))
    values = {name: torch.randn(3, generator=generator, **DOUBLE) for name in "pu"}
    functions = {
        "p": lambda v: v["p"] @ hessian @ v["p"] / 2 - v["p"] @ v["u"].sin(),
        "u": lambda v: (v["p"] ** 3).sum(),
    }
    engine = Engine(toy_graph(functions, values, {"p": Neumann(terms=3, step_size=0.2)}, rate=0.05))
    seen, points = [], []

    class Watch(Callback):
        def on_update(self, engine, update):
            if update.level == "u":
                seen.append(update)
            else:  # the point at which the upper level's hypergradient is computed
                points.append([engine.graph.problems[name].module.value.detach().clone() for name in "pu"])

    engine.callbacks.append(Watch())
    engine.run(3)
    hypergradients = []
    for update, (p, u) in zip(seen, points, strict=True):
        cotangent = 3 * p**2
        x = torch.zeros(3, **DOUBLE)
        for _ in range(3):
            x = x + 0.2 * (cotangent - hessian @ x)
        hypergradients.append(u.cos() * x)
        residual = ((hessian @ x - cotangent).norm() / cotangent.norm()).item()
        assert update.solves["p"].residual == pytest.approx(residual, rel=1e-9)
        assert update.gradient_norm == pytest.approx(hypergradients[-1].norm().item(), rel=1e-9)
    assert seen[0].cosine is None
    for update, one, other in zip(seen[1:], hypergradients[:-1], hypergradients[1:], strict=True):
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=0).item()
        assert update.cosine == pytest.approx(cosine, rel=1e-9)


def test_an_engine_is_freed_with_its_last_reference():
    """Not by the garbage collector at some later time: an engine's solutions and recorded updates fill memory."""
    values = {name: torch.ones(3, **DOUBLE) for name in "pu"}
    functions = {"p": lambda v: ((v["p"] - v["u"]) ** 2).sum(), "u": lambda v: (v["p"] ** 2).sum()}
    engine = Engine(toy_graph(functions, values, {"p": Neumann(terms=3, step_size=0.2)}, rate=0.05))
    engine.run(2)
    engine.hypergradient("u")
    freed = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert freed() is None
    finally:
        gc.enable()
