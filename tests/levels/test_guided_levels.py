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
from multilevel.levels.tasks.detection import Detection
from multilevel.levels.tasks.segmentation import Segmentation
from multilevel.solvers import FiniteDifference, Identity, SettingError

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(18, 1, 8, 8, generator=generator, dtype=torch.float64)
LABELS = torch.randint(3, (18,), generator=generator)
DATA = TaskData(("a", "b", "c"), (6, 6, 6), image_size=8, patch_size=2)
TASK = Classification(DATA)
PARTS = list(zip(IMAGES.split(6), LABELS.split(6), strict=True))
MASKS = torch.randint(3, (18, 8, 8), generator=generator)
BOXES = torch.cat([4 * torch.rand(18, 2, 2, generator=generator), 4 + 4 * torch.rand(18, 2, 2, generator=generator)], 2)
BOXES = torch.cat([BOXES.double(), torch.randint(-1, 3, (18, 2, 1), generator=generator)], 2)


def levels(policy="topk", weights="normalized", through_encoder=True, solver=None, task=TASK, parts=PARTS):
    torch.manual_seed(1)
    sizes = {"image_size": 8, "channels": 1, "patch_size": 2}
    mae = MaskedAutoencoder.of_size(
        **sizes, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.75
    ).double()
    head, masking = task.new_head(8).double(), MaskingNetwork(**sizes, width=4).double()
    solver = solver or FiniteDifference(product="finite_difference")
    return Graph(
        MaskedPretrain("pretrain", mae, policy=POLICIES[policy](), weights=weights, data=parts[:1], solver=solver),
        Finetune("finetune", head, task=task, through_encoder=through_encoder, data=parts[1:2], solver=solver),
        MaskLearning("mask", masking, task=task, data=parts[2:]),
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


def classified(mae, head, part):
    return nn.functional.cross_entropy(head.linear(mae.features(part[0])), part[1])


def by_hand(graph, weights, paths, downstream=classified, parts=PARTS):
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

    a_encoder = list(torch.autograd.grad(downstream(mae, head, parts[2]), encoder.values(), allow_unused=True))
    if paths == "both":
        a_head = torch.autograd.grad(downstream(mae, head, parts[2]), top.values())
        inner = torch.autograd.grad(downstream(mae, head, parts[1]), top.values(), create_graph=True)
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


def segmented(mae, head, part):
    """Mean over pixels: of each patch's logits, interpolated between the centers of the patches."""
    at = ((torch.arange(8, dtype=torch.float64) + 0.5) / 2 - 0.5).clamp(0, 3)
    matrix = (1 - (at[:, None] - torch.arange(4)).abs()).clamp(min=0)
    grid = head.linear(mae.encode(part[0])[:, 1:]).reshape(-1, 4, 4, 3)
    logits = torch.einsum("yr,xc,brck->byxk", matrix, matrix, grid)
    return -logits.log_softmax(-1).gather(-1, part[1][..., None]).mean()


def detected(mae, head, part):
    """Box by box, the larger ones first, so that of several in a patch the smallest is left."""
    outputs = head.linear(mae.encode(part[0])[:, 1:])
    total = 0.0
    for output, boxes in zip(outputs, part[1].tolist(), strict=True):
        wanted = {}
        for left, top, right, bottom, number in sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1])):
            if number >= 0:
                x, y, size = (left + right) / 4, (top + bottom) / 4, torch.tensor([right - left, bottom - top]) / 2
                center = torch.tensor([x % 1 - 0.5, y % 1 - 0.5])
                wanted[4 * int(y) + int(x)] = (torch.cat([center, size.log()]).double(), int(number))
        for patch in range(16):
            objects = torch.zeros(3, dtype=torch.float64)
            if patch in wanted:
                numbers, number = wanted[patch]
                objects[number] = 1
                distance = (output[patch, :4] - numbers).abs()
                total = total + torch.where(distance < 1, distance.square() / 2, distance - 0.5).sum()
            chance = output[patch, 4:].sigmoid()
            total = total - (objects * chance.log() + (1 - objects) * (1 - chance).log()).sum()
    return total / len(outputs)


@pytest.mark.parametrize(
    ("task", "targets", "downstream"),
    [(Segmentation, MASKS, segmented), (Detection, BOXES, detected)],
    ids=["segmentation", "detection"],
)
@pytest.mark.parametrize("product", ["finite_difference", "forward"])
def test_masks_and_boxes_reach_the_masking_network_as_written_out_by_hand(task, targets, downstream, product):
    parts = list(zip(IMAGES.split(6), targets.split(6), strict=True))
    solver = Identity(product=product) if product != "finite_difference" else None
    graph = levels(task=task(DATA), parts=parts, solver=solver)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = by_hand(graph, "normalized", "both", downstream, parts)
    found = torch.cat([value.flatten() for value in Engine(graph).hypergradient("mask").values()])
    assert relative_error(found, expected) < (1e-5 if product == "finite_difference" else 1e-6)


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
