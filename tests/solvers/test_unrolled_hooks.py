"""Unrolled solvers go through what optimizer hooks and callbacks do, against plain PyTorch loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unrolled_by_hand import (
    SGD,
    STEPS,
    Told,
    check,
    descent,
    engine_of,
    every_solver,
    hooked,
    hypergradient,
    written_out,
)

from multilevel import Callback
from multilevel.solvers import Dense, SolveError, Unrolled


def clamp(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(min=-0.1)


def shrink(module):
    for parameter in module.parameters():
        parameter.data.mul_(0.9)


def to_unit_norm(module):
    with torch.no_grad():
        module.weight.copy_(module.weight / module.weight.norm())


def rows_by_data(module):
    module.weight.data = module.weight.data / module.weight.data.norm() + module.bias.data


def by_out(module):
    torch.mul(module.weight.data, module.weight.data.norm(), out=module.weight.data)


def by_rows(module):
    for row in module.weight.data.T:
        row.div_(1 + row.abs())


def as_one_vector(module):
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector / vector.norm(), module.parameters())


def one_vector(parameters):
    vector = torch.cat([parameter.reshape(-1) for parameter in parameters])
    return [part.view(1, -1) for part in (vector / vector.norm()).split([4, 1])]


PROJECTIONS = {
    "one vector": (as_one_vector, lambda p: [one_vector(p)[0], one_vector(p)[1][0]]),
    "clamp": (clamp, lambda p: [one.clamp(min=-0.1) for one in p]),
    "shrink": (shrink, lambda p: [0.9 * one for one in p]),
    "unit norm": (to_unit_norm, lambda p: [p[0] / p[0].norm(), p[1]]),
    "new data": (rows_by_data, lambda p: [p[0] / p[0].norm() + p[1], p[1]]),
    "out": (by_out, lambda p: [p[0] * p[0].norm(), p[1]]),
    "rows": (by_rows, lambda p: [p[0] / (1 + p[0].abs()), p[1]]),
}


@every_solver
@pytest.mark.parametrize("where", ["hook", "callback"])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections(name, where, solver):
    act, project = PROJECTIONS[name]
    if where == "hook":
        found = hypergradient(hooked(after=act), solver)
    else:
        found = hypergradient(hooked(), solver, callbacks=[Told(act)])
    check(found, written_out(descent(after=project)))


@every_solver
@pytest.mark.parametrize("where", ["hook", "callback"])
def test_slow_weights_that_a_hook_keeps(where, solver):
    """Lookahead (Zhang et al. 2019): every second update goes back half way to the weights of two updates before."""
    slow, count = {}, 0

    def look_ahead(module):
        nonlocal count
        count += 1
        for name, parameter in module.named_parameters():
            kept = slow.setdefault(name, parameter.detach().clone())
            if count % 2 == 0:
                parameter.data.copy_(kept.add_(parameter.data - kept, alpha=0.5))

    if where == "hook":
        found = hypergradient(hooked(after=look_ahead), solver)
    else:
        found = hypergradient(hooked(), solver, callbacks=[Told(look_ahead)])
    kept = []

    def update(parameters, gradients, t, log):
        made = descent()(parameters, gradients, t, log)
        if t % 2:
            made = [old + 0.5 * (new - old) for old, new in zip(kept, made, strict=True)]
        if t % 2 or not kept:
            kept[:] = made
        return made

    check(found, written_out(update))


@every_solver
def test_hooks_and_several_callbacks_act_one_after_the_other(solver):
    found = hypergradient(
        hooked(after=to_unit_norm), solver, callbacks=[Told(shrink), Told(lambda module: None), Told(clamp)]
    )
    (_, unit), (_, shrunk), (_, clamped) = (PROJECTIONS[name] for name in ("unit norm", "shrink", "clamp"))
    check(found, written_out(descent(after=lambda parameters: clamped(shrunk(unit(parameters))))))


def centralize(module):
    module.weight.grad -= module.weight.grad.mean(1, keepdim=True)


def clip(module):
    nn.utils.clip_grad_norm_(module.parameters(), 0.5)


def clip_values(module):
    nn.utils.clip_grad_value_(module.parameters(), 0.3)


def decay(module):
    for parameter in module.parameters():
        parameter.grad = parameter.grad + 0.2 * parameter.detach().square()


def clipped(gradients):
    length = torch.cat([gradient.reshape(-1) for gradient in gradients]).norm()
    return [gradient * (0.5 / (length + 1e-6)).clamp(max=1) for gradient in gradients]


GRADIENTS = {
    "centralize": (centralize, lambda g: [g[0] - g[0].mean(1, keepdim=True), g[1]]),
    "clip": (clip, clipped),
    "clip values": (clip_values, lambda g: [one.clamp(-0.3, 0.3) for one in g]),
}


@every_solver
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_changed_before_the_step(name, solver):
    act, change = GRADIENTS[name]
    check(hypergradient(hooked(act), solver), written_out(descent(before=change)))


@every_solver
def test_gradients_changed_by_parameters(solver):
    def update(parameters, gradients, t, log):
        pairs = zip(parameters, gradients, strict=True)
        return descent()(parameters, [slope + 0.2 * parameter.square() for parameter, slope in pairs], t, log)

    check(hypergradient(hooked(decay), solver), written_out(update))


@every_solver
def test_momentum_goes_on_from_what_a_hook_leaves(solver):
    """A hook with a counter, that also sets the learning rate and damps the optimizer's state."""
    count = 0

    def make(module):
        def damp(optimizer, *_):
            nonlocal count
            count += 1
            optimizer.param_groups[0]["lr"] = 0.1 / count
            for state in optimizer.state.values():
                state["momentum_buffer"].mul_(0.5)

        optimizer = SGD(module.parameters(), 1.0, momentum=0.9)
        optimizer.register_step_pre_hook(damp)
        return optimizer

    buffers = {}

    def update(parameters, gradients, t, log):
        for place, slope in enumerate(gradients):
            buffers[place] = 0.9 * 0.5 * buffers[place] + slope if place in buffers else slope
        return [parameter - 0.1 / (t + 1) * buffers[place] for place, parameter in enumerate(parameters)]

    check(hypergradient(make, solver), written_out(update))
    assert count == STEPS


@every_solver
def test_a_projection_that_takes_a_hyperparameter(solver):
    """The level read enters through the callback as well as through the loss."""

    class Bound(Callback):
        def on_update(self, engine, update):
            modules = {name: problem.module for name, problem in engine.graph.problems.items()}
            if update.level == "fit":
                with torch.no_grad():
                    modules["fit"].weight.mul_(1 - 0.1 * modules["up"].log[0].exp())

    def update(parameters, gradients, t, log):
        weight, bias = descent()(parameters, gradients, t, log)
        return [weight * (1 - 0.1 * log[0].exp()), bias]

    check(hypergradient(hooked(), solver, callbacks=[Bound()]), written_out(update))


def test_weights_and_generators_are_what_they_are_without_recording():
    def noise(module):
        with torch.no_grad():
            module.weight.add_(0.01 * torch.randn_like(module.weight))
            module.weight.copy_(F.normalize(module.weight))

    ends = []
    for solver in (Unrolled(), Dense()):
        torch.manual_seed(7)
        engine = engine_of(hooked(clip, noise), solver, callbacks=[Told(noise)])
        ends.append((engine.graph.problems["fit"].module.weight.detach(), torch.get_rng_state()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


def by_numpy(module):
    module.weight.detach().numpy()[:] *= 0.5


def by_number(module):
    module.weight.data.mul_(1 / module.weight.norm().item())


def by_dropout(module):
    module.weight.data.copy_(torch.rrelu(module.weight.data, training=True))


REFUSED = {
    "numpy": (by_numpy, "something other than torch's operators"),
    "a number": (by_number, "a number was taken out of a tensor"),
    "chance": (by_dropout, "draws random numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("where", ["hook", "callback"])
def test_what_cannot_be_followed_is_refused_by_name(name, where):
    act, message = REFUSED[name]
    engine = engine_of(
        hooked(after=act if where == "hook" else None),
        Dense(),
        callbacks=[Told(act)] if where == "callback" else [],
        recorded_steps=STEPS,
    )
    with pytest.raises(SolveError, match=rf"level 'fit'.*{message}"):
        engine.solve_hypergradient("up", {"fit": Unrolled()})


def test_what_changes_nothing_is_not_refused():
    def look(module):
        module.weight.norm().item()
        module.weight.detach().numpy().sum()
        F.dropout(module.weight)

    check(hypergradient(hooked(look, look), Unrolled(), callbacks=[Told(look)]), written_out(descent()))


def test_parameters_changed_between_updates_are_refused():
    engine = engine_of(hooked(), Unrolled())
    engine.graph.problems["fit"].module.weight.data.mul_(2)
    with pytest.raises(SolveError, match=r"level 'fit'.*parameters were changed after an update"):
        engine.hypergradient("up")


def test_a_callback_may_ask_for_a_hypergradient():
    class Asks(Callback):
        def on_update(self, engine, update):
            if update.level == "fit":
                self.values = engine.hypergradient("up")["log"]
                shrink(engine.graph.problems["fit"].module)

    found = hypergradient(hooked(), Unrolled(), callbacks=[Asks()])
    check(found, written_out(descent(after=PROJECTIONS["shrink"][1])))
