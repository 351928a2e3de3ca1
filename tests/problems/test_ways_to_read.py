"""Every way to read a level in a loss is the level at the substituted point: compared with plain PyTorch."""

import copy

import pytest
import torch
from plain_bilevel import (
    DAMPING,
    SOLVERS,
    X_VALIDATION,
    Y_VALIDATION,
    Case,
    X,
    Y,
    check,
    engine_of,
    flat,
    hypergradient,
    trained,
    true_hypergradient,
    variables,
)
from plain_modules import (
    Attention,
    Centred,
    Counting,
    Network,
    Normalized,
    Scaled,
    Softplus,
    Strength,
    Tied,
    Wrapper,
    batch_normed,
    frozen_bias,
    linear,
    making,
    parameters,
    sequential,
    shared_buffer,
    squares,
    strengths,
    vit,
)
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrizations, parametrize

from multilevel.problems.errors import GraphError

pytestmark = pytest.mark.usefixtures("double_precision", "fresh_compiler")


def row(name, read=lambda levels: squares([levels.fit.weight]), fit=linear, up=Strength, **keywords):
    """A case whose losses hold what ``read`` reads of ``fit``, times the strength, alone and in a product.

    ``predict`` and ``strength`` are other ways to call ``fit`` and to read ``up``.
    """
    predict = keywords.pop("predict", lambda levels, x: levels.fit(x))
    strength = keywords.pop("strength", lambda levels: levels.up.log.exp())
    make, plain = keywords.pop("make", making(fit, up)), keywords.pop("plain", None)

    def loss(levels, batch):
        error = (predict(levels, batch[0]) - batch[1]).square().mean()
        return error + strength(levels) * read(levels) * (1 + error)

    return Case(name, make, loss, loss, plain=plain and making(plain, up), **keywords)


def called_with(levels, changed):
    return functional_call(levels.fit, changed, (X,)).square().mean()


def decay(levels):
    return squares(p for module in (levels.fit, levels.up) for p in module.parameters() if p.requires_grad)


def without_gradient(levels):
    with torch.no_grad():
        return squares(levels.fit.parameters()) + levels.fit(X).square().mean()


def recurrent(levels, x):
    return levels.fit(x.view(-1, 5, 4))[0].sum(-1).view(-1, 1)


def patches(levels, x):
    return levels.fit(x.view(-1, 1, 2, 2)).last_hidden_state[:, 0].sum(-1, keepdim=True)


def every(levels):
    return squares(levels.fit.parameters())


def first(levels):
    return squares([levels.fit.first.weight])


ROWS = [
    row("call", lambda levels: levels.fit(X).square().mean()),
    row("attribute", lambda levels: squares([levels.fit.weight, levels.fit.bias])),
    row("attribute of a submodule", first, Network),
    row(
        "levels['fit']", lambda levels: squares([levels["fit"].weight]), strength=lambda levels: levels["up"].log.exp()
    ),
    row("getattr", lambda levels: squares([getattr(getattr(levels, "fit"), "weight")])),  # noqa: B009
    row(
        "isinstance",
        lambda levels: squares([levels.fit.weight]) if isinstance(levels.fit, nn.Linear) else levels.fit.bias.sum(),
    ),
    row("parameters", every, Network),
    row("parameters of the upper level", every, strength=lambda levels: next(levels.up.parameters()).exp()),
    row("named_parameters", lambda levels: squares(p for _, p in levels.fit.named_parameters()), Network),
    row("modules", lambda levels: squares(m.weight for m in levels.fit.modules() if isinstance(m, nn.Linear)), Network),
    row("named_modules", lambda levels: squares(dict(levels.fit.named_modules())["last"].parameters()), Network),
    row("children", lambda levels: squares(m.weight for m in levels.fit.children()), Network),
    row("named_children", lambda levels: squares(dict(levels.fit.named_children())["first"].parameters()), Network),
    row(
        "parameters_to_vector",
        lambda levels: squares([nn.utils.parameters_to_vector(levels.fit.parameters())]),
        Network,
    ),
    row("get_parameter", lambda levels: squares([levels.fit.get_parameter("first.weight")]), Network),
    row("get_submodule", lambda levels: squares(levels.fit.get_submodule("first").parameters()), Network),
    row("__dict__", lambda levels: squares(levels.fit.__dict__["_parameters"].values())),
    row("vars", lambda levels: squares(vars(levels.fit)["_modules"]["first"].parameters()), Network),
    row("_parameters", lambda levels: squares([levels.fit._parameters["weight"]])),
    row(
        "copy of the module",
        lambda levels: copy.copy(levels.fit)(X).square().mean() + squares(copy.copy(levels.fit).parameters()),
    ),
    row("functional_call, its own parameters", lambda levels: called_with(levels, {})),
    row("functional_call, named_parameters", lambda levels: called_with(levels, dict(levels.fit.named_parameters()))),
    row(
        "functional_call, other values",
        lambda levels: called_with(levels, {"weight": levels.fit.weight * levels.up.log.exp()}),
    ),
    row(
        "stack_module_state, which detaches",
        lambda levels: squares(stack_module_state([levels.fit, levels.fit])[0].values()),
    ),
    row("no_grad", without_gradient),
    row("detach", lambda levels: squares(p.detach() for p in levels.fit.parameters())),
    row("requires_grad", decay, frozen_bias),
    row("is_grad_enabled", lambda levels: every(levels) * (1 if torch.is_grad_enabled() else 3)),
    row("property", lambda levels: levels.fit.norm, Network, strength=lambda levels: levels.up.value),
    row("lambda", every, strength=lambda levels: levels.up.by_lambda()),
    row("method", lambda levels: levels.fit.penalty(), Network, strength=lambda levels: levels.up.method()),
    row("call of the upper level", every, strength=lambda levels: levels.up()),
    row("get_input_embeddings", lambda levels: squares(levels.fit.get_input_embeddings().parameters()), Network),
    row("tied weights", lambda levels: squares([levels.fit.encoder.weight]), Tied),
    row("tied weights, second name", lambda levels: squares([levels.fit.decoder.weight]), Tied),
    row("tied weights, second module", lambda levels: levels.fit.decoder(X).square().mean(), Tied),
    row("wrapper", every, lambda: Wrapper(linear())),
    row("attribute through a wrapper", fit=lambda: Wrapper(linear())),
    row("compiled module", fit=lambda: torch.compile(linear(), backend="eager"), plain=linear),
    row("Sequential index", lambda levels: squares([levels.fit[0].weight, levels.fit[-1].bias]), sequential),
    row("Sequential slice", lambda levels: levels.fit[:2](X).square().mean(), sequential),
    row("Sequential iteration", lambda levels: squares(p for m in levels.fit for p in m.parameters()), sequential),
    row("Sequential len", lambda levels: squares([levels.fit[len(levels.fit) - 1].weight]), sequential),
    row(
        "ModuleList",
        lambda levels: squares([levels.fit[0].weight]) * len(levels.fit),
        lambda: nn.ModuleList([linear(), linear()]),
        predict=lambda levels, x: sum(torch.tanh(layer(x)) for layer in levels.fit),
    ),
    row(
        "ModuleDict",
        lambda levels: squares(p for _, m in levels.fit.items() for p in m.parameters()) * len(levels.fit),
        lambda: nn.ModuleDict({"body": nn.Linear(4, 3), "head": nn.Linear(3, 1)}),
        predict=lambda levels, x: levels.fit["head"](torch.tanh(levels.fit["body"](x))) if "head" in levels.fit else x,
    ),
    row("ParameterDict", up=strengths, strength=lambda levels: levels.up["log"].exp() * levels.up.more),
    row(
        "ParameterDict iteration",
        up=strengths,
        strength=lambda levels: sum(levels.up[name].exp() for name in levels.up),
    ),
    row("ParameterDict items", up=strengths, strength=lambda levels: sum(p.exp() for _, p in levels.up.items())),
    row(
        "ParameterList",
        up=parameters(nn.ParameterList, -1.0, 0.5),
        strength=lambda levels: levels.up[0].exp() * levels.up[-1],
    ),
    row(
        "ParameterList iteration",
        up=parameters(nn.ParameterList, -1.0, 0.5),
        strength=lambda levels: sum(p.exp() for p in levels.up) / len(levels.up),
    ),
    row("bare parameter above", up=lambda: nn.Parameter(torch.tensor(-1.0)), strength=lambda levels: levels.up.exp()),
    row(
        "bare parameter below",
        lambda levels: squares([levels.fit]),
        lambda: nn.Parameter(torch.randn(4, 1)),
        predict=lambda levels, x: torch.tanh(x @ levels.fit),
    ),
    row("LSTM", every, lambda: nn.LSTM(4, 2, batch_first=True), predict=recurrent),
    row(
        "LSTM all_weights",
        lambda levels: squares(weight for layer in levels.fit.all_weights for weight in layer),
        lambda: nn.LSTM(4, 2, batch_first=True),
        predict=recurrent,
    ),
    row(
        "GRU",
        lambda levels: squares([levels.fit.weight_hh_l0]),
        lambda: nn.GRU(4, 2, batch_first=True),
        predict=recurrent,
    ),
    row("MultiheadAttention", lambda levels: squares([levels.fit.attention.in_proj_weight]), Attention),
    row(
        "transformers' ViT",
        lambda levels: squares(levels.fit.get_input_embeddings().parameters()),
        vit,
        predict=patches,
    ),
    row(
        "register_parametrization",
        fit=lambda: parametrize.register_parametrization(linear(), "weight", Softplus()),
    ),
    row(
        "ParametrizationList",
        lambda levels: squares([levels.fit.parametrizations.weight.original, levels.fit.parametrizations.weight()]),
        lambda: parametrize.register_parametrization(linear(), "weight", Softplus()),
    ),
    row("weight_norm", fit=lambda: parametrizations.weight_norm(nn.Linear(4, 2)), plain=Normalized),
    row("weight_norm, old form", fit=lambda: nn.utils.weight_norm(nn.Linear(4, 2)), plain=Normalized),
    row("spectral_norm, training", first, lambda: Network(parametrizations.spectral_norm), lacks={"forward": "div"}),
    row("spectral_norm, evaluation", first, lambda: Network(parametrizations.spectral_norm).eval()),
    row("buffer", lambda levels: squares([levels.fit.weight * levels.fit.scale, *levels.fit.buffers()]), Scaled),
    row(
        "buffer of two levels",
        lambda levels: squares([levels.fit.weight * levels.up.scale]),
        make=shared_buffer(Scaled),
    ),
    row("buffer assigned anew", lambda levels: every(levels) + levels.fit.center.square().sum(), Centred),
]


def test_the_truth_is_the_closed_form_of_ridge_regression():
    torch.manual_seed(0)
    case = Case(
        "ridge",
        making(lambda: nn.Linear(4, 1, bias=False), Strength),
        lambda levels, b: (
            (levels.fit(b[0]) - b[1]).square().sum() / 2 + levels.up.log.exp() * squares([levels.fit.weight]) / 2
        ),
        lambda levels, b: (levels.fit(b[0]) - b[1]).square().sum() / 2,
    )
    w, penalty = case.make()["fit"].weight.detach().T, torch.tensor(-1.0).exp()
    cotangent = X_VALIDATION.T @ (X_VALIDATION @ w - Y_VALIDATION)
    inverse = torch.linalg.inv(X.T @ X + (penalty + DAMPING) * torch.eye(4))
    assert true_hypergradient(case).item() == pytest.approx((-penalty * w.T @ cotangent).item(), rel=1e-12)
    damped = true_hypergradient(case, DAMPING).item()
    assert damped == pytest.approx((-penalty * w.T @ inverse @ cotangent).item(), rel=1e-12)
    gradient = X.T @ (X @ w - Y) + penalty * w
    assert torch.allclose(trained(case)["fit"].weight.T, w - 0.1 * gradient, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ROWS, ids=repr)
def test_the_hypergradient_is_that_of_plain_torch(case, solver):
    check(case, solver, engine_of(case, SOLVERS[solver]()))


@pytest.mark.parametrize("case", ROWS, ids=repr)
def test_an_update_is_that_of_plain_torch(case):
    engine = engine_of(case, SOLVERS["dense"]())
    engine.run(1)
    value, expected = (flat(variables(m)) for m in (engine.graph.problems["fit"].module, trained(case)["fit"]))
    assert torch.allclose(value, expected, rtol=1e-10, atol=1e-14)


MOVING = [
    row("BatchNorm", every, batch_normed),
    row("buffer assigned anew", fit=Centred),
    row("buffer changed in place", fit=Counting),
    row("spectral_norm", first, lambda: Network(parametrizations.spectral_norm)),
    row(
        "buffer of two levels",
        lambda levels: squares([levels.fit.weight * levels.up.scale]),
        make=shared_buffer(Counting),
    ),
]


@pytest.mark.parametrize("case", MOVING, ids=repr)
def test_buffers_move_as_in_plain_torch(case):
    engine = engine_of(case, SOLVERS["dense"](), steps=3)
    engine.run(2)
    expected = trained(case, updates=6)
    for level, problem in engine.graph.problems.items():
        values = dict(problem.module.named_buffers())
        assert list(values) == [name for name, _ in expected[level].named_buffers()]
        for name, buffer in expected[level].named_buffers():
            assert torch.allclose(values[name], buffer, rtol=1e-10, atol=1e-14), f"{level}.{name}"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", MOVING, ids=repr)
def test_a_hypergradient_moves_no_buffer(case, solver):
    engine = engine_of(case, SOLVERS[solver]())
    engine.run(1)
    modules = [problem.module for problem in engine.graph.problems.values()]
    before = [buffer.clone() for module in modules for buffer in module.buffers()]
    first_value, second = hypergradient(engine), hypergradient(engine)
    assert torch.equal(first_value, second)
    after = [buffer for module in modules for buffer in module.buffers()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_an_upper_level_read_through_state_dict_is_refused():
    case = row("state_dict", strength=lambda levels: levels.up.state_dict()["log"].exp())
    with pytest.raises(GraphError, match="'up'"):
        engine_of(case._replace(f=lambda levels, b: (levels.fit(b[0]) - b[1]).square().mean()), SOLVERS["dense"]())
