"""What a forward pass writes to: frozen parameters move once an update, as in plain PyTorch; the rest is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from multilevel import Engine, Graph, Problem
from multilevel.problems.errors import GraphError, LossError
from multilevel.solvers import Dense, FiniteDifference, Identity

generator = torch.Generator().manual_seed(0)
X, Y = (torch.randn(12, size, generator=generator, dtype=torch.float64) for size in (3, 2))


class Student(nn.Module):
    """A student and its teacher, a moving average that the forward pass updates in one of three ways."""

    def __init__(self, way, copied=False):
        super().__init__()
        torch.manual_seed(1)
        self.student, self.teacher = nn.Linear(3, 2).double(), nn.Linear(3, 2).double().requires_grad_(False)
        if copied:  # the first move changes no number
            self.teacher.load_state_dict(self.student.state_dict())
        self.way, self.calls = way, 0

    def forward(self, x):
        with torch.no_grad():
            for mean, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                if self.way == "assigned":  # as MoCo
                    mean.data = mean.data * 0.9 + value.data * 0.1
                elif self.way == "later" and self.calls == 0:
                    continue
                elif self.way == "copied":
                    mean.copy_(value)
                elif self.way == "in place":  # as DINO
                    mean.data.mul_(0.9).add_(0.1 * value.detach().data)
                else:
                    mean.lerp_(value, 0.1)
            target = self.teacher(x)
        self.calls += 1
        return self.student(x), target


class Strength(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))


def distilled(module, strength, batch):
    prediction, target = module(batch[0])
    return mse_loss(prediction, batch[1]) + strength.log.exp() * mse_loss(prediction, target)


class Fit(Problem):
    def loss(self, levels, batch, draws):
        return distilled(levels.fit, levels.strength, batch)


class Choose(Problem):
    def loss(self, levels, batch, draws):
        return mse_loss(levels.fit.student(batch[0]), batch[1]) + levels.strength.log.square()


def engine_of(module, solver=None, steps=1):
    strength = Strength()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    lower = Fit("fit", module, optimizer=optimizer, data=[(X, Y)], solver=solver, steps=steps)
    upper = Choose("strength", strength, optimizer=torch.optim.SGD(strength.parameters(), 0.0), data=[(-X, Y)])
    return Engine(Graph(lower, upper))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("way", ["assigned", "in place", "lerp", "copied"])
@pytest.mark.parametrize(
    "solver", [None, Dense(damping=1.0), FiniteDifference(), Identity(product="reverse")], ids=lambda one: str(one)
)
def test_a_moving_average_of_weights_moves_once_an_update(way, solver, copied):
    module, plain = Student(way, copied), Student(way, copied)
    engine = engine_of(module, solver)
    optimizer = torch.optim.SGD(plain.student.parameters(), 0.1)
    for _ in range(5):
        engine.run(1)
        engine.hypergradient("strength")
        optimizer.zero_grad()
        distilled(plain, Strength(), (X, Y)).backward()
        optimizer.step()
    for (name, value), (_, expected) in zip(module.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("way", ["assigned", "in place", "lerp", "copied"])
@pytest.mark.parametrize("product", ["forward", "reverse", "finite_difference"])
def test_the_hypergradient_of_a_moving_average_is_that_of_plain_torch(way, product, copied):
    module = Student(way, copied)
    engine = engine_of(module, Identity(product=product))
    engine.run(1)
    plain = copy.deepcopy(module)
    strength = Strength()
    own = list(plain.student.parameters())
    slopes = torch.autograd.grad(distilled(plain, strength, (X, Y)), own, create_graph=True)
    cotangents = torch.autograd.grad(mse_loss(plain.student(-X), Y), own)
    along = sum((slope * cotangent).sum() for slope, cotangent in zip(slopes, cotangents, strict=True))
    expected = 2 * strength.log.detach() - torch.autograd.grad(along, strength.log)[0]
    found = engine.hypergradient("strength")["log"]
    torch.testing.assert_close(found, expected, rtol=1e-7 if product == "finite_difference" else 1e-12, atol=0)


def test_a_teacher_that_is_left_alone_at_first_is_refused_where_it_moves():
    module = Student("later")
    with pytest.raises(LossError, match=r"writes to the parameter 'teacher\.weight' .*, which it did not do before"):
        engine_of(module).run(1)


class Clipped(nn.Linear):
    """Weights that the forward pass keeps within a limit, which may be reached later."""

    def __init__(self, way, limit):
        super().__init__(3, 2)
        self.way, self.limit, self.calls = way, limit, 0

    def forward(self, x):
        self.calls += 1
        with torch.no_grad():
            if self.way == "data":
                self.weight.data.clamp_(-self.limit, self.limit)
            elif self.way == "in place":
                self.weight.clamp_(-self.limit, self.limit)
            elif self.way == "assigned":  # as EEGNet
                self.weight.data = torch.renorm(self.weight.data, 2, 0, self.limit)
            elif self.way == "foreach":
                torch._foreach_clamp_max_([self.weight], self.limit)
            elif self.calls > 1:  # in a later call
                self.weight.clamp_(-self.limit, self.limit)
        return super().forward(x)


class Registering(nn.Linear):
    def forward(self, x):
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.mean(0))
        return super().forward(x - self.mean)


class Ridge(Problem):
    def loss(self, levels, batch, draws):
        return mse_loss(levels.fit(batch[0]), batch[1]) + levels.strength.log.exp() * levels.fit.weight.square().sum()


class Validate(Problem):
    def loss(self, levels, batch, draws):
        return mse_loss(levels.fit(batch[0]), batch[1])


def ridge(module):
    strength = Strength()
    return Graph(
        Ridge("fit", module, optimizer=torch.optim.SGD(module.parameters(), 0.1), data=[(X, Y)]),
        Validate("strength", strength, optimizer=torch.optim.SGD(strength.parameters(), 0.1), data=[(-X, Y)]),
    )


@pytest.mark.parametrize("limit", [0.1, 10.0])
@pytest.mark.parametrize("way", ["data", "in place", "assigned", "foreach", "later"])
def test_writing_to_trained_weights_is_refused_and_leaves_them_as_they_were(way, limit):
    module = Clipped(way, limit).double()
    before = module.weight.detach().clone()
    with pytest.raises(LossError, match=r"level '\w+' writes to the parameter 'weight' of level 'fit'"):
        Engine(ridge(module)).hypergradient("strength")
    assert torch.equal(module.weight, before)


def test_registering_a_buffer_in_a_forward_pass_is_refused():
    module = Registering(3, 2).double()
    with pytest.raises(LossError, match="registers 'mean' in a module"):
        Engine(ridge(module))
    assert "mean" not in dict(module.named_buffers())
    module(X)
    Engine(ridge(module)).run(1)


def test_parameters_that_were_replaced_after_the_engine_was_made_are_named():
    module = nn.Linear(3, 2).double()
    engine = Engine(ridge(module))
    module.load_state_dict(module.state_dict(), assign=True)
    with pytest.raises(
        GraphError, match="level 'fit': its optimizer holds parameters that are no longer in its module"
    ):
        engine.run(1)


def test_a_script_module_is_refused():
    with pytest.raises(GraphError, match="TorchScript"):
        ridge(torch.jit.script(nn.Linear(3, 2).double()))


class Alone(Problem):
    def loss(self, levels, batch, draws):
        return mse_loss(levels.fit(batch[0]), batch[1])


def test_a_level_that_nothing_uses_is_a_warning():
    module, strength = nn.Linear(3, 2).double(), Strength()
    lower = Alone("fit", module, optimizer=torch.optim.SGD(module.parameters(), 0.1), data=[(X, Y)])
    upper = Validate("strength", strength, optimizer=torch.optim.SGD(strength.parameters(), 0.1), data=[(-X, Y)])
    with pytest.warns(UserWarning, match="level 'strength' will never change"):
        Engine(Graph(lower, upper))


class Popping(Problem):
    """Takes the labels out of a batch that says so."""

    def loss(self, levels, batch, draws):
        y = batch.pop("y") if batch["labelled"] else levels.fit(batch["x"]).detach()
        penalty = levels.strength.log.exp() * levels.fit.weight.square().sum()
        return mse_loss(levels.fit(batch["x"]), y) + penalty


def test_taking_a_tensor_out_of_a_later_batch_is_no_writing_to_it():
    module, strength = nn.Linear(3, 2).double(), Strength()
    data = [{"x": X, "y": Y, "labelled": labelled} for labelled in (False, True)]
    lower = Popping("fit", module, optimizer=torch.optim.SGD(module.parameters(), 0.1), data=data, steps=2)
    upper = Validate("strength", strength, optimizer=torch.optim.SGD(strength.parameters(), 0.1), data=[(-X, Y)])
    engine = Engine(Graph(lower, upper))
    engine.run(2)
    assert list(data[1]) == ["x", "y", "labelled"]
    assert engine.graph.problems["fit"].writes_to_batch is False
