"""Negative curvature and divergence: the last good iterate, marked; strict raises."""

import pytest
import torch

from multilevel.solvers import ConjugateGradient, FirstOrder, LowerLevel, Neumann, Nystrom, SolveError

COTANGENT = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)


def quadratic(eigenvalues):
    values = torch.tensor(eigenvalues, dtype=torch.float64)

    def loss(parameters, reads):
        return (values * parameters["p"] ** 2).sum() / 2 - parameters["p"] @ reads["u"]["v"]

    point = {"p": torch.zeros(4, dtype=torch.float64)}
    return LowerLevel([loss], point, {"u": {"v": torch.zeros(4, dtype=torch.float64)}})


def respond(solver, eigenvalues):
    """x itself: the mixed derivative of the loss is minus the identity."""
    response = solver.respond(quadratic(eigenvalues), {"p": COTANGENT})
    return response.contributions["u"]["v"], response.report


def test_conjugate_gradient_solves_twice_the_identity_at_once():
    x, report = respond(ConjugateGradient(), [2, 2, 2, 2])
    torch.testing.assert_close(x, COTANGENT / 2)
    assert report.converged
    assert (report.evaluations, report.products) == (1, 2)


def test_conjugate_gradient_ends_before_negative_curvature():
    eigenvalues = [4.0, 3.0, 2.0, -5.0]
    x, report = respond(ConjugateGradient(), eigenvalues)
    assert report.failed
    assert report.converged is False
    assert "curvature" in report.cause
    assert "solver.damping" in report.cause
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    assert report.residual == pytest.approx(((values * x - COTANGENT).norm() / COTANGENT.norm()).item())
    # Iterates of conjugate gradients lie in Krylov spaces: the first is along the cotangent.
    first = (COTANGENT @ COTANGENT) / (COTANGENT @ (values * COTANGENT)) * COTANGENT
    torch.testing.assert_close(x, first)


def test_conjugate_gradient_in_a_first_direction_of_negative_curvature_gives_zero():
    x, report = respond(ConjugateGradient(), [-1, -1, -1, -1])
    assert torch.equal(x, torch.zeros_like(x))
    assert report.failed
    assert report.residual == 1.0


def test_conjugate_gradient_ends_before_a_singular_direction_blows_it_up():
    """Equal biases change no cross-entropy: a cotangent along them has no solution."""
    generator = torch.Generator().manual_seed(0)
    inputs, classes = torch.randn(10, 300, generator=generator), torch.arange(10)

    def loss(parameters, reads):
        logits = inputs @ parameters["w"].T + parameters["b"] + reads["u"]["v"]
        return torch.nn.functional.cross_entropy(logits, classes) + 0.005 * parameters["w"].square().sum()

    fitted = {"w": 3 * inputs / inputs.norm(dim=1, keepdim=True), "b": torch.zeros(10)}  # the loss is 0 to rounding
    lower = LowerLevel([loss], fitted, {"u": {"v": torch.zeros(10)}})
    cotangent = {"w": torch.randn(10, 300, generator=generator), "b": torch.randn(10, generator=generator)}
    response = ConjugateGradient(iterations=30).respond(lower, cotangent)
    assert response.report.failed
    assert "singular" in response.report.cause
    assert "solver.damping" in response.report.cause
    assert response.report.residual < 1
    assert response.contributions["u"]["v"].isfinite().all()
    assert ConjugateGradient(iterations=30, damping=0.1).respond(lower, cotangent).report.converged


def test_damping_cures_negative_curvature():
    x, report = respond(ConjugateGradient(damping=6.0), [4, 3, 2, -5])
    torch.testing.assert_close(x, COTANGENT / torch.tensor([10.0, 9, 8, 1], dtype=torch.float64))
    assert report.converged


def test_too_few_iterations_are_reported():
    _, report = respond(ConjugateGradient(iterations=2), [1, 2, 3, 4])
    assert not report.converged
    assert not report.failed
    assert "after 2 iterations: raise solver.iterations" in report.cause


def test_neumann_ends_before_it_diverges():
    x, report = respond(Neumann(terms=50, step_size=0.6), [4, 1, 1, 1])
    assert report.failed
    assert "solver.step_size" in report.cause
    values = torch.tensor([4.0, 1, 1, 1], dtype=torch.float64)
    assert report.residual == pytest.approx(((values * x - COTANGENT).norm() / COTANGENT.norm()).item())
    torch.testing.assert_close(x, 0.6 * COTANGENT)  # one term: the second makes the residual rise


def test_neumann_meets_negative_curvature():
    _, report = respond(Neumann(terms=50), [4, 3, 2, -5])
    assert report.failed
    assert "negative curvature" in report.cause


def test_neumann_of_a_hessian_of_zero():
    _, report = respond(Neumann(), [0, 0, 0, 0])
    assert report.failed
    assert "solver.damping" in report.cause


def test_neumann_chooses_a_step_that_converges():
    x, report = respond(Neumann(terms=400, power_iterations=30), [8, 4, 2, 1])
    assert report.converged
    torch.testing.assert_close(x, COTANGENT / torch.tensor([8.0, 4, 2, 1], dtype=torch.float64), rtol=1e-5, atol=0)


def test_too_few_terms_are_reported():
    _, report = respond(Neumann(terms=2, step_size=0.1), [1, 2, 3, 4])
    assert not report.converged
    assert not report.failed
    assert "raise solver.terms" in report.cause


@pytest.mark.parametrize(("step_size", "diverges"), [(0.45, False), (0.55, True)])
def test_first_order_that_diverges_says_so_and_gives_its_first_step(step_size, diverges):
    """Descent on eigenvalues of 4 and 1 converges below a step of 2 / 4."""
    x, report = respond(FirstOrder(steps=60, step_size=step_size), [4, 1, 1, 1])
    assert report.failed == diverges
    assert ("solver.step_size" in report.cause) == diverges
    expected = step_size * COTANGENT if diverges else COTANGENT / torch.tensor([4.0, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("damping", "fails"), [(0.1, True), (200.0, False)])
def test_nystrom_with_a_residual_above_that_of_zero_has_failed(damping, fails):
    """What its one direction leaves out has eigenvalues far above a damping of 0.1, and far below one of 200."""
    eigenvalues = [4.0, 3.0, 2.0, 5.0]
    x, report = respond(Nystrom(rank=1, damping=damping), eigenvalues)
    damped = torch.tensor(eigenvalues, dtype=torch.float64) + damping
    residual = ((damped * x - COTANGENT).norm() / COTANGENT.norm()).item()
    assert (residual > 1) == fails
    assert report.residual == pytest.approx(residual)
    assert report.failed == fails


STRICT = [ConjugateGradient(strict=True), Neumann(terms=50, strict=True), Nystrom(rank=1, damping=0.1, strict=True)]


@pytest.mark.parametrize("solver", STRICT)
def test_strict_raises(solver):
    with pytest.raises(SolveError, match="strict=true"):
        respond(solver, [4, 3, 2, -5])
