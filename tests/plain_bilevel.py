"""Bilevel problems in plain PyTorch: the truth about what a loss says, computed without this package.

The truth evaluates a loss on real modules in place of ``levels``. ``engine_of`` gives the same loss to an engine.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multilevel import Engine, Graph, Problem
from multilevel.solvers import Dense, Identity, ProductError

RATE, DAMPING = 0.1, 1.0
#: Solvers of the lower level; None leaves the choice to the package, whose default is Identity with scale 1.
SOLVERS = {
    "default": lambda: None,
    "dense": lambda: Dense(damping=DAMPING),
    "forward": lambda: Identity(product="forward"),
    "finite_difference": lambda: Identity(product="finite_difference"),
}
#: Of a hypergradient, in the norm of the whole: exact products up to rounding, differences up to their truncation.
TOLERANCES = {"default": 1e-9, "dense": 1e-9, "forward": 1e-9, "finite_difference": 1e-6}

_generator = torch.Generator().manual_seed(0)


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


X, Y, X_VALIDATION, Y_VALIDATION = _randn(30, 4), _randn(30, 1), _randn(20, 4), _randn(20, 1)


class Modules(dict):
    """Real modules by name, read as losses read levels: ``levels.NAME`` or ``levels["NAME"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Case(NamedTuple):
    """A bilevel problem over the levels ``fit`` (lower) and ``up`` (upper).

    Attributes:
        name: of the row.
        make: new modules by level's name, the same at every call.
        g: (levels, batch) to the lower loss.
        f: (levels, batch) to the upper loss.
        batch: (x, y) to a new batch.
        plain: modules that compute the same by operations that torch differentiates rightly; None takes ``make``.
        lacks: by solver's name, an operator without the derivative that the solver needs: it may be refused, by name.
    """

    name: str
    make: Callable[[], dict[str, Any]]
    g: Callable[..., Any]
    f: Callable[..., Any]
    batch: Callable[..., Any] = lambda x, y: (x.clone(), y.clone())
    plain: Callable[[], dict[str, Any]] | None = None
    lacks: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return self.name

    def modules(self) -> Modules:
        return Modules((self.plain or self.make)())

    def train(self) -> Any:
        return self.batch(X, Y)

    def validation(self) -> Any:
        return self.batch(X_VALIDATION, Y_VALIDATION)


def variables(module: Any) -> list[nn.Parameter]:
    """The parameters that a level trains; a bare parameter is its own."""
    parameters = [module] if isinstance(module, nn.Parameter) else module.parameters()
    return [parameter for parameter in parameters if parameter.requires_grad]


def scalar(value: Any) -> torch.Tensor:
    """A loss without its metrics."""
    return value[0] if isinstance(value, tuple) else value


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def derivative(value: torch.Tensor, inputs: list[nn.Parameter], **keywords: Any) -> torch.Tensor:
    """The gradient of a scalar in ``inputs`` as one vector; 0 where it does not depend on one."""
    if not value.requires_grad:
        return torch.zeros_like(flat(inputs))
    return flat(torch.autograd.grad(value, inputs, materialize_grads=True, **keywords))


def true_hypergradient(case: Case, damping: float | None = None) -> torch.Tensor:
    """The hypergradient of ``up`` as a vector: dF/du - d/du <dg/dp, x>, by double backward.

    x is dF/dp without a damping (the identity in place of the inverse Hessian), and with one it solves
    ``(H + damping I) x = dF/dp`` for the Hessian H written out.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the attention kernel with a second derivative
        levels = case.modules()
        loss = scalar(case.f(levels, case.validation()))
        cotangent = derivative(loss, variables(levels.fit), retain_graph=True)
        direct = derivative(loss, variables(levels.up))
        levels = case.modules()  # anew: the loss may have moved buffers
        slope = derivative(scalar(case.g(levels, case.train())), variables(levels.fit), create_graph=True)
    if damping is not None:
        rows = [derivative(entry, variables(levels.fit), retain_graph=True) for entry in slope]
        cotangent = torch.linalg.solve(torch.stack(rows) + damping * torch.eye(len(slope)), cotangent)
    return direct - derivative(slope @ cotangent, variables(levels.up))


def trained(case: Case, updates: int = 1) -> Modules:
    """The modules after gradient descent on the lower loss by torch's own optimizer."""
    levels = case.modules()
    optimizer = torch.optim.SGD(variables(levels.fit), RATE)
    for _ in range(updates):
        optimizer.zero_grad()
        scalar(case.g(levels, case.train())).backward()
        optimizer.step()
    return levels


class Written(Problem):
    """A level whose loss is a function of (levels, batch)."""

    def __init__(self, name: str, module: Any, function: Callable[..., Any], **keywords: Any) -> None:
        super().__init__(name, module, **keywords)
        self.function = function

    def loss(self, levels: Any, batch: Any, draws: Any) -> Any:
        return self.function(levels, batch)


def engine_of(case: Case, solver: Any = None, modules: Mapping[str, Any] | None = None, **keywords: Any) -> Engine:
    """An engine on the case; the upper level stays where it is. ``keywords`` are of the lower level."""
    modules = modules or case.make()
    sgd = {name: torch.optim.SGD(variables(module), RATE * (name == "fit")) for name, module in modules.items()}
    keywords = {"data": [case.train()], "optimizer": sgd["fit"], **keywords}
    lower = Written("fit", modules["fit"], case.g, solver=solver, **keywords)
    upper = Written("up", modules["up"], case.f, optimizer=sgd["up"], data=[case.validation()])
    return Engine(Graph(lower, upper))


def hypergradient(engine: Engine) -> torch.Tensor:
    return flat(engine.hypergradient("up").values())


def value_or_error(compute: Callable[[], Any], kind: type[Exception]) -> Any:
    """What ``compute`` returns, or the text of its error."""
    try:
        return compute()
    except kind as error:
        return str(error)


def check(case: Case, solver: str, engine: Engine) -> None:
    """Assert that the hypergradient is the true one, or that what torch cannot differentiate is refused by name."""
    expected = true_hypergradient(case, DAMPING if solver == "dense" else None)
    for _ in range(2):  # the second as the first: nothing that a loss does to its batch lasts
        value = value_or_error(lambda: hypergradient(engine), ProductError)
        if isinstance(value, str):
            assert case.lacks.get(solver, "no refusal") in value, value
            return
        assert relative_error(value, expected) < TOLERANCES[solver]


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()
