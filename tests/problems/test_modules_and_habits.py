"""Modules and habits that PyTorch users have: hypergradients those of plain PyTorch, or an error that names why."""

import pytest
import torch
from plain_bilevel import (
    RATE,
    SOLVERS,
    Case,
    Written,
    X,
    Y,
    check,
    engine_of,
    flat,
    hypergradient,
    relative_error,
    trained,
    true_hypergradient,
    value_or_error,
    variables,
)
from plain_modules import (
    Checkpointed,
    Dora,
    Network,
    OnceSine,
    Rounded,
    Sine,
    Strength,
    Student,
    TwiceSine,
    Weight,
    linear,
    making,
    sequential,
    squares,
)
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional as F

from multilevel import Engine, Graph
from multilevel.problems.errors import GraphError, LossError
from multilevel.solvers import MultilevelError, ProductError, Unrolled

pytestmark = pytest.mark.usefixtures("double_precision", "fresh_compiler")


def mse(levels, batch):
    return (levels.fit(batch[0]) - batch[1]).square().mean()


def weighted(levels, batch):
    return levels.up.log.exp() * mse(levels, batch)


def penalized(levels, batch):
    return mse(levels, batch) + levels.up.log.exp() * squares(levels.fit.parameters())


def through_the_input(levels, batch):
    return mse(levels, (batch[0] * levels.up.log.exp(), batch[1])) + 0.1 * squares(levels.fit.parameters())


def meta_weight_net(levels, batch):
    each = (levels.fit(batch[0]) - batch[1]).square()
    return (levels.up(each.detach()) * each).mean()


def focal(levels, batch):
    each = (levels.fit(batch[0]) - batch[1]).square()
    return (each.detach() ** levels.up.log.exp() * each).mean()


def pseudo_labels(levels, batch):
    logits = levels.fit(batch[0])
    return mse(levels, batch) + levels.up.log.exp() * F.cross_entropy(logits, (2 * logits).softmax(1).detach())


def td_targets(levels, batch):
    target = batch[1] + levels.up.log.exp() * levels.fit(batch[0].flip(0)).detach()
    return (levels.fit(batch[0]) - target).square().mean()


def teacher_without_gradient(levels, batch):
    with torch.no_grad():
        target = levels.fit.teacher(batch[0]) + levels.fit(batch[0].flip(0))
    return mse(levels, batch) + levels.up.log.exp() * (levels.fit(batch[0]) - target).square().mean()


def with_metrics(levels, batch):
    loss = penalized(levels, batch)
    return loss, {"detached": loss.detach(), "number": loss.item()}


def divided_by_item(levels, batch):
    loss = mse(levels, batch)
    return levels.up.log.exp() * loss / (1 + loss.item())


def data_attribute(levels, batch):
    return mse(levels, batch) * (1 + levels.up.log.exp() * levels.fit.weight.data.square().sum())


def input_gradient(levels, batch):
    x = batch[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(levels.fit(x).sum(), x, create_graph=True)
    return mse(levels, batch) + levels.up.log.exp() * slope.square().mean()


def own_gradient(levels, batch):
    slopes = torch.autograd.grad(mse(levels, batch), list(levels.fit.parameters()), create_graph=True)
    return mse(levels, batch) + levels.up.log.exp() * squares(slopes)


def functional_gradient(levels, batch):
    slopes = vmap(grad(lambda z: levels.fit(z).sum()))(batch[0])
    return mse(levels, batch) + levels.up.log.exp() * slopes.square().mean()


def vectorized(levels, batch):
    return weighted(levels, batch) + vmap(levels.fit)(batch[0]).square().mean() * levels.up.log


def popped(levels, batch):
    y = batch.pop("y")
    return penalized(levels, (batch["x"], y))


def changed_in_place(levels, batch):
    batch[0].mul_(1.1)
    return penalized(levels, batch)


def norm(layer):
    return lambda: nn.Sequential(nn.Linear(4, 4), layer(), nn.Tanh(), nn.Linear(4, 1))


def compiled_in_place():
    network = sequential()
    network.compile(backend="aot_eager")
    return network


def row(name, g, fit=linear, f=mse, up=Strength, plain=None, **keywords):
    return Case(name, making(fit, up), g, f, plain=plain and making(plain, up), **keywords)


ROWS = [
    row("Meta-Weight-Net", meta_weight_net, Network, up=Weight),
    row("focal weight", focal, Network),
    row("pseudo-labels", pseudo_labels, lambda: nn.Linear(4, 3)),
    row("TD targets", td_targets, Network),
    row("DoRA", weighted, Dora),
    row("straight-through", weighted, Rounded),
    row("teacher under no_grad", teacher_without_gradient, Student),
    row("metrics", with_metrics, Network, f=with_metrics),
    row("item", divided_by_item, Network),
    row("data", data_attribute),
    row("LayerNorm", weighted, norm(lambda: nn.LayerNorm(4))),
    row("BatchNorm", weighted, norm(lambda: nn.BatchNorm1d(4))),
    row("BatchNorm, evaluation", weighted, lambda: norm(lambda: nn.BatchNorm1d(4))().eval()),
    row("GroupNorm", weighted, norm(lambda: nn.GroupNorm(2, 4))),
    row("checkpoint beside", penalized, Checkpointed, plain=Network),
    row("checkpoint through", through_the_input, Checkpointed, plain=Network),
    row("torch.compile(module)", weighted, lambda: torch.compile(sequential(), backend="aot_eager"), plain=sequential),
    row("module.compile()", weighted, compiled_in_place, plain=sequential),
    row("batch.pop", popped, f=popped, batch=lambda x, y: {"x": x.clone(), "y": y.clone()}),
    row("batch changed in place", changed_in_place, f=changed_in_place),
    row("gradient in the input", input_gradient, Network, lacks={"forward": "forward mode"}),
    row("gradient in the level's parameters", own_gradient, Network, lacks={"forward": "forward mode"}),
    row("gradient in the level's parameters, above", penalized, Network, f=own_gradient),
    row("torch.func.grad", functional_gradient, Network),
    row("vmap", vectorized, Network, lacks={"forward": "forward mode"}),
    row("autograd.Function", weighted, lambda: Sine(TwiceSine.apply), lacks={"forward": "TwiceSine"}, plain=Sine),
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ROWS, ids=repr)
def test_the_hypergradient_is_that_of_plain_torch(case, solver):
    check(case, solver, engine_of(case, SOLVERS[solver]()))


@pytest.mark.parametrize("case", ROWS, ids=repr)
def test_an_update_is_that_of_plain_torch(case):
    engine = engine_of(case, SOLVERS["finite_difference"]())  # the product that takes every row
    engine.run(1)
    value, expected = (flat(variables(m)) for m in (engine.graph.problems["fit"].module, trained(case)["fit"]))
    assert torch.allclose(value, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_once_differentiable_is_refused_by_name_or_right(solver):
    engine = engine_of(row("once", weighted, lambda: Sine(OnceSine.apply)), SOLVERS[solver]())
    if solver in ("dense", "forward"):
        with pytest.raises(ProductError, match="OnceSine"):
            hypergradient(engine)
        return
    value = value_or_error(lambda: hypergradient(engine), ProductError)
    if isinstance(value, str):
        assert solver == "default"
        assert "OnceSine" in value
    else:
        assert relative_error(value, true_hypergradient(row("sine", weighted, Sine))) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_dropout_is_replayed(solver):
    fit = norm(lambda: nn.Dropout(0.5))
    engine = engine_of(row("dropout", penalized, fit), SOLVERS[solver]())
    engine.run(2)
    values = [hypergradient(engine) for _ in range(2)]
    assert values[0].any()
    assert torch.equal(*values)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_generator_of_its_own_is_replayed_or_refused(solver):
    generator = torch.Generator().manual_seed(0)

    def noisy(levels, batch):
        noise = torch.randn(batch[0].shape, generator=generator)
        return weighted(levels, (batch[0] + 0.3 * noise, batch[1]))

    def repeated():
        engine = engine_of(row("generator", noisy), SOLVERS[solver]())
        engine.run(2)
        return [hypergradient(engine) for _ in range(3)]

    values = value_or_error(repeated, LossError)
    if isinstance(values, str):
        assert "enerator" in values
    else:
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_grad_around_an_engine_changes_no_number(solver):
    results = []
    for gradients in (True, False):
        engine = engine_of(row("no_grad", penalized, Network), SOLVERS[solver](), steps=2)
        with torch.set_grad_enabled(gradients):
            engine.run(2)
            value = hypergradient(engine)
        results.append([value, *variables(engine.graph.problems["fit"].module)])
    assert results[0][0].any()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("act", [lambda engine: engine.run(1), hypergradient], ids=["run", "hypergradient"])
def test_inference_mode_is_refused_by_name(act):
    engine = engine_of(row("inference", penalized), SOLVERS["dense"]())
    with torch.inference_mode(), pytest.raises(MultilevelError, match=r"inference.mode"):
        act(engine)


def later(levels, batch):
    """Reads the upper level on some batches only."""
    return penalized(levels, batch) if batch[2] else mse(levels, batch)


def beside(levels, batch):
    """Depends on the upper level whatever the lower loss reads."""
    return mse(levels, batch) + 0.1 * levels.up.log.square()


@pytest.mark.parametrize(
    ("f", "reads"), [(mse, None), (beside, None), (mse, ("up",))], ids=["found", "found beside", "pinned"]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_read_of_a_later_batch_is_found(solver, f, reads):
    case = row("later", later, f=f)
    engine = engine_of(case, SOLVERS[solver](), data=[(X, Y, False), (X, Y, True)], steps=2, reads=reads)
    engine.run(1)

    def at_the_point():
        modules = case.make()
        for name, problem in engine.graph.problems.items():
            modules[name].load_state_dict(problem.module.state_dict())
        return modules

    truth = case._replace(plain=at_the_point, batch=lambda x, y: (x, y, True))
    check(truth, solver, engine)


#: By (level, parameter): losses that hold a raw parameter, captured before; ``p`` are parameters by name.
CAPTURED = {
    ("fit", "first.weight"): lambda p: {
        "g": lambda levels, batch: penalized(levels, batch) + squares([p["fit.first.weight"]])
    },
    ("fit", "last.bias"): lambda p: {"f": lambda levels, batch: mse(levels, batch) + squares([p["fit.last.bias"]])},
    ("up", "log"): lambda p: {
        "g": lambda levels, batch: penalized(levels, batch) + p["up.log"].exp() * squares(levels.fit.parameters())
    },
}


@pytest.mark.parametrize(("level", "parameter"), CAPTURED, ids=".".join)
def test_a_captured_parameter_is_refused_by_name(level, parameter):
    case = row("captured", penalized, Network)
    modules = case.make()
    raw = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
    case = case._replace(**CAPTURED[level, parameter](raw))

    def train():
        engine_of(case, SOLVERS["dense"](), modules).run(1)

    with pytest.raises(MultilevelError, match=rf"(?=.*\b{level}\b).*\b{parameter}\b"):
        train()


class Adapting(Written):
    """Starts from another level's weights."""

    start: nn.Module

    def begin(self):
        self.module.load_state_dict(self.start.state_dict())


def copying_maml(reads=None):
    modules = making(linear, linear)()
    sgd = {name: torch.optim.SGD(module.parameters(), RATE) for name, module in modules.items()}
    keywords = {"optimizer": sgd["fit"], "data": [(X, Y)], "steps": 3, "solver": Unrolled(steps=3), "reads": reads}
    lower = Adapting("fit", modules["fit"], mse, **keywords)
    lower.start = modules["up"]
    return Engine(Graph(lower, Written("up", modules["up"], mse, optimizer=sgd["up"], data=[(X, Y)])))


def learned_rate(reads=None):
    case = row("learned rate", mse)
    modules = case.make()
    optimizer = torch.optim.SGD(modules["fit"].parameters(), modules["up"].log.exp())
    return engine_of(case, Unrolled(steps=3), modules, optimizer=optimizer, steps=3, reads=reads)


def state_dict(reads=None):
    def g(levels, batch):
        return mse(levels, batch) + levels.up.state_dict()["log"].exp() * squares(levels.fit.parameters())

    return engine_of(row("state_dict", g), SOLVERS["dense"](), reads=reads)


def listed_top_first():
    modules = making(linear, Strength)()
    sgd = {name: torch.optim.SGD(module.parameters(), RATE) for name, module in modules.items()}
    up = Written("up", modules["up"], mse, optimizer=sgd["up"], data=[(X, Y)], solver=SOLVERS["dense"]())
    return Engine(Graph(up, Written("fit", modules["fit"], penalized, optimizer=sgd["fit"], data=[(X, Y)])))


@pytest.mark.parametrize("make", [copying_maml, learned_rate, state_dict, listed_top_first])
def test_an_upper_level_that_can_never_move_is_refused(make):
    with pytest.raises(GraphError, match="'up'"):
        make()


@pytest.mark.parametrize("make", [copying_maml, learned_rate, state_dict])
def test_a_pinned_dependency_is_believed(make):
    assert make(reads=("up",)).graph.reads["fit"] == ("up",)
