"""Small problems written as plain functions of vectors, and their hypergradients by dense linear algebra."""

from functools import partial

import torch
from torch import nn

from multilevel import Graph, Problem


class Vector(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value.clone())


class Function(Problem):
    """A level whose loss is a function of all levels' vectors: ``function({name: vector})``."""

    def __init__(self, name, value, function, names, rate=None, **keywords):
        module = Vector(value)
        if rate is not None:
            keywords["optimizer"] = torch.optim.Adam(module.parameters(), rate)
        super().__init__(name, module, **keywords)
        self.function = function
        self.names = names

    def loss(self, levels, batch, draws):
        return self.function({name: getattr(levels, name).value for name in self.names})


def toy_graph(functions, values, solvers, order=None, approximate=False, **keywords):
    """Graph of the functions {name: function}, listed in ``order`` (theirs, where it is not given).

    ``rate`` gives every level an Adam optimizer, ``steps`` every level but the top as many updates.
    """
    names = list(order or functions)
    steps = keywords.pop("steps", 1)
    levels = (
        Function(
            name,
            values[name],
            functions[name],
            names,
            solver=solvers.get(name),
            steps=1 if name == names[-1] else steps,
            **keywords,
        )
        for name in names
    )
    return Graph(*levels, approximate=approximate)


def trained(graph):
    """The graph's levels after a step of an engine: the engine, {name: vector}, and {name: Past}."""
    from multilevel import Engine

    engine = Engine(graph)
    engine.run(1)
    values = {name: flat(problem.variables()).detach() for name, problem in graph.problems.items()}
    return engine, values, {name: Past(engine, name) for name in graph.names}


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


class Past:
    """What a level's solver may know of its training, as vectors: Adam's state, and the recorded updates."""

    def __init__(self, engine, name):
        problem = engine.graph.problems[name]
        variables = problem.variables()
        self.rate = problem.optimizer.param_groups[0]["lr"]
        state = [problem.optimizer.state[variable] for variable in variables.values()]
        first = [one.get("exp_avg", torch.zeros_like(v)) for one, v in zip(state, variables.values(), strict=True)]
        second = [one.get("exp_avg_sq", torch.zeros_like(v)) for one, v in zip(state, variables.values(), strict=True)]
        self.state = (torch.cat([one.reshape(-1) for one in first]), torch.cat([one.reshape(-1) for one in second]))
        self.count = max(int(one.get("step", 0)) for one in state)
        self.steps = [
            (
                flat(step.parameters),
                {level: flat(some) for level, some in step.reads.items()},
                tuple(
                    torch.cat(
                        [
                            step.rule.state[key].get(part, torch.zeros_like(one)).reshape(-1)
                            for key, one in step.parameters.items()
                        ]
                    )
                    for part in ("exp_avg", "exp_avg_sq")
                ),
                max(step.rule.counts.values()),
            )
            for step in (update.step for update in engine.histories[name].updates)
        ]


def adam(parameter, gradient, state, count, rate):
    """An update of Adam with torch's defaults, as the paper writes it: (parameter, state)."""
    mean = 0.9 * state[0] + 0.1 * gradient
    square = 0.999 * state[1] + 0.001 * gradient**2
    moved = square > 0
    root = torch.where(moved, square, 1.0).sqrt() * moved / (1 - 0.999 ** (count + 1)) ** 0.5
    return parameter - rate * mean / (1 - 0.9 ** (count + 1)) / (root + 1e-8), (mean, square)


def dense_hypergradient(functions, values, solved, top, contributions, pasts=None):
    """The adjoint pass with dense matrices.

    ``solved`` lists the levels below ``top`` in the order in which they are solved; ``contributions[name]`` is a
    row's: (function, name, values, cotangent, past) to {level: contribution}.
    """
    point = {name: value.clone().requires_grad_() for name, value in values.items()}
    found = torch.autograd.grad(functions[top](point), list(point.values()), materialize_grads=True)
    cotangents = dict(zip(point, found, strict=True))
    for name in solved:
        given = contributions[name](functions[name], name, values, cotangents.pop(name), (pasts or {}).get(name))
        cotangents = {other: value + given[other] for other, value in cotangents.items()}
    return cotangents[top]


def schedule_hypergradient(functions, starts, now, last, steps, rate):
    """The derivative through one step of the schedule of ``toy_graph``, with Adam, by one backward pass.

    ``now`` has the values after the step; for each level below the top, ``last`` has the number of its last updates
    that depend on the top level's parameters.
    """
    names = list(functions)
    below, top = names[:-1], names[-1]
    upper = starts[top].clone().requires_grad_()
    values, states = {**starts, top: upper}, {name: (torch.zeros_like(starts[name]),) * 2 for name in below}
    counts, totals = dict.fromkeys(below, 0), {name: steps ** (len(below) - i) for i, name in enumerate(below)}

    def descend(index):
        for _ in range(steps if index >= 0 else 0):
            descend(index - 1)
            name = below[index]
            leaf = values[name] if values[name].requires_grad else values[name].requires_grad_()
            slope = torch.autograd.grad(functions[name]({**values, name: leaf}), leaf, create_graph=True)[0]
            value, state = adam(leaf, slope, states[name], counts[name], rate)
            counts[name] += 1
            constant = counts[name] <= totals[name] - last[name]
            values[name] = value.detach() if constant else value
            states[name] = tuple(part.detach() for part in state) if constant else state

    descend(len(below) - 1)
    for name in below:  # the path is the real one
        torch.testing.assert_close(values[name].detach(), now[name], rtol=1e-8, atol=1e-10)
    values[top] = upper - upper.detach() + now[top]
    return torch.autograd.grad(functions[top](values), upper)[0]


def expected_of(functions, top, starts, now, rows, pasts, rate, damping=None):
    """The hypergradient of ``top`` after a step with 2 updates of each level below, before which values were
    ``starts``; ``rows`` has the solver's row of each level, in the order in which they are solved."""
    if len(rows) > 1 and all(row.unrolled for row in rows.values()) and len({row.name for row in rows.values()}) == 1:
        last = {name: row.solver().recorded_steps for name, row in rows.items()}
        return schedule_hypergradient(functions, starts, now, last, steps=2, rate=rate)

    def contribution(row, *given):
        damped = damping is not None and hasattr(row.solver(), "damping")
        return row.contribution(*given, damping=damping) if damped else row.contribution(*given)

    contributions = {name: partial(contribution, row) for name, row in rows.items()}
    return dense_hypergradient(functions, now, list(rows), top, contributions, pasts)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()
