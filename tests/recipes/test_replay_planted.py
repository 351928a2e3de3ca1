"""On planted signals in float64, ``unrolled`` predicts what moving the masking network does to the held-out loss."""

import pytest

from multilevel.configuration import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.problems.batches import map_tensors
from multilevel.solvers import Unrolled

SETTINGS = [
    "data=planted", "data.limit=500", "data.batch_size=16", "model.width=16", "model.heads=2", "model.depth=1",
    "model.decoder_width=16", "model.decoder_heads=2", "model.decoder_depth=1", "mask.policy=weighted", "device=cpu",
]  # fmt: skip


class Doubled:
    """Batches of images in float64."""

    def __init__(self, data):
        self.data = data

    def iterate_from(self, position):
        for batch in self.data.iterate_from(position):
            yield map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, batch)


def planted_engine(seed):
    graph = build_recipe(compose_config([*SETTINGS, f"seed={seed}"])).graph
    for name, problem in graph.problems.items():
        problem.module.double()
        graph.batches[name].data = Doubled(graph.batches[name].data)
        problem.solver = None if name == "mask" else Unrolled()
    return Engine(graph, seed=seed, check=False)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_predictions_agree_with_central_differences(seed):
    engine = planted_engine(seed)
    assert engine.graph.passes("mask") == ("finetune", "pretrain")
    engine.run(10)
    rows = engine.replay([1, 4], steps=4, seeds=1, held_out=2, draws=["held"]).rows
    for row in rows[:2]:
        for half in row.halves:
            assert half.measured == pytest.approx(half.predicted, rel=0.01)
            assert half.halved == pytest.approx(half.predicted, rel=0.01)
