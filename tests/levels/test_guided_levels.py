"""The three levels of the guided autoencoder, and the hypergradient that reaches the masking network."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from toy import relative_error

from multilevel import Engine, Graph
from multilevel.levels import Finetune, MaskedAutoencoder, MaskedPretrain, MaskingNetwork, MaskLearning
from multilevel.levels.masks import POLICIES
from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.classification import Classification
from multilevel.solvers import FiniteDifference, SettingError

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(18, 1, 8, 8, generator=generator, dtype=torch.float64)
LABELS = torch.randint(3, (18,), generator=generator)
TASK = Classification(TaskData(("a", "b", "c"), (6, 6, 6), image_size=8, patch_size=2))
PARTS = list(zip(IMAGES.split(6), LABELS.split(6), strict=True))


def levels(policy="topk", weights="normalized", through_encoder=True, solver=None):
    torch.manual_seed(1)
    sizes = {"image_size": 8, "channels": 1, "patch_size": 2}
    mae = MaskedAutoencoder.of_size(
        **sizes, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.75
    ).double()
    head, masking = TASK.new_head(8).double(), MaskingNetwork(**sizes, width=4).double()
    solver = solver or FiniteDifference(product="finite_difference")
    return Graph(
        MaskedPretrain("pretrain", mae, policy=POLICIES[policy](), weights=weights, data=PARTS[:1], solver=solver),
        Finetune("finetune", head, task=TASK, through_encoder=through_encoder, data=PARTS[1:2], solver=solver),
        MaskLearning("mask", masking, task=TASK, data=PARTS[2:]),
    )


def test_who_reads_whom():
    assert levels().reads == {"pretrain": ("mask",), "finetune": ("pretrain",), "mask": ("pretrain", "finetune")}
    assert levels().passes("mask") == ("finetune", "pretrain")


def test_the_direct_path_leaves_out_the_finetuning():
    graph = levels(through_encoder=False)
    assert graph.reads["finetune"] == ()
    assert graph.passes("mask") == ("pretrain",)
    both, direct = (Engine(one).hypergradient("mask") for one in (levels(), graph))
    norms = {name: torch.cat([value.flatten() for value in one.values()]) for name, one in (("b", both), ("d", direct))}
    assert norms["d"].norm() > 0
    assert relative_error(norms["b"], norms["d"]) > 0.01


def by_hand(graph, weights, paths):
    """The hypergradient with the identity for the inverse Hessian, written out with plain autograd."""
    mae, head, masking = (graph.problems[name].module for name in graph.names)
    encoder = {key: value for key, value in mae.named_parameters() if value.requires_grad}
    phi, top = dict(masking.named_parameters()), dict(head.named_parameters())
    scores = masking(PARTS[0][0]).detach()

    def call(module, values, method, *arguments):
        class Method(nn.Module):
            def __init__(self):
                super().__init__()
                self.m = module

            def forward(self):
                return getattr(self.m, method)(*arguments)

        return functional_call(Method(), {f"m.{key}": value for key, value in values.items()})

    prediction, hidden = call(mae, encoder, "reconstruct", PARTS[0][0], scores)
    losses = mae.patch_losses(PARTS[0][0], prediction)
    probability = masking(PARTS[0][0]).sigmoid() * hidden
    if weights == "normalized":
        pretrain = (losses * probability / probability.sum(1, keepdim=True)).sum(1).mean()
    else:
        pretrain = (losses * probability).sum() / hidden.sum()

    def classify(part):
        return nn.functional.cross_entropy(head.linear(mae.features(part[0])), part[1])

    a_encoder = list(torch.autograd.grad(classify(PARTS[2]), encoder.values(), allow_unused=True))
    if paths == "both":
        a_head = torch.autograd.grad(classify(PARTS[2]), top.values())
        inner = torch.autograd.grad(classify(PARTS[1]), top.values(), create_graph=True)
        product = sum((one * other).sum() for one, other in zip(inner, a_head, strict=True))
        mixed = torch.autograd.grad(product, encoder.values(), allow_unused=True)
        a_encoder = [
            (0 if one is None else one) - (0 if other is None else other)
            for one, other in zip(a_encoder, mixed, strict=True)
        ]
    inner = torch.autograd.grad(pretrain, encoder.values(), create_graph=True, materialize_grads=True)
    product = sum((one * other).sum() for one, other in zip(inner, a_encoder, strict=True) if other is not None)
    result = torch.autograd.grad(product, phi.values())
    return torch.cat([-one.flatten() for one in result])


@pytest.mark.parametrize("weights", ["normalized", "raw"])
@pytest.mark.parametrize("paths", ["both", "direct"])
def test_the_hypergradient_is_the_one_written_out_by_hand(weights, paths):
    graph = levels(weights=weights, through_encoder=paths == "both")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = by_hand(graph, weights, paths)
    found = torch.cat([value.flatten() for value in Engine(graph).hypergradient("mask").values()])
    assert relative_error(found, expected) < 1e-5


def pretrain_loss(policy, weights, shift):
    graph = levels(policy, weights)
    engine = Engine(graph)
    with torch.no_grad():
        graph.problems["mask"].module.logit.weight.zero_()
        graph.problems["mask"].module.logit.bias.fill_(shift)
    part = engine.evaluator.record("pretrain", PARTS[0])
    loss, metrics = engine.evaluator.loss("pretrain", part, {})
    return loss.item(), metrics


def test_normalized_weights_cannot_lower_the_loss_by_the_probabilities_alone():
    for shift in (0.0, -3.0):
        loss, metrics = pretrain_loss("topk", "normalized", shift)
        assert loss == pytest.approx(metrics["reconstruction"].item(), rel=1e-6)
        raw, metrics = pretrain_loss("topk", "raw", shift)
        probability = torch.tensor(shift, dtype=torch.float64).sigmoid().item()
        assert raw == pytest.approx(probability * metrics["reconstruction"].item(), rel=1e-6)


def test_random_masks_read_no_masking_network():
    graph = levels("random")
    assert graph.reads["pretrain"] == ()


def test_unknown_weights_are_named():
    with pytest.raises(SettingError, match=r"mask\.weights: got 'none'; expected one of normalized, raw"):
        levels(weights="none")
