"""Gradient and hypergradient of new_level, compared with torch.autograd and dense linear algebra."""

import torch

from multilevel import Engine, Graph, Problem
from multilevel.levels.new_level import NewLevel
from multilevel.solvers import Dense


class HeldOut(Problem):
    """The level above: the error on other data."""

    def loss(self, levels, batch, draws):
        return (levels.fit(batch[0]) - batch[1]).square().mean()


def problem():
    """A graph in float64, and its tensors: inputs, targets, held-out inputs and targets, weight, bias,
    log-parameters."""
    torch.manual_seed(0)
    data = [torch.randn(20, 3), torch.randn(20, 1), torch.randn(10, 3), torch.randn(10, 1)]
    data = [tensor.double() for tensor in data]
    fit, penalty = torch.nn.Linear(3, 1).double(), torch.nn.Linear(3, 1, bias=False).double()
    sgd = [torch.optim.SGD(module.parameters(), 0.1) for module in (fit, penalty)]
    lower = NewLevel("fit", fit, penalty="penalty", optimizer=sgd[0], data=[data[:2]], solver=Dense())
    graph = Graph(lower, HeldOut("penalty", penalty, optimizer=sgd[1], data=[data[2:]]))
    return graph, data, [tensor.detach().clone() for tensor in (fit.weight, fit.bias, penalty.weight)]


def written_out(data, weight, bias, logarithms):
    """The level's loss, without the framework."""
    return (data[0] @ weight.T + bias - data[1]).square().mean() + (logarithms.exp() * weight.square()).sum()


def test_an_update_is_a_step_along_the_gradient():
    graph, data, (weight, bias, logarithms) = problem()
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(written_out(data, weight, bias, logarithms), weight)
    Engine(graph).run(1)
    trained = graph.problems["fit"].module.weight
    torch.testing.assert_close(trained, weight - 0.1 * gradient, rtol=1e-12, atol=1e-12)


def test_the_hypergradient_is_that_of_the_implicit_function_theorem():
    graph, data, (weight, bias, logarithms) = problem()

    def lower(fit, logarithms):  # fit: weight and bias in one vector
        return written_out(data, fit[None, :3], fit[3:], logarithms)

    fit = torch.cat([weight.flatten(), bias])
    hessian = torch.func.hessian(lower)(fit, logarithms)
    mixed = torch.func.jacrev(torch.func.grad(lower), argnums=1)(fit, logarithms)[:, 0]  # [4, 3]
    above = torch.func.grad(lambda fit: (data[2] @ fit[:3, None] + fit[3] - data[3]).square().mean())(fit)
    expected = -torch.linalg.solve(hessian, above) @ mixed
    hypergradient = Engine(graph).hypergradient("penalty")["weight"][0]
    torch.testing.assert_close(hypergradient, expected, rtol=1e-10, atol=1e-12)
