"""Hooks of parameters see the gradient of an update once, and change it as they do in plain PyTorch."""

import copy

import pytest
import torch
from regression import Level, assert_equal, bilevel, dense_hypergradient, fit, linear, loop, single
from torch import nn
from torch.optim import SGD

from multilevel import Engine, Graph
from multilevel.problems import GraphError
from multilevel.solvers import Unrolled


def scaled(parameter, seen):
    parameter.register_hook(lambda gradient: seen.append(gradient.clone()) or 3 * gradient)


def clipped_in_place(parameter, seen):
    def hook(leaf):
        seen.append(leaf.grad.clone())
        leaf.grad.clamp_(-0.01, 0.01)

    parameter.register_post_accumulate_grad_hook(hook)


def both(parameter, seen):
    clipped_in_place(parameter, seen)
    scaled(parameter, [])


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("hook", [scaled, clipped_in_place, both])
def test_hooks_fire_once_an_update_and_change_it_as_in_plain_pytorch(hook, accumulate, clip_norm):
    modules, seen = (linear(), linear()), ([], [])
    for module, calls in zip(modules, seen, strict=True):
        hook(module.weight, calls)
    Engine(Graph(single(modules[0], accumulate=accumulate, clip_norm=clip_norm))).run(3)
    loop(modules[1], SGD(modules[1].parameters(), 0.1, 0.9), 3, accumulate, clip_norm)
    assert_equal(*modules)
    assert len(seen[0]) == 3
    torch.testing.assert_close(*seen, rtol=1e-14, atol=1e-14)
    assert not torch.equal(modules[0].weight, linear().weight)


def test_hooks_on_several_tensors_fire_together():
    modules, seen = (linear(), linear()), ([], [])
    for module, calls in zip(modules, seen, strict=True):
        torch.autograd.graph.register_multi_grad_hook(
            list(module.parameters()), lambda all, calls=calls: calls.extend(all)
        )
    Engine(Graph(single(modules[0]))).run(2)
    loop(modules[1], SGD(modules[1].parameters(), 0.1, 0.9), 2)
    torch.testing.assert_close(*seen, rtol=1e-14, atol=1e-14)
    assert len(seen[0]) == 4


def test_a_hook_may_step_its_own_optimizer_and_clear_the_gradient():
    module, expected = linear(), linear()
    own = {parameter: SGD([parameter], 0.05, 0.9) for parameter in module.parameters()}

    def step(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    Engine(Graph(single(module))).run(4)
    loop(expected, SGD(expected.parameters(), 0.05, 0.9), 4)
    assert_equal(module, expected)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_a_hook_changes_the_hypergradient_that_an_upper_level_follows(clip_norm):
    module, penalty, seen = linear(), nn.Parameter(torch.tensor(-1.0, dtype=torch.float64)), []
    engine = Engine(bilevel(module, penalty, clip_norm=clip_norm))
    penalty.register_hook(lambda gradient: seen.append(gradient.item()) or -2 * gradient)
    start = penalty.detach().clone()
    engine.run(1)
    expected = dense_hypergradient(module, start).item()
    assert seen == pytest.approx([expected], rel=1e-10)
    moved = -2 * expected
    if clip_norm is not None:
        assert abs(moved) > clip_norm
        moved *= clip_norm / (abs(moved) + 1e-6)
    assert penalty.item() == pytest.approx(-1 - 0.1 * moved, rel=1e-12)
    before = penalty.item()
    engine.hypergradient("penalty")
    assert (len(seen), penalty.item(), penalty.grad) == (1, before, None)


def test_a_hook_that_looks_changes_no_bit():
    modules = [linear() for _ in range(2)]
    for module in modules:
        Engine(bilevel(module, nn.Parameter(torch.zeros((), dtype=torch.float64)))).run(2)
        modules[1].weight.register_hook(lambda gradient: None)
    assert torch.equal(modules[0].weight, modules[1].weight)


def test_a_hook_may_mend_what_is_not_finite_and_none_steps_along_it():
    modules, steps = (linear(), linear()), []
    start = copy.deepcopy(modules[0].state_dict())

    def broken(levels, batch):
        return fit(levels, batch) + (levels.fit.weight * 0).sqrt().sum()  # its gradient is nan

    modules[0].weight.register_hook(torch.nan_to_num)
    Engine(Graph(single(modules[0], broken, momentum=0))).run(1)
    assert torch.equal(modules[0].weight, start["weight"])
    assert not torch.equal(modules[0].bias, start["bias"])
    modules[1].bias.register_post_accumulate_grad_hook(steps.append)
    engine = Engine(Graph(single(modules[1], broken)))
    engine.run(1)
    assert engine.skipped == {"fit": 1}
    assert steps == []


def test_an_unrolled_level_whose_gradient_a_hook_changes_is_refused():
    module, seen = linear(), []
    graph = bilevel(module, nn.Parameter(torch.zeros((), dtype=torch.float64)), solver=Unrolled(1))
    hook = module.weight.register_hook(lambda gradient: seen.append(gradient))
    Engine(graph).run(1)  # it only looks
    hook.remove()
    module.weight.register_hook(lambda gradient: gradient / 2)
    with pytest.raises(GraphError, match=r"level 'fit': a hook of the parameter 'weight'.*Unrolled"):
        Engine(graph).run(1)
    assert len(seen) == 1


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_gradients_that_share_memory_are_clipped_once(clip_norm):
    """autograd hands a + b one gradient for both, and a.sum() a single number."""
    pairs = [nn.ParameterDict({key: torch.ones(3, dtype=torch.float64) for key in "abc"}) for _ in range(2)]
    problem = Level(
        "pair",
        pairs[0],
        lambda levels, batch: (levels.pair.a + levels.pair.b).square().sum() + levels.pair.c.sum(),
        optimizer=SGD(pairs[0].parameters(), 0.1),
        clip_norm=clip_norm,
    )
    Engine(Graph(problem)).run(2)
    optimizer = SGD(pairs[1].parameters(), 0.1)
    for _ in range(2):
        ((pairs[1]["a"] + pairs[1]["b"]).square().sum() + pairs[1]["c"].sum()).backward()
        nn.utils.clip_grad_norm_(pairs[1].parameters(), clip_norm or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(*pairs)
