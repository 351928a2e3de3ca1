"""The three levels of the guided autoencoder, and the hypergradient that reaches the masking network."""

from types import SimpleNamespace

import pytest
import torch
from claims import above, claims, start
from torch import nn
from torch.func import functional_call
from toy import relative_error

from multilevel import Engine, Graph
from multilevel.levels import (
    AdversarialMask,
    Finetune,
    MaskedAutoencoder,
    MaskedPretrain,
    MaskingNetwork,
    MaskLearning,
)
from multilevel.levels.masks import POLICIES
from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.classification import ClassificationTask
from multilevel.levels.tasks.detection import Detection
from multilevel.levels.tasks.segmentation import Segmentation
from multilevel.solvers import FiniteDifference, Identity, SettingError

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(18, 1, 8, 8, generator=generator, dtype=torch.float64)
LABELS = torch.randint(3, (18,), generator=generator)
DATA = TaskData(("a", "b", "c"), (6, 6, 6), image_size=8, patch_size=2)
TASK = ClassificationTask(DATA)
PARTS = list(zip(IMAGES.split(6), LABELS.split(6), strict=True))
MASKS = torch.randint(3, (18, 8, 8), generator=generator)
BOXES = torch.cat([4 * torch.rand(18, 2, 2, generator=generator), 4 + 4 * torch.rand(18, 2, 2, generator=generator)], 2)
BOXES = torch.cat([BOXES.double(), torch.randint(-1, 3, (18, 2, 1), generator=generator)], 2)


def levels(policy="topk", through_encoder=True, solver=None, bonus=0.0, task=TASK, parts=PARTS, seed=1, **options):
    torch.manual_seed(seed)
    sizes = {"image_size": 8, "channels": 1, "patch_size": 2}
    mae = MaskedAutoencoder.of_size(
        **sizes, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.75
    ).double()
    head, masking = task.new_head(8).double(), MaskingNetwork(**sizes, width=4).double()
    solver = solver or FiniteDifference(product="finite_difference")
    reads = None if POLICIES[policy]().learns_from == "downstream" else ("pretrain", "finetune")  # nothing moves it
    return Graph(
        MaskedPretrain("pretrain", mae, policy=POLICIES[policy](), data=parts[:1], solver=solver, **options),
        Finetune("finetune", head, task=task, through_encoder=through_encoder, data=parts[1:2], solver=solver),
        MaskLearning("mask", masking, task=task, data=parts[2:], entropy_bonus=bonus, reads=reads),
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


def by_hand(graph, weights, paths, gradient="weights", guided=6, downstream=classified, parts=PARTS):
    """The hypergradient with the identity for the inverse Hessian, written out with plain autograd.

    Of the pretraining images, the first ``guided`` have the masking network's masks.
    """
    mae, head, masking = (graph.problems[name].module for name in graph.names)
    encoder = {key: value for key, value in mae.named_parameters() if value.requires_grad}
    phi, top = dict(masking.named_parameters()), dict(head.named_parameters())
    scores = graph_scores(graph) if guided < 6 else masking(PARTS[0][0]).detach()
    own = (torch.arange(6) < guided)[:, None]

    def call(module, values, method, *arguments):
        class Method(nn.Module):
            def __init__(self):
                super().__init__()
                self.m = module

            def forward(self):
                return getattr(self.m, method)(*arguments)

        return functional_call(Method(), {f"m.{key}": value for key, value in values.items()})

    seen = 1 - masking(PARTS[0][0]).sigmoid()
    gate = torch.where(own, 1 + seen - seen.detach(), 1.0) if gradient in ("visibility", "both") else None
    prediction, hidden = call(mae, encoder, "reconstruct", PARTS[0][0], scores, gate)
    losses = mae.patch_losses(PARTS[0][0], prediction)
    probability = torch.where(own, 1 - seen, 1.0) * hidden
    if gradient == "visibility":
        pretrain = (losses * hidden).sum() / hidden.sum()
    elif weights == "normalized":
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


def graph_scores(graph):
    return Engine(graph).records()["records"]["pretrain"][0].draws["scores"]


def flat(gradient):
    return torch.cat([value.flatten() for value in gradient.values()])


@pytest.mark.parametrize(
    "solver",
    [FiniteDifference(product="finite_difference"), Identity(product="reverse"), Identity(product="forward")],
    ids=lambda solver: solver.product,
)
@pytest.mark.parametrize(
    ("gradient", "guidance"), [("visibility", 1.0), ("both", 1.0), ("both", 0.5), ("weights", 0.5)]
)
def test_the_hypergradient_goes_through_visibility_and_guided_images_alone(solver, gradient, guidance):
    graph = levels(solver=solver, gradient=gradient, guidance=guidance)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = by_hand(graph, "normalized", "both", gradient, round(6 * guidance))
    assert relative_error(flat(Engine(graph).hypergradient("mask")), expected) < 1e-5


def test_the_weight_of_an_outer_step_costs_no_further_solve():
    """Six pretraining updates on the direct path; 2 + 4 + 6 choices through the three updates of the head."""
    graph = levels(solver=Identity(scale=None, product="reverse"))
    for name, rate, steps in (("pretrain", 0.01, 2), ("finetune", 0.1, 3)):
        problem = graph.problems[name]
        problem.steps, problem.optimizer = steps, torch.optim.SGD(problem.variables().values(), rate)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        direct, both = (by_hand(graph, "normalized", paths) for paths in ("direct", "both"))
    hypergradient = Engine(graph).solve_hypergradient("mask")
    assert relative_error(flat(hypergradient.values), 6 * 0.01 * direct + 12 * 0.01 * 0.1 * (both - direct)) < 1e-5
    plain = Engine(levels(solver=Identity(product="reverse"))).solve_hypergradient("mask")
    costs = [
        {name: (report.evaluations, report.products) for name, report in reports.items()}
        for reports in (hypergradient.reports, plain.reports)
    ]
    assert costs[0] == costs[1] == {"finetune": (1, 1), "pretrain": (1, 1)}


def recorded(**options):
    """The pretraining loss and metrics of a recorded batch, the record, and the graph."""
    graph = levels("sampled", **options)
    engine = Engine(graph)
    (part,) = engine.records()["records"]["pretrain"]
    return *engine.evaluator.loss("pretrain", part, {}), part.draws, graph


@pytest.mark.parametrize("gradient", ["weights", "visibility", "both"])
@pytest.mark.parametrize("weights", ["normalized", "raw"])
def test_without_guidance_it_is_a_plain_masked_autoencoder(weights, gradient):
    loss, _, draws, graph = recorded(weights=weights, gradient=gradient, guidance=0.0)
    mae = graph.problems["pretrain"].module.mae
    expected = mae(IMAGES[:6], noise=draws["scores"])  # transformers' own loss with the same patches hidden
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    assert not draws["guided"].any()
    ranks = draws["scores"].sort(1).values
    assert 0 <= ranks.min() <= ranks.max() < 1  # uniform noise, no logits
    assert not flat(Engine(graph).hypergradient("mask")).any()


@pytest.mark.parametrize("gradient", ["weights", "visibility", "both"])
def test_the_gate_leaves_the_loss_alone(gradient):
    loss, metrics, draws, graph = recorded(gradient=gradient)
    plain = graph.problems["pretrain"].module.mae(IMAGES[:6], noise=draws["scores"]).loss.item()
    reconstruction = loss.item() if gradient == "visibility" else metrics["reconstruction"]
    assert reconstruction == pytest.approx(plain, rel=1e-6)


def test_the_share_of_guided_images_is_exact_on_average():
    graph = levels("sampled", guidance=0.3)
    pretrain, evaluator = graph.problems["pretrain"], Engine(graph).evaluator
    torch.manual_seed(0)
    counts = [evaluator.record(pretrain.name, PARTS[0]).draws["guided"].sum().item() for _ in range(400)]
    assert set(counts) == {1, 2}
    assert sum(counts) / 400 == pytest.approx(0.3 * 6, abs=0.08)


def test_statistics_are_of_the_masks_that_are_used():
    _, metrics, draws, graph = recorded()
    _, hidden = graph.problems["pretrain"].module.reconstruct(IMAGES[:6], draws["scores"])
    counts = hidden.sum(0)
    assert metrics["overlap"] == pytest.approx((counts * (counts - 1)).sum().item() / (6 * 5 * 12))
    assert metrics["never_hidden"] == (counts == 0).double().mean()
    assert set(recorded_of("random")) == set()


def recorded_of(policy):
    engine = Engine(levels(policy))
    return engine.records()["records"]["pretrain"][0].draws["statistics"]


def test_the_entropy_bonus_is_a_direct_gradient():
    without, graph = levels(), levels(bonus=0.25)
    assert without.reads["mask"] == graph.reads["mask"]
    masking = graph.problems["mask"].module
    share = masking(PARTS[2][0]).sigmoid()
    share = share / share.sum(1, keepdim=True)
    entropy = -(share * share.log()).sum(1).mean() / torch.tensor(16.0, dtype=torch.float64).log()
    expected = torch.cat([one.flatten() for one in torch.autograd.grad(-0.25 * entropy, masking.parameters())])
    found = flat(Engine(graph).hypergradient("mask")) - flat(Engine(without).hypergradient("mask"))
    assert relative_error(found, expected) < 1e-6


def adversarial_graph(seed=1):
    graph = levels("adversarial", seed=seed)
    pretrain, finetune, mask = graph.problems.values()
    data = PARTS[2:]
    return Graph(pretrain, finetune, AdversarialMask("mask", mask.module, policy=pretrain.policy, data=data))


def test_the_adversary_raises_the_reconstruction_loss_by_a_direct_gradient():
    graph = adversarial_graph()
    assert graph.reads == {"pretrain": (), "finetune": ("pretrain",), "mask": ()}
    assert graph.passes("mask") == ()
    engine = Engine(graph)
    (part,) = engine.records()["records"]["mask"]
    mae, masking = graph.problems["pretrain"].module, graph.problems["mask"].module
    hidden = part.draws["mask"]
    order = hidden + 0.0  # the same patches hidden: visible ones first
    prediction, _ = mae.reconstruct(PARTS[2][0], order)
    losses = mae.patch_losses(PARTS[2][0], prediction).detach()
    assert relative_error(part.draws["losses"] * hidden, losses * hidden) < 1e-9
    weights = masking(PARTS[2][0]).sigmoid() * hidden
    loss = -((weights / weights.sum(1, keepdim=True)) * losses).sum(1).mean()
    expected = torch.cat([one.flatten() for one in torch.autograd.grad(loss, masking.parameters())])
    assert relative_error(flat(engine.hypergradient("mask")), expected) < 1e-9


@claims(orders_of_magnitude=above(2))
def adversary(seed):
    """By how much more probable patches become whose losses are held high, the least of them than any other."""
    mask = adversarial_graph(seed).problems["mask"]
    optimizer = torch.optim.Adam(start(mask.module).parameters(), 0.05)
    hard = torch.arange(16) % 4 == 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(60):
        hidden = (torch.rand(6, 16, generator=generator).argsort(1) >= 4).double()
        draws = {"mask": hidden, "losses": (1.0 + hard).double().expand(6, -1)}
        loss, _ = mask.loss(SimpleNamespace(mask=mask.module), PARTS[2], draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probabilities = mask.module(PARTS[2][0]).sigmoid().mean(0)
    return {"orders_of_magnitude": (probabilities[hard].min() / probabilities[~hard].max()).log10().item()}


def test_the_adversary_learns_to_hide_what_is_hard():
    adversary.check()


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
        expected = by_hand(graph, "normalized", "both", downstream=downstream, parts=parts)
    found = torch.cat([value.flatten() for value in Engine(graph).hypergradient("mask").values()])
    assert relative_error(found, expected) < (1e-5 if product == "finite_difference" else 1e-6)


def pretrain_loss(policy, weights, shift):
    graph = levels(policy, weights=weights)
    engine = Engine(graph)
    with torch.no_grad():
        graph.problems["mask"].module.logit.weight.zero_()
        graph.problems["mask"].module.logit.bias.fill_(shift)
    part = engine.evaluator.record("pretrain", PARTS[0])
    loss, metrics = engine.evaluator.loss("pretrain", part, {})
    return loss.item(), metrics


def test_normalized_weights_cannot_lower_the_loss_by_the_probabilities_alone():
    for shift in (0.0, -3.0, -800.0):  # of the last, the probability itself is 0 in float64
        loss, metrics = pretrain_loss("topk", "normalized", shift)
        assert loss == pytest.approx(metrics["reconstruction"], rel=1e-6)
        raw, metrics = pretrain_loss("topk", "raw", shift)
        probability = torch.tensor(shift, dtype=torch.float64).sigmoid().item()
        assert raw == pytest.approx(probability * metrics["reconstruction"], rel=1e-6)


@pytest.mark.parametrize("policy", ["random", "block", "attention", "variance", "adversarial"])
@pytest.mark.parametrize("gradient", ["weights", "both"])
def test_masks_that_the_task_does_not_guide_leave_the_loss_plain(policy, gradient):
    graph = levels(policy, gradient=gradient)
    assert graph.reads["pretrain"] == ()
    (part,) = Engine(graph).records()["records"]["pretrain"]
    loss, _ = Engine(graph).evaluator.loss("pretrain", part, {})
    expected = graph.problems["pretrain"].module.mae(IMAGES[:6], noise=part.draws["scores"]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("weights", "none", "one of normalized, raw"),
        ("gradient", "none", "one of weights, visibility, both"),
        ("guidance", 1.5, "a share from 0 to 1"),
        ("guidance", -0.5, "a share from 0 to 1"),
    ],
)
def test_options_out_of_range_are_named(option, value, expected):
    with pytest.raises(SettingError, match=rf"mask\.{option}: got '?{value}'?; expected {expected}"):
        levels(**{option: value})
