"""levels.LEVEL.momentum sets the average over earlier gradients that an update follows."""

import pytest

from multilevel.configuration import build_recipe, compose_config
from multilevel.solvers import SettingError


@pytest.mark.parametrize(
    ("optimizer", "momentum", "expected"),
    [
        ("adamw", "null", {"betas": (0.9, 0.999)}),
        ("adamw", "0.97", {"betas": (0.97, 0.999)}),
        ("adam", "0.5", {"betas": (0.5, 0.999)}),
        ("sgd", "null", {"momentum": 0}),
        ("sgd", "0.8", {"momentum": 0.8}),
    ],
)
def test_momentum(optimizer, momentum, expected):
    settings = [f"levels.mask.optimizer={optimizer}", f"levels.mask.momentum={momentum}", "data.limit=500"]
    problem = build_recipe(compose_config(settings)).graph.problems["mask"]
    for group in problem.optimizer.param_groups:
        assert expected.items() <= group.items()


def test_momentum_out_of_range():
    with pytest.raises(SettingError, match=r"levels\.mask\.momentum: got 1.0"):
        build_recipe(compose_config(["levels.mask.momentum=1.0", "data.limit=500"]))
