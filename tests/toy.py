"""Small problems written as plain functions of vectors, and their hypergradients by dense linear algebra."""

import torch
from torch import nn

from multilevel import Graph, Problem


class Vector(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value.clone())


class Function(Problem):
    """A level whose loss is a function of all levels' vectors: ``function({name: vector})``."""

    def __init__(self, name, value, function, names, **keywords):
        super().__init__(name, Vector(value), **keywords)
        self.function = function
        self.names = names

    def loss(self, levels, batch, draws):
        return self.function({name: getattr(levels, name).value for name in self.names})


def toy_graph(functions, values, solvers, order=None):
    """Graph of the functions {name: function}, listed in ``order`` (theirs, where it is not given)."""
    names = list(order or functions)
    return Graph(*(Function(name, values[name], functions[name], names, solver=solvers.get(name)) for name in names))


def dense_hypergradient(functions, values, solved, top, inverses):
    """The adjoint pass with dense matrices.

    ``solved`` lists the levels below ``top`` in the order in which they are solved; ``inverses[name]`` maps a dense
    Hessian and a cotangent to what stands for the inverse Hessian times the cotangent.
    """
    point = {name: value.clone().requires_grad_() for name, value in values.items()}

    def gradients(loss):
        found = torch.autograd.grad(loss, list(point.values()), allow_unused=True)
        return {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(point.items(), found, strict=True)
        }

    cotangents = gradients(functions[top](point))
    for name in solved:
        gradient = torch.autograd.grad(functions[name](point), point[name], create_graph=True)[0]
        rows = [torch.autograd.grad(one, point[name], retain_graph=True)[0] for one in gradient]
        x = inverses[name](torch.stack(rows), cotangents.pop(name))
        mixed = gradients(gradient @ x.detach())
        cotangents = {other: value - mixed[other] for other, value in cotangents.items()}
    return cotangents[top]


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()
