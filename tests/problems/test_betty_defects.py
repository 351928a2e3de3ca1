"""Each place where betty-ml 0.2.1 is not right, and what is computed here in its place; docs/from_betty.md lists them.

A test that fails says that Betty is right now: then the bridge and that page have something to take back.
"""

import copy

import pytest
import torch
from torch import nn

from multilevel import Engine
from multilevel.betty.solvers import BETTY_COMMAND
from multilevel.solvers import ConjugateGradient, Identity, Neumann

pytest.importorskip("betty", reason=BETTY_COMMAND)

from betty.configs import Config, EngineConfig
from betty.engine import Engine as Betty
from betty.misc.early_stopping import EarlyStopping
from betty_toy import Classify, program
from toy import flat, relative_error, toy_graph

from multilevel.betty import BettyEngine, Cg, from_betty
from multilevel.betty import Neumann as BettyNeumann

EIGENVALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)


def upper_gradient(problems, dependencies):
    """What Betty has the upper problem step along, flat."""
    Betty(problems, EngineConfig(), dependencies)
    low, up = problems
    low.cur_batch, batch = low.get_batch(), up.get_batch()
    loss, _ = up.get_loss(batch)
    up.backward(loss, up.trainable_parameters(), up.paths, retain_graph=True, allow_unused=True)
    return torch.cat([one.grad.reshape(-1) for one in up.trainable_parameters()])


def dropout_network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_darts_draws_dropout_anew_for_each_of_its_two_evaluations():
    engine = Engine(from_betty(*program(net=dropout_network(), darts_alpha=0.001)))
    exact = flat(engine.solve_hypergradient("weigh", {"classify": Identity()}).values)
    assert relative_error(flat(engine.hypergradient("weigh")), exact) < 0.01
    assert upper_gradient(*program(net=dropout_network(), darts_alpha=0.001)).norm() > 10 * exact.norm()


def test_darts_changes_weights_and_running_statistics():
    problems, dependencies = program(net=dropout_network())
    module = problems[0].module
    before = copy.deepcopy(module.state_dict())
    upper_gradient(problems, dependencies)
    after = module.state_dict()
    weights = [name for name, _ in module.named_parameters()]
    assert any(not torch.equal(before[name], after[name]) for name in weights)
    assert (before["2.running_mean"] - after["2.running_mean"]).abs().max() > 0.01
    graph = from_betty(*program(net=dropout_network()))
    before = copy.deepcopy(graph.problems["classify"].module.state_dict())
    Engine(graph).hypergradient("weigh")
    assert all(torch.equal(one, before[name]) for name, one in graph.problems["classify"].module.state_dict().items())


def quadratic(solver, scale=1.0):
    """A lower level with known eigenvalues; the exact hypergradient is 1 / eigenvalues, times scale."""
    values = {"low": torch.zeros(6, dtype=torch.float64), "top": torch.zeros(6, dtype=torch.float64)}
    functions = {
        "low": lambda v: (EIGENVALUES * v["low"].square()).sum() / 2 - (v["low"] * v["top"]).sum(),
        "top": lambda v: scale * v["low"].sum(),
    }
    return toy_graph(functions, values, {"low": solver}, rate=0.1)


def by_betty(solver, scale=1.0):
    return flat(BettyEngine(quadratic(ConjugateGradient(), scale), solver=solver).hypergradient("top"))


def test_cg_does_not_converge():
    ours = flat(Engine(quadratic(ConjugateGradient(6))).hypergradient("top"))
    assert relative_error(ours, 1 / EIGENVALUES) < 1e-8
    assert relative_error(by_betty(Cg(6)), 1 / EIGENVALUES) > 0.1
    assert relative_error(by_betty(Cg(60)), 1 / EIGENVALUES) > 0.1


def test_cg_alpha_scales_the_curvature_and_not_the_residual():
    one = by_betty(Cg(1))  # right, whatever the scale of the system should be
    assert relative_error(by_betty(Cg(1, cg_alpha=0.1)), one) < 1e-8
    assert relative_error(by_betty(Cg(6, cg_alpha=0.1)), 1 / EIGENVALUES) > 1


def test_cg_gives_nan_for_a_zero_vector():
    assert by_betty(Cg(2), scale=0.0).isnan().all()
    assert not flat(Engine(quadratic(ConjugateGradient(), scale=0.0)).hypergradient("top")).any()


def test_nothing_ends_a_neumann_series_that_diverges():
    assert by_betty(BettyNeumann(50, 1.0)).norm() > 1e20
    report = Engine(quadratic(Neumann(51, 1.0))).solve_hypergradient("top").reports["low"]
    assert report.failed
    assert "lower solver.step_size" in report.cause


def test_optimizers_are_made_again_from_their_defaults():
    problems, dependencies = program(optimizer=lambda some, rate: torch.optim.AdamW(some, rate))
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        Betty(problems, EngineConfig(), dependencies)
    graph = from_betty(*program(optimizer=lambda some, rate: torch.optim.AdamW(some, rate)))
    Engine(graph).run(1)


def test_groups_of_parameters_are_dropped():
    def groups(some, rate):
        return torch.optim.Adam([{"params": some[:1], "lr": 0.5}, {"params": some[1:]}], rate)

    problems, dependencies = program(optimizer=groups)
    Betty(problems, EngineConfig(), dependencies)
    assert [group["lr"] for group in problems[0].optimizer.param_groups] == [0.01]
    graph = from_betty(*program(optimizer=groups))
    Engine(graph).run(1)
    assert [group["lr"] for group in graph.problems["classify"].optimizer.param_groups] == [0.5, 0.01]


def test_frozen_parameters_end_it():
    def partly_frozen():
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        net[0].weight.requires_grad_(False)
        return net

    problems, dependencies = program(net=partly_frozen())
    with pytest.raises(RuntimeError, match="require"):
        Betty(problems, EngineConfig(train_iters=2), dependencies).run()
    graph = from_betty(*program(net=partly_frozen()))
    before = copy.deepcopy(graph.problems["classify"].module.state_dict())
    Engine(graph).run(2)
    same = [torch.equal(one, before[name]) for name, one in graph.problems["classify"].module.state_dict().items()]
    assert same == [True, False, False, False]


def test_a_lower_training_step_may_not_return_metrics():
    class WithMetrics(Classify):
        def training_step(self, batch):
            return {"loss": super().training_step(batch), "one": 1.0}

    with pytest.raises(AssertionError, match="Expected output to be a"):
        upper_gradient(*program(lower=WithMetrics))
    Engine(from_betty(*program(lower=WithMetrics))).run(1)


def test_the_engine_without_cuda_early_stopping_and_resume(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
        problems, dependencies = program()
        with pytest.raises(ZeroDivisionError):
            Betty(problems, EngineConfig(strategy="distributed", backend="gloo"), dependencies)
    with pytest.raises(AttributeError, match="patience"):
        EarlyStopping()({"loss": 1.0})
    problems, dependencies = program()
    engine = type("Validated", (Betty,), {"validation": lambda self: {"loss": 1.0}})(
        problems, EngineConfig(), dependencies
    )
    engine._rank = 1
    assert not engine.do_validation()  # so that only rank 0 can meet what ends the loop
    assert not hasattr(engine, "state_dict")
    assert not hasattr(engine, "load_state_dict")


def test_config_defaults_are_those_that_the_page_names():
    config = Config()
    named = (config.type, config.darts_alpha, config.neumann_iterations, config.neumann_alpha, config.cg_iterations)
    assert named == ("darts", 0.01, 1, 1.0, 1)
