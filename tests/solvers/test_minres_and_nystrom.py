"""Solvers of systems that are not definite, or not of full rank, and warm starts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import minres
from toy import relative_error

from multilevel.solvers import ConjugateGradient, Dense, LowerLevel, Minres, Nystrom, SettingError

generator = torch.Generator().manual_seed(0)
BASIS = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0]
COTANGENT = torch.randn(30, generator=generator, dtype=torch.float64)


def level(eigenvalues, start=None):
    """A quadratic whose mixed derivative is minus the identity: the contribution is x itself."""
    matrix = BASIS @ eigenvalues.diag() @ BASIS.T

    def loss(parameters, reads):
        p = parameters["p"]
        return p @ matrix @ p / 2 - p @ reads["u"]["v"]

    zeros = torch.zeros(30, dtype=torch.float64)
    return LowerLevel([loss], {"p": zeros}, {"u": {"v": zeros}}, torch.float64, start=start), matrix


def solution(solver, lower):
    response = solver.respond(lower, {"p": COTANGENT})
    return response.contributions["u"]["v"], response.report


INDEFINITE = torch.linspace(-3, 5, 30, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 5, 12, 25])
def test_minres_is_that_of_scipy(iterations):
    lower, matrix = level(INDEFINITE)
    x, report = solution(Minres(iterations=iterations, tolerance=0.0), lower)
    expected, _ = minres(matrix.numpy(), COTANGENT.numpy(), rtol=0.0, maxiter=iterations)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6, atol=1e-9)
    residual = ((matrix @ x - COTANGENT).norm() / COTANGENT.norm()).item()
    assert report.residual == pytest.approx(residual, rel=1e-6)


def test_minres_solves_what_conjugate_gradients_cannot():
    lower, matrix = level(INDEFINITE)
    x, report = solution(Minres(iterations=40, tolerance=1e-10), lower)
    assert relative_error(x, torch.linalg.solve(matrix, COTANGENT)) < 1e-8
    assert report.converged
    assert solution(ConjugateGradient(iterations=40), lower)[1].failed


def test_minres_of_a_singular_hessian_ends_with_the_least_residual():
    eigenvalues = torch.cat([torch.zeros(10, dtype=torch.float64), torch.ones(20, dtype=torch.float64)])
    lower, _ = level(eigenvalues)
    _, report = solution(Minres(iterations=50), lower)
    least = (BASIS[:, :10].T @ COTANGENT).norm() / COTANGENT.norm()
    assert report.residual == pytest.approx(least.item(), rel=1e-6)
    assert not report.converged


def test_nystrom_of_a_hessian_of_low_rank_is_exact_with_damping():
    eigenvalues = torch.cat([torch.tensor([40.0, -7.0, 5.0, 2.0], dtype=torch.float64), torch.zeros(26).double()])
    lower, matrix = level(eigenvalues)
    x, report = solution(Nystrom(rank=6, damping=0.5), lower)
    expected = torch.linalg.solve(matrix + 0.5 * torch.eye(30, dtype=torch.float64), COTANGENT)
    assert relative_error(x, expected) < 1e-5
    assert report.products == 8  # six of the sketch, the residual, the mixed one


def test_nystrom_errs_less_with_a_higher_rank():
    lower, matrix = level(torch.logspace(2, -4, 30, dtype=torch.float64))
    expected = torch.linalg.solve(matrix + 0.01 * torch.eye(30, dtype=torch.float64), COTANGENT)
    errors = [relative_error(solution(Nystrom(rank=k, damping=0.01), lower)[0], expected) for k in (3, 10, 20, 30)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


def test_the_sketch_depends_on_the_seed_alone():
    lower, _ = level(torch.logspace(2, -2, 30, dtype=torch.float64))
    one, again, other = (solution(Nystrom(rank=4, seed=seed), lower)[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_dense_refuses_more_parameters_than_its_limit():
    with pytest.raises(SettingError, match=r"solver\.limit: got 29; expected at least 30 .* 30 parameters"):
        solution(Dense(limit=29), level(INDEFINITE)[0])


def test_dense_of_a_singular_hessian_says_so():
    eigenvalues = torch.cat([torch.zeros(1, dtype=torch.float64), torch.ones(29, dtype=torch.float64)])
    _, report = solution(Dense(), level(eigenvalues)[0])
    assert not report.converged
    assert "solver.damping" in report.cause


def test_a_warm_start_at_the_solution_needs_one_product():
    eigenvalues = torch.linspace(1, 5, 30, dtype=torch.float64)
    solver = ConjugateGradient(iterations=60, tolerance=1e-8, warm_start=True)
    cold = solver.respond(level(eigenvalues)[0], {"p": COTANGENT})
    warm = solver.respond(level(eigenvalues, cold.solution)[0], {"p": COTANGENT})
    assert cold.report.products > 10
    assert warm.report.products == 2  # the residual of the start, and the mixed one
    torch.testing.assert_close(warm.contributions, cold.contributions)


def test_a_start_that_is_worse_than_zero_is_left_aside():
    eigenvalues = torch.linspace(1, 5, 30, dtype=torch.float64)
    solver = ConjugateGradient(iterations=3, warm_start=True)
    bad, _ = solution(solver, level(eigenvalues, {"p": -100 * COTANGENT})[0])
    none, _ = solution(solver, level(eigenvalues)[0])
    torch.testing.assert_close(bad, none)


@pytest.mark.parametrize("start", ["frozen", "unfrozen", "reshaped"])
def test_a_start_of_other_parameters_is_none(start):
    """One was frozen since, or is trained since, or has another shape."""
    lower, _ = level(torch.linspace(1, 5, 30, dtype=torch.float64))
    solver = ConjugateGradient(iterations=3, warm_start=True)
    x = solver.respond(lower, {"p": COTANGENT}).solution["p"]
    other = {"frozen": {"p": x, "bias": x}, "unfrozen": {"bias": x}, "reshaped": {"p": x[:20]}}[start]
    cold, warm = solution(solver, lower), solution(solver, replace(lower, start=other))
    assert torch.equal(warm[0], cold[0])
    assert warm[1] == cold[1]
    assert solution(solver, replace(lower, start={"p": x}))[1].residual < cold[1].residual


def test_the_measured_residual_is_the_true_one_where_the_recurrences_is_not():
    _, matrix = level(torch.logspace(0, -6, 30, dtype=torch.float64))
    single = LowerLevel(
        [lambda p, r: p["p"] @ matrix.float() @ p["p"] / 2 - p["p"] @ r["u"]["v"]],
        {"p": torch.zeros(30)},
        {"u": {"v": torch.zeros(30)}},
    )
    reports = {}
    for measured in (False, True):
        solver = Minres(iterations=5000, tolerance=1e-5, measure_residual=measured)
        response = solver.respond(single, {"p": COTANGENT.float()})
        x = response.contributions["u"]["v"].double()
        reports[measured] = response.report
    true = ((matrix @ x - COTANGENT).norm() / COTANGENT.norm()).item()
    assert reports[False].converged
    assert true > 1e-3
    assert reports[True].residual == pytest.approx(true, rel=0.1)
    assert not reports[True].converged
    assert reports[True].products == reports[False].products + 1


def test_a_singular_hessian_is_solved_where_the_cotangent_allows():
    eigenvalues = torch.cat([torch.zeros(3, dtype=torch.float64), torch.linspace(1, 5, 27, dtype=torch.float64)])
    lower, matrix = level(eigenvalues)
    within = matrix @ COTANGENT
    response = Dense().respond(lower, {"p": within})
    expected = torch.linalg.pinv(matrix, hermitian=True, rtol=1e-10) @ within
    assert relative_error(response.contributions["u"]["v"], expected) < 1e-8
    assert response.report.converged


def test_dense_takes_a_parameter_that_the_loss_does_not_use():
    parameters = {"p": torch.tensor([1.0, 2.0], dtype=torch.float64), "unused": torch.ones(3, dtype=torch.float64)}
    reads = {"u": {"v": torch.tensor([1.0, -1.0], dtype=torch.float64)}}
    lower = LowerLevel([lambda p, r: (p["p"] ** 2 * 2 - p["p"] * r["u"]["v"]).sum()], parameters, reads, torch.float64)
    cotangent = {"p": torch.tensor([3.0, 5.0], dtype=torch.float64), "unused": torch.zeros(3, dtype=torch.float64)}
    response = Dense().respond(lower, cotangent)
    torch.testing.assert_close(response.contributions["u"]["v"], cotangent["p"] / 4)
    assert response.report.converged
    impossible = Dense().respond(lower, {**cotangent, "unused": torch.ones(3, dtype=torch.float64)}).report
    assert impossible.failed
    assert "singular" in impossible.cause
