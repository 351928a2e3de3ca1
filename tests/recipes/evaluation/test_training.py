"""Protocols that train: their parts against computations by hand, and what they reach on toy sets."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from claims import above, below, claims, start
from digits import digits as digits_data
from digits import setup as setup_of
from PIL import Image

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.data import Split
from multilevel.recipes.data.images import MemoryImages, Source
from multilevel.recipes.evaluation import Candidate, EvaluationSettings, evaluate_features
from multilevel.recipes.evaluation.drop_path import DropPath, add_drop_path
from multilevel.recipes.evaluation.lars import LARS
from multilevel.recipes.evaluation.mixing import Mixing, cutmix, draw_box, mixup, soft_targets
from multilevel.recipes.evaluation.protocols.base import Trial
from multilevel.recipes.evaluation.protocols.finetune import FinetuneProtocol, parameter_groups
from multilevel.recipes.evaluation.protocols.head import Head
from multilevel.recipes.evaluation.protocols.linear_probe_sgd import LinearProbeSGD, new_probe
from multilevel.solvers import SettingError


def autoencoder(width=16, depth=2, seed=0):
    torch.manual_seed(seed)
    sizes = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.75}
    return MaskedAutoencoder.of_size(image_size=8, channels=1, patch_size=2, width=width, depth=depth, heads=2, **sizes)


def candidate(module=None):
    module = module or autoencoder()
    return Candidate("encoder", module.features, module)


class Pictures(Source):
    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def open(self, row):
        return Image.fromarray(self.pixels[row])

    def describe_row(self, row):
        return str(row)


def stripes(seed):
    """Two classes: somewhere on noise, one patch of horizontal or of vertical stripes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, 1000)
    pixels = random.normal(128, 30, (1000, 8, 8))
    for image, label in zip(pixels, labels, strict=True):
        row, column = 2 * random.integers(0, 4, 2)
        patch = np.array([[60, 60], [-60, -60]])
        image[row : row + 2, column : column + 2] += patch.T if label else patch
    source = Pictures(pixels.clip(0, 255).astype(np.uint8), torch.from_numpy(labels))
    images = MemoryImages(source, 8, 1, torch.arange(1000))
    train, test = (
        Split(name, images, some) for name, some in zip(("train", "test"), torch.arange(1000).split(700), strict=True)
    )
    mean, std = torch.tensor([0.5]), torch.tensor([0.1])
    names = ("horizontal", "vertical")
    return replace(digits_data(), train=train, test=test, class_names=names, mean=mean, std=std)


@claims(finetune=above(0.93), gain_over_linear_probe=above(0))
def striped(seed):
    return scores_of_stripes(candidate(start(autoencoder(seed=seed))), seed)


def scores_of_stripes(encoder, seed):
    options = FinetuneProtocol(
        epochs=20, least_updates=1, batch_size=50, learning_rate=2e-2, layer_decay=0.9, mixup=0.0, cutmix=0.0
    )
    settings = EvaluationSettings(protocols=["linear_probe", "finetune"], finetune=options, seed=seed)
    scores = evaluate_features([encoder], setup_of(stripes(seed)), settings)
    probe, finetuned = (one.metrics["accuracy"] for one in scores[:2])
    return {"finetune": finetuned, "gain_over_linear_probe": finetuned - probe}


def test_finetuning_learns_what_a_linear_probe_cannot_and_leaves_the_encoder_alone():
    encoder = candidate()
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    state = torch.get_rng_state()
    striped.hold(scores_of_stripes(encoder, seed=0))
    assert torch.equal(torch.get_rng_state(), state)
    after = encoder.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["finetune", "head", "linear_probe_sgd"])
def test_training_depends_on_the_seed_alone(setup, name, precision):
    kinds = {"finetune": FinetuneProtocol, "head": Head, "linear_probe_sgd": LinearProbeSGD}
    small = EvaluationSettings(
        protocols=[name], max_images=100, **{name: kinds[name](epochs=2, least_updates=1, batch_size=32)}
    )
    augmented = setup(precision=precision, flip=True, crop_scale=0.6)
    encoder = candidate()
    scores = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(scores))
        scores.append(evaluate_features([encoder], augmented, replace(small, seed=seed))[0].metrics)
    assert scores[0] == scores[1] != scores[2]


class Pixels(torch.nn.Module):
    """An encoder whose every token is the whole image."""

    width = 64

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(64))

    def features(self, images):
        return images.flatten(1) * self.scale

    def encode(self, images):
        return self.features(images)[:, None].expand(-1, 3, -1)


@claims(regression=above(0.96), furthest_from_it=below(0.02))
def pixels(seed):
    settings = EvaluationSettings(protocols=["linear_probe", "linear_probe_sgd", "head"], seed=seed)
    scores = evaluate_features([candidate(start(Pixels()))], setup_of(), settings)
    regression, *others = (one.metrics["accuracy"] for one in scores[:3])
    return {"regression": regression, "furthest_from_it": max(abs(other - regression) for other in others)}


def test_the_probe_by_sgd_and_the_head_come_close_to_the_regression():
    pixels.check()


def test_few_images_are_gone_over_more_often(setup):
    calls = []
    encoder = candidate(Pixels())
    encoder = replace(encoder, features=lambda images: calls.append(len(images)) or images.flatten(1))
    options = LinearProbeSGD(epochs=3, least_updates=17, batch_size=32)
    settings = EvaluationSettings(protocols=["linear_probe_sgd"], max_images=100, linear_probe_sgd=options)
    evaluate_features([encoder], setup(), settings)
    assert calls[:18] == [32] * 18  # three batches an epoch, six epochs
    assert sum(calls[18:]) == len(setup().data.test)


def test_raw_pixels_take_part_where_features_are_enough(setup):
    raw = Candidate("raw pixels", lambda images: images.flatten(1))
    options = FinetuneProtocol(epochs=1, least_updates=1)
    settings = EvaluationSettings(protocols=["knn", "finetune"], max_images=100, finetune=options)
    found = [(one.encoder, one.protocol) for one in evaluate_features([candidate(), raw], setup(), settings)]
    assert found == [
        ("encoder", "knn"), ("encoder", "finetune"), ("raw pixels", "knn"),
        ("majority class", "knn"), ("majority class", "finetune"),
    ]  # fmt: skip


def test_a_diverging_fit_names_its_learning_rate(setup):
    settings = EvaluationSettings(
        protocols=["finetune"], max_images=200, finetune=FinetuneProtocol(epochs=9, learning_rate=1e30)
    )
    with pytest.raises(SettingError, match=r"evaluation\.finetune\.learning_rate: got .* a smaller one"):
        evaluate_features([candidate()], setup(), settings)


def test_learning_rates_decay_from_layer_to_layer():
    encoder, head = autoencoder(depth=2), torch.nn.Linear(16, 3)
    groups = {group["name"]: group for group in parameter_groups(encoder, head, 8.0, 0.05, 0.5)}
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates["embeddings.cls_token"] == rates["embeddings.patch_embeddings.projection.weight"] == 1.0
    assert rates["layers.0.mlp.fc1.weight"] == rates["layers.0.layernorm_before.bias"] == 2.0
    assert rates["layers.1.attention.q_proj.weight"] == 4.0
    assert rates["layernorm.weight"] == rates["head.weight"] == rates["head.bias"] == 8.0
    assert Counter(rates.values()) == {1.0: 3, 2.0: 16, 4.0: 16, 8.0: 4}
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.05}
    assert decayed == {
        name for name in rates if name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "projection.weight"))
    } | {"head.weight"}


def test_lars_takes_the_steps_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    matrix, vector = (torch.randn(shape, generator=generator).double() for shape in ((3, 4), (4,)))
    gradients = [[torch.randn(one.shape, generator=generator).double() for one in (matrix, vector)] for _ in range(3)]
    expected = [one.numpy().copy() for one in (matrix, vector)]
    velocity = [np.zeros((3, 4)), np.zeros(4)]
    for some in gradients:
        for index, gradient in enumerate(one.numpy() for one in some):
            if index == 0:
                gradient = gradient + 0.1 * expected[0]
                gradient = gradient * 0.02 * np.linalg.norm(expected[0]) / np.linalg.norm(gradient)
            velocity[index] = 0.9 * velocity[index] + gradient
            expected[index] = expected[index] - 0.5 * velocity[index]
    parameters = [torch.nn.Parameter(one.clone()) for one in (matrix, vector)]
    optimizer = LARS(parameters, lr=0.5, weight_decay=0.1, trust=0.02)
    for some in gradients:
        for parameter, gradient in zip(parameters, some, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, truth in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), truth, rtol=1e-12)


def test_lars_does_not_scale_where_a_norm_is_0():
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    LARS([parameter], lr=0.5).step()
    assert torch.equal(parameter.detach(), torch.full((2, 2), -0.5))


def test_drop_path_leaves_out_whole_images_and_keeps_the_expectation():
    torch.manual_seed(0)
    layer = DropPath(0.3)
    dropped = layer(torch.ones(20_000, 2, 3))
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert sorted(set(dropped.flatten().tolist())) == [0.0, pytest.approx(1 / 0.7)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)  # four standard deviations
    branch = torch.randn(5, 2, 3)
    assert torch.equal(layer.eval()(branch), branch)


def test_drop_path_rises_from_layer_to_layer_and_is_on_both_branches():
    encoder = autoencoder(depth=3)
    images = torch.randn(4, 1, 8, 8)
    before = encoder.encode(images)
    add_drop_path(encoder, 0.2)
    rates = [module.rate for module in encoder.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    assert torch.equal(encoder.eval().encode(images), before)
    add_drop_path(encoder, 1 - 1e-7)  # the last layer is then the identity
    tokens = torch.randn(4, 17, 16)
    assert torch.equal(encoder.train().mae.vit.layers[2](tokens), tokens)


def test_soft_targets_mixup_and_cutmix_by_hand():
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    assert targets.tolist() == [
        pytest.approx([0.025, 0.025, 0.925, 0.025]),
        pytest.approx([0.925, 0.025, 0.025, 0.025]),
    ]
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    targets = soft_targets(torch.tensor([2, 0]), 3, 0.0)
    mixed, soft = mixup(images, targets, 0.75)
    assert torch.equal(mixed, torch.stack([torch.full((1, 4, 4), 0.25), torch.full((1, 4, 4), 0.75)]))
    assert soft.tolist() == [[0.25, 0.0, 0.75], [0.75, 0.0, 0.25]]
    mixed, soft = cutmix(images, targets, (1, 3, 0, 1))
    expected = torch.zeros(4, 4)
    expected[1:3, 0] = 1
    assert torch.equal(mixed, torch.stack([expected[None], 1 - expected[None]]))
    assert soft.tolist() == [[0.125, 0.0, 0.875], [0.875, 0.0, 0.125]]


def test_a_mixed_batch_has_targets_in_proportion_to_what_is_seen():
    torch.manual_seed(0)
    images = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    for mixing in (Mixing(2, 0.0, 0.8, 0.0), Mixing(2, 0.0, 0.0, 1.0), Mixing(2, 0.0, 0.8, 1.0)):
        shares = set()
        for _ in range(50):
            mixed, soft = mixing(images, torch.tensor([0, 1]))
            torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 1], rtol=0, atol=1e-6)
            torch.testing.assert_close(soft.sum(1), torch.ones(2), rtol=0, atol=1e-6)
            shares.add(round(soft[0, 0].item(), 3))
        assert len(shares) > 10
    unmixed, hard = Mixing(2, 0.0, 0.0, 0.0)(images, torch.tensor([0, 1]))
    assert torch.equal(unmixed, images)
    assert torch.equal(hard, torch.eye(2))


def test_boxes_lie_in_the_image_and_have_the_area_where_they_fit():
    torch.manual_seed(0)
    boxes = [draw_box(32, 0.75) for _ in range(200)]
    areas = [(bottom - top) * (right - left) for top, bottom, left, right in boxes]
    assert max(areas) == 16 * 16 == 0.25 * 32 * 32
    assert min(min(box) for box in boxes) == 0
    assert max(max(box) for box in boxes) == 32


def test_the_probe_standardizes_without_parameters():
    probe = new_probe(5, 3)
    assert [name for name, _ in probe.named_parameters()] == ["1.weight", "1.bias"]
    assert probe[1].weight.std() < 0.03


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("finetune", {"epochs": 0}, "epochs: got 0; expected a whole number of at least 1"),
        ("finetune", {"layer_decay": 1.5}, "layer_decay: got 1.5"),
        ("finetune", {"label_smoothing": 1.0}, "label_smoothing: got 1.0"),
        ("finetune", {"cutmix": -1.0}, "cutmix: got -1.0"),
        ("linear_probe_sgd", {"optimizer": "adam"}, "optimizer: got 'adam'; expected one of sgd, lars"),
        ("head", {"learning_rate": 0.0}, "learning_rate: got 0.0"),
    ],
)
def test_options_out_of_range_are_named(name, options, text):
    kinds = {"finetune": FinetuneProtocol, "head": Head, "linear_probe_sgd": LinearProbeSGD}
    with pytest.raises(SettingError, match=rf"evaluation\.{name}\.{text}"):
        EvaluationSettings(**{name: kinds[name](**options)})


def test_an_unknown_protocol_names_those_that_there_are():
    names = "finetune, head, knn, linear_probe, linear_probe_sgd"
    with pytest.raises(SettingError, match=rf"evaluation\.protocols: got 'svm'; expected some of {names}"):
        EvaluationSettings(protocols=["knn", "svm"])


@pytest.mark.parametrize("name", ["finetune", "head", "linear_probe_sgd"])
def test_a_prediction_depends_on_its_image_alone(setup, name):
    kinds = {"finetune": FinetuneProtocol, "head": Head, "linear_probe_sgd": LinearProbeSGD}
    protocol, all_of_it = kinds[name](epochs=2, least_updates=5, batch_size=32), setup()
    few = replace(all_of_it.data.test, indices=all_of_it.data.test.indices[:40])
    predictions = [
        protocol.predict(
            Trial(candidate(), all_of_it, all_of_it.data.train, scored, lambda: None, "accuracy", 5, batch_size, 0)
        )
        for scored, batch_size in ((all_of_it.data.test, 100), (few, 7))
    ]
    np.testing.assert_allclose(predictions[0][:40], predictions[1], rtol=1e-4, atol=1e-5)
