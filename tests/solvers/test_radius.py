"""The finite-difference radius follows the parameters' scale and the precision of the arithmetic."""

import pytest
import torch

from multilevel.solvers import FiniteDifference, LowerLevel
from multilevel.solvers.products import default_radius


def parameters(scale, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {"p": scale * torch.randn(1000, generator=generator, dtype=torch.float64).to(dtype)}


def test_it_is_in_proportion_to_the_parameters():
    small, large = (default_radius(parameters(scale), torch.float32) for scale in (0.1, 10.0))
    assert large / small == pytest.approx(100, rel=1e-6)


def test_it_is_not_zero_where_the_parameters_are():
    assert default_radius(parameters(0.0), torch.float32) > 0


def test_it_grows_as_the_arithmetic_coarsens():
    radii = [default_radius(parameters(1.0), dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    assert radii[1] / radii[0] == pytest.approx((2.0**-23 / 2.0**-52) ** (1 / 3))
    assert radii[2] / radii[1] == pytest.approx((2.0**-7 / 2.0**-23) ** (1 / 3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-2)])
def test_a_loss_that_scales_with_its_parameters_is_differenced_alike_at_every_scale(scale, dtype, tolerance):
    def loss(values, reads):
        return (values["p"] / max(scale, 1e-2)).sin() @ reads["u"]["v"]

    generator = torch.Generator().manual_seed(1)
    upper, cotangent = (torch.randn(1000, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    point = parameters(scale, dtype)
    lower = LowerLevel([loss], point, {"u": {"v": upper}}, dtype)
    found = FiniteDifference().respond(lower, {"p": cotangent}).contributions["u"]["v"]
    expected = -(point["p"] / max(scale, 1e-2)).cos() / max(scale, 1e-2) * cotangent
    assert ((found - expected).norm() / expected.norm()).item() < tolerance


def test_a_radius_that_is_given_is_used():
    seen = []

    def loss(values, reads):
        with torch._C.DisableTorchFunction():  # what the loss itself detaches stays where it is
            seen.append(values["p"].detach().clone())
        return values["p"] @ reads["u"]["v"]

    lower = LowerLevel([loss], parameters(1.0), {"u": {"v": torch.ones(1000, dtype=torch.float64)}})
    FiniteDifference(radius=0.5).respond(lower, {"p": torch.ones(1000, dtype=torch.float64)})
    distances = [(point - lower.parameters["p"]).norm().item() for point in seen]
    assert distances == pytest.approx([0.5, 0.5])
