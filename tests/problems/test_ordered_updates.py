"""scale=null: the weight of every path in one outer step, against autograd through the schedule written out."""

from itertools import combinations, product
from math import prod

import pytest
import torch
from toy import Function, relative_error, toy_graph

from multilevel import Callback, Engine
from multilevel.problems import ordered_updates as module
from multilevel.problems.errors import NestedChainError
from multilevel.problems.ordered_updates import ordered_updates
from multilevel.solvers import ConjugateGradient, FiniteDifference, Identity, Neumann, Sama, SettingError, SolveError

generator = torch.Generator().manual_seed(3)
SMALL = 1e-3  # rate times curvature times updates of every level


def randn(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def quadratic(name, size, **couplings):
    """A loss with curvatures from 1/2 to 1 that reads ``couplings``, {level: matrix}."""
    curvature = torch.linspace(0.5, 1, size, dtype=torch.float64)

    def loss(values):
        pull = sum((matrix @ values[level] for level, matrix in couplings.items()), torch.ones(size).double())
        return (curvature * values[name] ** 2).sum() / 2 - values[name] @ pull

    return loss


def linear(**weights):
    return lambda values: sum(weight @ values[level] for level, weight in weights.items())


# A path with one level more is 1e-3 times weaker in each; the weights of the upper loss make all of similar size.
VALUES = {"o": randn(4), "p": randn(3), "q": randn(4), "u": randn(2)}
Q, P = randn(4), randn(3)
THREE = {
    "p": quadratic("p", 3, u=randn(3, 2)),
    "q": quadratic("q", 4, p=randn(4, 3), u=1e-3 * randn(4, 2)),
    "u": linear(p=P, q=4e3 * Q),
}
FOUR = {
    "o": quadratic("o", 4, u=randn(4, 2)),
    "p": quadratic("p", 3, o=randn(3, 4), u=1e-3 * randn(3, 2)),
    "q": quadratic("q", 4, p=randn(4, 3), o=1e-3 * randn(4, 4), u=1e-6 * randn(4, 2)),
    "u": linear(o=randn(4), p=2e3 * P, q=2e7 * Q),
}


def sgd(parameter, gradient, state, rate):
    return parameter - rate * gradient, None


def adam(betas, epsilon):
    """Adam as its paper writes it; the state is (moments, count)."""

    def step(parameter, gradient, state, rate):
        mean, square, count = state or (0, 0, 0)
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        count += 1
        root = (square / (1 - betas[1] ** count)).sqrt()
        return parameter - rate * mean / (1 - betas[0] ** count) / (root + epsilon), (mean, square, count)

    return step


def trained(functions, steps, rates, step=sgd, outer=1, anew=(), name=None):
    """The derivative of the loss of ``name`` (the last) in its variable, which is held for ``outer`` outer steps, by
    autograd through every update of the levels below."""
    names = list(functions)
    top = names.index(name or names[-1])
    start = {level: VALUES[level].clone().requires_grad_() for level in names}
    values, states = dict(start), {}

    def descend(index):
        if index:
            below = names[index - 1]
            if below in anew:
                values[below] = start[below]
            for _ in range(steps[below]):
                descend(index - 1)
        if index < top:
            level = names[index]
            slope = torch.autograd.grad(functions[level](values), values[level], create_graph=True)[0]
            values[level], states[level] = step(values[level], slope, states.get(level), rates[level])

    for _ in range(outer):
        descend(top)
    return torch.autograd.grad(functions[names[top]](values), start[names[top]])[0]


def small_rates(functions, steps):
    """Rates at which rate times updates is ``SMALL`` for every level below the top; curvatures are at most 1."""
    names = list(functions)[:-1]
    return {name: SMALL / prod(steps[level] for level in names[index:]) for index, name in enumerate(names)}


def engine_of(functions, solvers, steps, rates, optimizer=torch.optim.SGD, anew=(), approximate=False, **options):
    graph = toy_graph(functions, VALUES, solvers, approximate=approximate)
    for name, rate in rates.items():
        problem = graph.problems[name]
        problem.steps = steps[name]
        problem.optimizer = optimizer(problem.module.parameters(), lr=rate, **options)
        if name in anew:
            problem.__class__ = Restarting
    return Engine(graph)


class Restarting(Function):
    events = None  # a hypergradient begins nothing

    def begin(self):
        self.events.append(("begin", self.name))


def one_solver(functions, solver):
    return dict.fromkeys(list(functions)[:-1], solver)


SOLVERS = [
    Identity(scale=None),
    Identity(scale=None, product="reverse"),
    FiniteDifference(scale=None),
    Sama(scale=None),
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)


@each_solver
@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (1, 2), (2, 2), (8, 1), (1, 8), (8, 8)], ids=str)
def test_three_levels(counts, solver):
    steps = dict(zip("pq", counts, strict=True))
    rates = small_rates(THREE, steps)
    hypergradient = engine_of(THREE, one_solver(THREE, solver), steps, rates).hypergradient("u")["value"]
    assert relative_error(hypergradient, trained(THREE, steps, rates)) < SMALL


@pytest.mark.parametrize("solver", [Identity, FiniteDifference, Sama])
@pytest.mark.parametrize("outer", [8, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("counts", [(2, 1), (2, 2), pytest.param((8, 8), marks=pytest.mark.slow)], ids=str)
def test_several_outer_steps(counts, outer, solver):
    steps = dict(zip("pq", counts, strict=True))
    rates = {name: rate / outer for name, rate in small_rates(THREE, steps).items()}
    engine = engine_of(THREE, one_solver(THREE, solver(scale=None, outer_steps=outer)), steps, rates)
    assert relative_error(engine.hypergradient("u")["value"], trained(THREE, steps, rates, outer=outer)) < SMALL


@pytest.mark.parametrize("sign", [1, -1])
def test_in_training_the_gradient_of_the_last_update_spares_an_evaluation(sign):
    steps = {"p": 2, "q": 1}
    rates, options = small_rates(THREE, steps), {"betas": (0.0, 0.0), "eps": 1.0, "maximize": sign < 0}
    functions = {**THREE, **{name: lambda values, name=name: sign * THREE[name](values) for name in "pq"}}
    solved = []
    for solver in (Identity(scale=None), Identity()):
        engine = engine_of(functions, one_solver(functions, solver), steps, rates, torch.optim.Adam, **options)
        engine.graph.problems["u"].optimizer = torch.optim.SGD(engine.graph.problems["u"].module.parameters(), 0.0)
        engine.run(1)
        solved.append(engine.solve_hypergradient("u"))
    costs = [[(report.evaluations, report.products) for report in each.reports.values()] for each in solved]
    assert costs[0] == costs[1]
    expected = trained(THREE, steps, rates, adam((0.0, 0.0), 1.0))
    assert relative_error(solved[0].values["value"], expected) < 1e-2


def test_outer_steps_go_with_the_counting_of_updates():
    with pytest.raises(SettingError, match=r"solver\.outer_steps: got 8; expected 1, or solver\.scale=null"):
        Identity(outer_steps=8)
    steps = {"p": 1, "q": 1}
    solvers = {"p": Identity(scale=None, outer_steps=2), "q": Identity(scale=None)}
    with pytest.raises(SolveError, match="the same outer_steps at every level"):
        engine_of(THREE, solvers, steps, small_rates(THREE, steps)).hypergradient("u")


def test_levels_that_maximize():
    steps = {"p": 2, "q": 3}
    rates = small_rates(THREE, steps)
    negated = {**THREE, "p": lambda values: -THREE["p"](values), "q": lambda values: -THREE["q"](values)}
    engine = engine_of(negated, one_solver(THREE, Identity(scale=None)), steps, rates, maximize=True)
    assert relative_error(engine.hypergradient("u")["value"], trained(THREE, steps, rates)) < SMALL


@pytest.mark.parametrize(
    ("functions", "counts"), [(THREE, (1, 2)), (THREE, (8, 8)), (FOUR, (1, 1, 2)), (FOUR, (1, 2, 1)), (FOUR, (2, 3, 2))]
)
def test_the_count_is_no_product_over_levels(functions, counts, monkeypatch):
    """Paths through several levels are as strong as the others here, so that a wrong count is seen."""
    steps = dict(zip(functions, counts, strict=False))
    rates = small_rates(functions, steps)
    engine = engine_of(functions, one_solver(functions, Identity(scale=None)), steps, rates)
    monkeypatch.setattr(
        module,
        "ordered_updates",
        lambda schedule, chain: prod(ordered_updates(schedule, (level,)) for level in chain),
    )
    assert relative_error(engine.hypergradient("u")["value"], trained(functions, steps, rates)) > 50 * SMALL


@each_solver
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 2), (1, 2, 8)], ids=str)
def test_four_levels(counts, solver):
    steps = dict(zip("opq", counts, strict=True))
    rates = small_rates(FOUR, steps)
    hypergradient = engine_of(FOUR, one_solver(FOUR, solver), steps, rates).hypergradient("u")["value"]
    assert relative_error(hypergradient, trained(FOUR, steps, rates)) < SMALL


@pytest.mark.parametrize("anew", ["p", "q", "pq"])
def test_an_update_that_a_new_start_undoes_acts_only_through_what_has_read_it(anew):
    steps = {"p": 3, "q": 4}
    rates = small_rates(THREE, steps)
    hypergradient = engine_of(THREE, one_solver(THREE, Identity(scale=None)), steps, rates, anew=anew).hypergradient(
        "u"
    )
    assert relative_error(hypergradient["value"], trained(THREE, steps, rates, anew=anew)) < SMALL


@pytest.mark.parametrize("solver", [Identity(scale=None), Sama(scale=None)], ids=str)
@pytest.mark.parametrize(
    ("functions", "counts", "betas"),
    [(THREE, (1, 1), (0.9, 0.999)), (THREE, (8, 8), (0.0, 0.0)), (FOUR, (1, 2, 4), (0.0, 0.0))],
    ids=["one update", "three levels", "four levels"],
)
def test_adam(functions, counts, betas, solver):
    """Through its own step. What its state carries from one update to the next is left out, so several updates have no
    momentum here."""
    steps = dict(zip(functions, counts, strict=False))
    rates, options = small_rates(functions, steps), {"betas": betas, "eps": 1.0}
    engine = engine_of(functions, one_solver(functions, solver), steps, rates, torch.optim.Adam, **options)
    expected = trained(functions, steps, rates, adam(betas, 1.0))
    assert relative_error(engine.hypergradient("u")["value"], expected) < 1e-2
    plain = trained(functions, steps, rates)
    assert relative_error(plain, expected) > 0.1  # the optimizer matters


def test_a_level_in_the_middle_counts_the_updates_of_one_update_of_its_own():
    functions = {"p": quadratic("p", 3, q=randn(3, 4)), "q": linear(p=P), "u": linear(q=Q, u=randn(2))}
    steps = {"p": 3, "q": 5}
    rates = {"p": SMALL, "q": SMALL}
    engine = engine_of(functions, {"p": Identity(scale=None)}, steps, rates)
    expected = trained(functions, steps, rates, name="q")
    assert relative_error(engine.hypergradient("q")["value"], expected) < SMALL


@pytest.mark.parametrize("outer", [1, 4])
def test_a_number_as_scale_is_the_weight_of_the_only_path_over_several_outer_steps(outer):
    functions = {**THREE, "q": quadratic("q", 4), "u": linear(p=P, q=Q)}
    steps = {"p": 2, "q": 1}
    rates = {"p": SMALL, "q": SMALL}
    engine = engine_of(functions, {"p": Identity(scale=2 * outer * SMALL)}, steps, rates)
    assert relative_error(engine.hypergradient("u")["value"], trained(functions, steps, rates, outer=outer)) < 1e-2


@pytest.mark.parametrize("numeric", "opq")
def test_a_level_with_a_number_is_no_level_of_the_chain(numeric):
    """Against the sum over all paths of FOUR: products of the couplings, rates and counts, or the number."""
    steps = {"o": 2, "p": 3, "q": 2}
    rates = small_rates(FOUR, steps)
    solvers = {name: Identity(scale=0.01) if name == numeric else Identity(scale=None) for name in steps}
    hypergradient = engine_of(FOUR, solvers, steps, rates).hypergradient("u")["value"]
    point = {name: value.clone().requires_grad_() for name, value in VALUES.items()}
    slopes = {name: torch.autograd.grad(FOUR[name](point), point[name], create_graph=True)[0] for name in steps}
    expected, times = torch.zeros(2).double(), updates_of(tuple((name, steps[name], False) for name in steps))
    for length in (1, 2, 3):
        for path in combinations("opq", length):
            cotangent = torch.autograd.grad(FOUR["u"](point), point[path[-1]])[0]
            for level, read in zip(path[::-1], [*path[-2::-1], "u"], strict=True):
                (mixed,) = torch.autograd.grad(slopes[level], point[read], cotangent, retain_graph=True)
                cotangent = -mixed * (0.01 if level == numeric else rates[level])
            expected = expected + chosen(times, [level for level in path if level != numeric]) * cotangent
    assert relative_error(hypergradient, expected) < 1e-10


def test_levels_that_read_each_other_are_refused():
    functions = {"p": quadratic("p", 3, q=randn(3, 4)), "q": quadratic("q", 4, p=randn(4, 3), u=randn(4, 2))}
    functions |= {"u": linear(p=P, q=Q)}
    with pytest.raises(NestedChainError, match="identity with a number as scale"):
        engine_of(functions, one_solver(functions, Identity(scale=None)), {"p": 1, "q": 1}, {"p": 1e-3, "q": 1e-3})
    engine = engine_of(functions, one_solver(functions, Identity()), {"p": 1, "q": 1}, {"p": 1e-3, "q": 1e-3})
    for solvers in ({"p": Identity(scale=None), "q": Identity()}, {"p": Identity(), "q": Identity(scale=None)}):
        with pytest.raises(SolveError, match="scale=null has no meaning: set a number as scale"):
            engine.solve_hypergradient("u", solvers)


def test_of_levels_that_read_each_other_approximately_the_inner_follows():
    """q reads p too weakly to matter; p reads q, so an update of q acts through later updates of p."""
    weak = 1e-9 * randn(4, 3)
    functions = {"p": quadratic("p", 3, q=randn(3, 4)), "q": quadratic("q", 4, p=weak, u=randn(4, 2))}
    functions |= {"u": linear(p=2e3 * P, q=Q)}
    steps = {"p": 2, "q": 3}
    rates = small_rates(functions, steps)
    solvers = one_solver(functions, Identity(scale=None))
    engine = engine_of(functions, solvers, steps, rates, approximate=True)
    assert relative_error(engine.hypergradient("u")["value"], trained(functions, steps, rates)) < SMALL


@pytest.mark.parametrize(("null", "plain"), [(Identity(scale=None), Identity()), (Sama(scale=None), Sama())], ids=str)
def test_three_levels_cost_what_they_do_with_a_number(null, plain):
    steps = {"p": 2, "q": 3}
    options = {"optimizer": torch.optim.SGD if isinstance(null, Identity) else torch.optim.Adam}
    costs = []
    for solver in (null, plain):
        engine = engine_of(THREE, one_solver(THREE, solver), steps, small_rates(THREE, steps), **options)
        reports = engine.solve_hypergradient("u").reports
        costs.append({name: (report.evaluations, report.products) for name, report in reports.items()})
    assert costs[0] == costs[1]
    assert {products for _, products in costs[0].values()} == {1}


def test_a_level_that_passes_on_several_chains_is_solved_for_each_and_reports_the_sum():
    steps = {"o": 1, "p": 2, "q": 2}
    conjugate = ConjugateGradient(iterations=60, tolerance=1e-14, warm_start=True)
    solvers = {"o": Identity(scale=None), "p": conjugate, "q": Identity(scale=None)}
    hypergradient = engine_of(FOUR, solvers, steps, small_rates(FOUR, steps)).solve_hypergradient("u")
    alone = engine_of(FOUR, {**solvers, "q": Identity()}, steps, small_rates(FOUR, steps)).solve_hypergradient("u")
    products = {name: report.products for name, report in hypergradient.reports.items()}
    assert products == {"q": 1, "p": 2 * alone.reports["p"].products, "o": 1}
    assert hypergradient.reports["p"].converged
    assert set(hypergradient.solutions) == set()
    assert set(alone.solutions) == {"p"}


def test_an_optimizer_without_a_rule_is_refused_by_name():
    steps, rates = {"p": 1, "q": 1}, {"p": 1e-3, "q": 1e-3}
    for solver in (Identity(scale=None), Sama(scale=None), Sama()):
        engine = engine_of(THREE, one_solver(THREE, solver), steps, rates, torch.optim.RMSprop)
        with pytest.raises(SolveError, match=r"level 'q': .* identity with a number as scale works"):
            engine.hypergradient("u")


def test_neumann_below_a_counted_level_counts_nothing_itself():
    steps = {"p": 2, "q": 3}
    rates = small_rates(THREE, steps)
    neumann = Neumann(terms=1, step_size=0.5)
    hypergradient = engine_of(THREE, {"p": neumann, "q": Identity(scale=None)}, steps, rates).hypergradient("u")[
        "value"
    ]
    same = engine_of(THREE, {"p": Identity(scale=0.5), "q": Identity(scale=3 * rates["q"])}, steps, rates)
    assert relative_error(hypergradient, same.hypergradient("u")["value"]) < 1e-12


def updates_of(schedule):
    """The starts and updates of one outer step in order, as ("begin" or "update", level)."""

    def descend(index):
        if index < 0:
            return []
        name, steps, anew = schedule[index]
        times = [("begin", name)] if anew else []
        for _ in range(steps):
            times += [*descend(index - 1), ("update", name)]
        return times

    return descend(len(schedule) - 1)


def chosen(times, chain):
    """The ordered choices of an update of each level of ``chain``, by trying all."""
    count = 0
    updates = [place for place, (kind, _) in enumerate(times) if kind == "update"]
    for places in combinations(updates, len(chain)):
        if [times[place][1] for place in places] == list(chain):
            spans = zip(places, [*places, len(times)][1:], strict=True)
            count += all(("begin", times[first][1]) not in times[first:last] for first, last in spans)
    return count


def test_the_engine_updates_in_the_order_that_is_counted():
    steps, anew = {"o": 2, "p": 3, "q": 2}, "op"
    engine = engine_of(FOUR, one_solver(FOUR, Identity()), {**steps, "u": 1}, dict.fromkeys("opqu", 1e-3), anew=anew)
    events = []

    class Listening(Callback):
        def on_update(self, engine, update):
            events.append(("update", update.level))

    engine.callbacks = [Listening()]
    for level in anew:
        engine.graph.problems[level].events = events
    engine.run(1)
    assert events == [*updates_of(tuple((level, steps[level], level in anew) for level in steps)), ("update", "u")]


@pytest.mark.parametrize("anew", list(product([False, True], repeat=3)), ids=str)
def test_the_count_is_that_of_all_choices_tried(anew):
    schedule = tuple(zip("abc", (2, 3, 2), anew, strict=True))
    times = updates_of(schedule)
    for chain in ("", "a", "b", "c", "ab", "ba", "bc", "cb", "ac", "ca", "abc", "cba", "bac", "cab"):
        assert ordered_updates(schedule, tuple(chain)) == chosen(times, chain), chain


def test_the_count_of_many_updates_is_exact():
    schedule = (("a", 10**6, False), ("b", 10**9, False))
    assert ordered_updates(schedule, ("a", "b")) == 10**6 * 10**9 * (10**9 + 1) // 2
