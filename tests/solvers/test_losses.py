"""The losses of torch.nn.functional under every form of product, against double backward of torch alone."""

import pytest
import torch
from torch.nn import functional as F
from toy import toy_graph

from multilevel.problems.engine import Engine
from multilevel.solvers import Identity, LowerLevel
from multilevel.solvers.products import PRODUCTS

DOUBLE = {"dtype": torch.float64}
generator = torch.Generator().manual_seed(0)
X, P, U, V, T = (
    torch.randn(*shape, generator=generator, **DOUBLE) for shape in ((6, 4), (4, 5), (4, 5), (4, 5), (6, 5))
)
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
SHARES, BITS = T.softmax(1), (T > 0).double()
WEIGHTS = torch.rand(5, generator=generator, **DOUBLE) + 0.5
SIGNS = torch.tensor([1.0, -1, 1, 1, -1, 1], **DOUBLE)

#: Of z [6, 5], the outputs of a network.
LOSSES = {
    "mse_loss": lambda z: F.mse_loss(z, T),
    "MSELoss": lambda z: torch.nn.MSELoss()(z, T),
    "mse_loss, sum": lambda z: F.mse_loss(z, T, reduction="sum"),
    "mse_loss, deprecated sum": lambda z: F.mse_loss(z, T, size_average=False),
    "mse_loss, none": lambda z: F.mse_loss(z, T, reduction="none").square().mean(),
    "mse_loss, weight": lambda z: F.mse_loss(z, T, weight=SHARES),
    "mse_loss, the target moves": lambda z: F.mse_loss(z[:3], z[3:]),
    "mse_loss, the target alone moves": lambda z: F.mse_loss(T, z),
    "l1_loss": lambda z: F.l1_loss(z, T),
    "smooth_l1_loss": lambda z: F.smooth_l1_loss(z, T, beta=2.0),
    "huber_loss": lambda z: F.huber_loss(z, T, delta=1.5),
    "huber_loss, sum": lambda z: F.huber_loss(z, T, "sum", 0.7),
    "huber_loss, none": lambda z: F.huber_loss(z, T, reduction="none").square().mean(),
    "huber_loss, weight": lambda z: F.huber_loss(z, T, weight=SHARES),
    "cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "cross_entropy, class weights": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHTS),
    "cross_entropy, label smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1),
    "cross_entropy, both": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHTS, label_smoothing=0.1),
    "cross_entropy, soft targets": lambda z: F.cross_entropy(z, SHARES),
    "cross_entropy, all of it": lambda z: F.cross_entropy(z, SHARES, weight=WEIGHTS, label_smoothing=0.1),
    "cross_entropy, none": lambda z: F.cross_entropy(z, LABELS, reduction="none").square().mean(),
    "cross_entropy, ignored labels": lambda z: F.cross_entropy(z, LABELS.where(LABELS != 2, -100)),
    "nll_loss": lambda z: F.nll_loss(z.log_softmax(1), LABELS, weight=WEIGHTS),
    "kl_div": lambda z: F.kl_div(z.log_softmax(1), SHARES, reduction="batchmean"),
    "kl_div, logarithms": lambda z: F.kl_div(z.log_softmax(1), SHARES.log(), log_target=True, reduction="sum"),
    "kl_div, both move": lambda z: F.kl_div(z[:3].log_softmax(1), z[3:].softmax(1), reduction="batchmean"),
    "bce with logits": lambda z: F.binary_cross_entropy_with_logits(z, BITS),
    "bce with logits, weights": lambda z: F.binary_cross_entropy_with_logits(z, BITS, WEIGHTS, pos_weight=2 * WEIGHTS),
    "bce": lambda z: F.binary_cross_entropy(z.sigmoid(), BITS),
    "cosine_similarity": lambda z: F.cosine_similarity(z, T).mean(),
    "cosine_embedding_loss": lambda z: F.cosine_embedding_loss(z, T, SIGNS, margin=-0.5),
    "softplus": lambda z: F.softplus(2 * z, beta=0.5).mean(),
    "logsigmoid": lambda z: F.logsigmoid(z).mean(),
    "soft_margin_loss": lambda z: F.soft_margin_loss(z[:, 0], SIGNS),
    "soft_margin_loss, sum": lambda z: F.soft_margin_loss(z[:, 0], SIGNS, reduction="sum"),
    "multilabel_soft_margin_loss": lambda z: F.multilabel_soft_margin_loss(z, BITS),
    "hinge_embedding_loss": lambda z: F.hinge_embedding_loss(z[:, 0], SIGNS),
    "margin_ranking_loss": lambda z: F.margin_ranking_loss(z[:, 0], z[:, 1], SIGNS, margin=5.0),
    "triplet_margin_loss": lambda z: F.triplet_margin_loss(z[:2], z[2:4], z[4:], margin=8.0),
    "poisson_nll_loss": lambda z: F.poisson_nll_loss(z, BITS),
    "gaussian_nll_loss": lambda z: F.gaussian_nll_loss(z, T, z.exp()),
    "pairwise_distance": lambda z: F.pairwise_distance(z, T).mean(),
    "normalize": lambda z: (F.normalize(z) * T).sum(),
}
TOLERANCE = {"auto": 1e-10, "forward": 1e-10, "reverse": 1e-10, "finite_difference": 1e-6}


def loss_of(name):
    def loss(p, u):
        outputs = (X @ p).tanh() * 2 * u.sum(0).sin()
        return LOSSES[name](outputs) + 0.1 * (p * u).sum().square()

    return loss


def double_backward(loss):
    """The Hessian in p times V, and the mixed product."""
    p, u = P.clone().requires_grad_(), U.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(p, u), p, create_graph=True)
    return torch.autograd.grad((slope * V).sum(), [p, u])


@pytest.mark.parametrize("product", list(PRODUCTS))
@pytest.mark.parametrize("name", list(LOSSES))
def test_products(name, product):
    loss = loss_of(name)
    lower = LowerLevel([lambda v, r: loss(v["p"], r["u"]["v"])], {"p": P}, {"u": {"v": U}}, torch.float64)
    products = PRODUCTS[product](lower)
    hessian, mixed = double_backward(loss)
    found = products.hessian({"p": V})["p"], products.mixed({"p": V})["u"]["v"]
    for value, expected in zip(found, (hessian, mixed), strict=True):
        assert ((value - expected).norm() / expected.norm()).item() < TOLERANCE[product]
    assert lower.choice.name == "forward"


@pytest.mark.filterwarnings("error:self-check")
@pytest.mark.parametrize("product", ["auto", "finite_difference"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_hypergradients_of_an_engine(name, product):
    """With the engine's own function modes around the loss, and the self-check, which is silent."""
    loss = loss_of(name)
    functions = {"p": lambda v: loss(v["p"], v["u"]), "u": lambda v: (v["p"] * V).sum()}
    found = Engine(toy_graph(functions, {"p": P, "u": U}, {"p": Identity(product=product)})).hypergradient("u")["value"]
    expected = -double_backward(loss)[1]
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE[product]
