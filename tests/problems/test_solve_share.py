"""Solves on a part of each batch: the hypergradient is that of the part, and updates take the whole."""

import pytest
import torch
from solver_table import ROWS
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.problems.batches import first_rows
from multilevel.problems.reference import reference_hypergradient
from multilevel.solvers import ConjugateGradient, DataError, SettingError, Unrolled


class Fit(Problem):
    """Ridge regression on inputs that the upper level scales, with noise of which ``draw`` has a row a sample."""

    noise = 0.0

    def draw(self, levels, batch):
        return self.noise * torch.randn_like(batch[0])

    def loss(self, levels, batch, draws):
        residual = levels.fit((batch[0] + draws) * levels.scale.weight.exp()) - batch[1]
        return residual.square().mean() + levels.fit.weight.square().sum()


class NoisyFit(Fit):
    noise = 0.1


class Scale(Problem):
    def loss(self, levels, batch, draws):
        return (levels.fit(batch[0]) - batch[1]).square().mean()


def rows(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True) + torch.randn(count, 1, generator=generator, dtype=torch.float64)


def engine(kind=Fit, batches=None, solver=None, **keywords):
    torch.manual_seed(1)
    fit, scale = nn.Linear(3, 1, bias=False).double(), nn.Linear(3, 1, bias=False).double()
    batches = batches or [rows(8)]
    lower = kind(
        "fit",
        fit,
        optimizer=torch.optim.SGD(fit.parameters(), 0.1),
        data=batches,
        solver=solver or ConjugateGradient(),
        **keywords,
    )
    upper = Scale("scale", scale, optimizer=torch.optim.SGD(scale.parameters(), 0.1), data=[rows(8)])
    return Engine(Graph(lower, upper))


SOLVERS = [row for row in ROWS if not row.trains]


@pytest.mark.parametrize("row", SOLVERS, ids=str)
def test_the_hypergradient_is_that_of_the_first_rows(row):
    x, y = rows(8)
    found = engine(solve_share=0.5, solver=row.solver()).hypergradient("scale")["weight"]
    of_part = engine(batches=[(x[:4], y[:4])], solver=row.solver()).hypergradient("scale")["weight"]
    of_all = engine(solver=row.solver()).hypergradient("scale")["weight"]
    torch.testing.assert_close(found, of_part, rtol=1e-12, atol=0)
    assert not torch.allclose(found, of_all, rtol=1e-3)


def test_every_batch_of_an_update_gives_its_rows():
    x, y = rows(8)
    shared = engine(batches=[(x[:4], y[:4]), (x[4:], y[4:])], accumulate=2, solve_share=0.5)
    shared.run(1)
    expected = engine(batches=[(x[[0, 1, 4, 5]], y[[0, 1, 4, 5]])])
    for name, problem in expected.graph.problems.items():
        problem.module.load_state_dict(shared.graph.problems[name].module.state_dict())
    found = shared.hypergradient("scale")["weight"]
    torch.testing.assert_close(found, expected.hypergradient("scale")["weight"], rtol=1e-12, atol=0)


def test_updates_take_all_rows():
    whole, part = engine(), engine(solve_share=0.25)
    for one in (whole, part):
        one.graph.problems["scale"].optimizer.param_groups[0]["lr"] = 0.0
        one.run(3)
    modules = [one.graph.problems["fit"].module for one in (whole, part)]
    assert torch.equal(modules[0].weight, modules[1].weight)


def test_draws_of_the_part_are_the_same_in_every_solve_at_a_point():
    one = engine(NoisyFit, solve_share=0.5)
    one.run(2)
    assert torch.equal(one.hypergradient("scale")["weight"], one.hypergradient("scale")["weight"])


def test_a_reference_takes_all_rows():
    shared, whole = engine(solve_share=0.25), engine()
    found = reference_hypergradient(shared, "scale", {}).values["weight"]
    expected = reference_hypergradient(whole, "scale", {}).values["weight"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_batch_without_rows_is_named():
    with pytest.raises(DataError, match=r"has no rows to take a share of: set levels\.fit\.solve_share to 1"):
        first_rows((torch.tensor(1.0), None), 0.5, "fit")


def test_one_row_is_left_of_a_small_share():
    assert engine(solve_share=0.01).hypergradient("scale")["weight"].isfinite().all()


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(SettingError, match=r"levels.fit.solve_share: got .*expected a share above 0 and at most 1"):
        engine(solve_share=share)


def test_a_solver_that_goes_through_whole_updates_refuses_a_share():
    with pytest.raises(SettingError, match=r"solve_share: got 0\.5; expected 1, since Unrolled differentiates whole"):
        engine(solve_share=0.5, solver=Unrolled())


def test_a_batch_that_cannot_be_cut_is_named():
    one = engine(batches=[(*rows(8), "text")], solve_share=0.5)
    with pytest.raises(DataError, match=r"holds a str, which has no rows: set levels\.fit\.solve_share to 1"):
        one.hypergradient("scale")
