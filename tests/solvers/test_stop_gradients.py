"""Finite differences hold what a loss takes out of the graph, in whatever way, as double backward does by itself."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multilevel.solvers import FirstOrder, LowerLevel, ProductChoice, ProductError
from multilevel.solvers.products import PRODUCTS

POINT = torch.tensor([0.3, 1.0, -0.4, 2.0], dtype=torch.float64)
UPPER = {"u": {"v": POINT.cos()}}
DIRECTION = {"p": torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)}


def without_gradients(x):
    with torch.no_grad():
        return x.sin().mul_(2)


def adversarial(x):
    point = torch.ones_like(x, requires_grad=True)
    return point + torch.autograd.grad((point.sin() * x).sum(), point)[0]


def straight_through(x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return F.gumbel_softmax(x[None].expand(3, -1), tau=0.7, hard=True).sum(0)


def saved_and_loaded(x):
    file = io.BytesIO()
    torch.save(x.detach(), file)
    file.seek(0)
    return torch.load(file)


def given_as_data(x):
    other = torch.empty_like(x)
    other.data = x.data
    return other


def inferred(x):
    with torch.inference_mode():
        result = x.sin()
    return result.clone()


def branching(condition):
    return lambda x: x * (2.0 if condition(x) else 3.0)


#: Conditions that hold at the point and not on one side of it.
BRANCHES = {
    "bool": branching(lambda x: x.sum() >= POINT.sum()),
    "equal": branching(lambda x: torch.equal(x, POINT)),
    "allclose": branching(lambda x: torch.allclose(x, POINT, rtol=0.0, atol=1e-12)),
    "is_nonzero": branching(lambda x: torch.is_nonzero((x.sum() >= POINT.sum()).double())),
}

#: A function of the parameters, outside the graph or in part.
STOPS = {
    "detach": torch.Tensor.detach,
    "torch.detach": torch.detach,
    "data": lambda x: x.data,
    "no_grad": without_gradients,
    "item": lambda x: torch.ones_like(x) * x.sum().item(),
    "float": lambda x: torch.ones_like(x) * float(x.sum()),
    "int": lambda x: x * int(1e6 * x.sum()) / 1e6,
    "index": lambda x: x * (range(10**7)[(1e6 * x.sum()).long()] / 1e6),
    "tolist": lambda x: x * sum(x.tolist()),
    "detach_": lambda x: x.clone().detach_() * 2,
    "torch.detach_": lambda x: torch.detach_(x.clone()) * 2,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() * 2),
    "np.asarray": lambda x: torch.from_numpy(np.asarray(x.detach()) * 2),
    "DLPack": lambda x: torch.from_numpy(np.from_dlpack(x.detach())).clone(),
    "torch.tensor": lambda x: torch.tensor(x),
    "new_tensor": lambda x: x.new_tensor(x),
    "deepcopy": lambda x: copy.deepcopy(x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x.detach())),
    "torch.save": saved_and_loaded,
    "data given": given_as_data,
    "inference_mode": inferred,
    "a formatted number": lambda x: torch.ones_like(x) * float(f"{x.sum():.15f}"),
    "autograd.grad": adversarial,
    "gumbel_softmax": straight_through,
    **{f"a branch by {name}": branch for name, branch in BRANCHES.items()},
}


def lower_of(stop):
    def loss(p, reads):
        return (stop(p["p"]).exp() * p["p"].square() * reads["u"]["v"].square()).sum()

    return LowerLevel([loss], {"p": POINT}, UPPER, torch.float64)


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("stop", STOPS)
def test_differences_cut_what_double_backward_cuts(stop):
    lower = lower_of(STOPS[stop])
    found, expected = (PRODUCTS[form](lower) for form in ("finite_difference", "reverse"))
    torch.testing.assert_close(found.hessian(DIRECTION), expected.hessian(DIRECTION), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.mixed(DIRECTION), expected.mixed(DIRECTION), rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("stop", STOPS)
def test_one_step_of_first_order_is_the_identity(stop):
    lower = lower_of(STOPS[stop])
    found = FirstOrder(steps=1, step_size=1.0).respond(lower, DIRECTION).contributions["u"]["v"]
    expected = PRODUCTS["reverse"](lower).mixed(DIRECTION)["u"]["v"]
    torch.testing.assert_close(found, -expected, rtol=1e-7, atol=1e-8)


def measured(p, reads):
    loss = (p["p"].exp() * reads["u"]["v"].square()).sum()
    _ = (p["p"].detach().argmax() == 0).float().mean()  # a metric
    return loss


def test_only_a_loss_that_goes_on_with_what_it_detaches_is_evaluated_once_more():
    choice = ProductChoice()
    products = PRODUCTS["finite_difference"](LowerLevel([measured], {"p": POINT}, UPPER, choice=choice))
    products.mixed(DIRECTION)
    assert (products.evaluations, choice.detaches) == (2, False)
    for _ in range(2):  # the second solve knows
        products = PRODUCTS["finite_difference"](
            LowerLevel(lower_of(torch.detach).losses, {"p": POINT}, UPPER, choice=choice)
        )
        products.mixed(DIRECTION)
        products.hessian(DIRECTION)
        assert (products.evaluations, choice.detaches) == (5, True)


def test_a_loss_that_detaches_less_at_moved_parameters_is_refused():
    evaluations = []

    def loss(p, reads):
        evaluations.append(p)
        weight = p["p"].detach() if len(evaluations) < 3 else torch.ones_like(POINT)  # found, recorded, then another
        return (weight * p["p"].square() * reads["u"]["v"].square()).sum()

    with pytest.raises(ProductError, match="detaches other values at moved parameters"):
        PRODUCTS["finite_difference"](LowerLevel([loss], {"p": POINT}, UPPER)).mixed(DIRECTION)
