"""Evaluation of encoders: what is read, what is fitted, what is reported."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from multilevel.levels.tasks.classification import classification_metrics
from multilevel.recipes.evaluation import Candidate, EvaluationSettings, Score, evaluate_features, format_table
from multilevel.recipes.evaluation.evaluate import raw_pixels, stratified_positions
from multilevel.recipes.evaluation.labels import draw_labels
from multilevel.recipes.evaluation.protocols.linear_probe import fit_linear_probe
from multilevel.solvers import DataError, SettingError

SETTINGS = EvaluationSettings(max_images=300)


def accuracies(encoders, setup, settings=SETTINGS):
    """{encoder: {protocol: accuracy}}"""
    found = {}
    for score in evaluate_features([Candidate(*one) for one in encoders.items()], setup, settings):
        found.setdefault(score.encoder, {})[score.protocol] = score.metrics["accuracy"]
    return found


def constant(images):
    return torch.ones(len(images), 3)


def test_raw_digits_score_high_and_a_constant_encoder_by_chance(digits, setup):
    scores = accuracies({"raw pixels": raw_pixels, "constant": constant}, setup())
    assert min(scores["raw pixels"].values()) > 0.9
    assert max(scores["constant"].values()) < 0.2
    labels = digits.test.labels
    assert scores["majority class"]["knn"] <= torch.bincount(labels).max().item() / len(labels)


def with_test_labels(digits, labels):
    """The digits with other labels of the test images, which are not among the training ones."""
    of_all = digits.test.images.labels.clone()
    of_all[digits.test.indices] = labels
    images = SimpleNamespace(**{name: getattr(digits.test.images, name) for name in ("pixels", "groups", "source")})
    images.labels = of_all
    return replace(digits, test=replace(digits.test, images=images))


def test_the_majority_class_is_that_of_training_images(digits, setup):
    most = int(torch.bincount(digits.train.labels).argmax())
    labels = torch.full_like(digits.test.labels, (most + 1) % 10)
    labels[:3] = most
    scores = accuracies({"raw pixels": raw_pixels}, setup(with_test_labels(digits, labels)))
    assert scores["majority class"]["knn"] == pytest.approx(3 / len(labels))


def test_encoders_get_normalized_images_of_train_and_test_without_gradients(digits, setup):
    seen = []

    def encoder(images):
        assert not torch.is_grad_enabled()
        seen.append(images)
        return images.flatten(1)

    accuracies({"one": encoder}, setup(), EvaluationSettings(max_images=None, batch_size=100))
    assert max(len(images) for images in seen) == 100
    assert sum(len(images) for images in seen) == len(digits.train) + len(digits.test)
    train = torch.cat(seen)[: len(digits.train)]
    assert train.mean().abs() < 0.05
    assert train.std() == pytest.approx(1, abs=0.05)


def test_wrong_test_labels_change_the_score_alone(digits, setup):
    seen = []

    def encoder(images):
        seen.append(images)
        return images.flatten(1)

    relabelled = with_test_labels(digits, (digits.test.labels + 1) % 10)
    right, wrong = (accuracies({"raw": encoder}, setup(data))["raw"] for data in (digits, relabelled))
    half = len(seen) // 2
    assert torch.equal(torch.cat(seen[:half]), torch.cat(seen[half:]))
    for protocol, accuracy in right.items():  # the same predictions, which are now right only where they were wrong
        assert accuracy > 0.9
        assert wrong[protocol] <= 1 - accuracy


def test_the_order_of_test_images_does_not_matter(digits, setup):
    order = torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(0))
    shuffled = replace(digits, test=replace(digits.test, indices=digits.test.indices[order]))
    scores = [accuracies({"raw": raw_pixels}, setup(data))["raw"] for data in (digits, shuffled)]
    assert scores[0] == scores[1]


def test_the_cap_is_in_proportion_and_keeps_every_class():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 5)
    chosen = stratified_positions(labels, 90, seed=0)
    counts = torch.bincount(labels[chosen])
    assert counts.sum() == 90
    assert counts.tolist() == pytest.approx([60, 30, 1], abs=2)
    assert torch.equal(chosen, stratified_positions(labels, 90, seed=0))
    assert not torch.equal(chosen, stratified_positions(labels, 90, seed=1))
    assert torch.equal(stratified_positions(labels, None, 0), torch.arange(905))
    assert set(labels[stratified_positions(labels, 6, seed=0)].tolist()) == {0, 1, 2}


def test_smaller_shares_of_the_labels_lie_within_larger_ones_and_hold_every_class():
    labels = torch.tensor([0] * 3000 + [1] * 900 + [2] * 100 + [3])
    pool = stratified_positions(labels, 2000, seed=0)
    shares = {share: draw_labels(labels, pool, share, seed=0) for share in (0.01, 0.1, 0.4, 1.0)}
    counts = {share: torch.bincount(labels[pool[chosen]], minlength=4).tolist() for share, chosen in shares.items()}
    assert counts[0.01] == [30, 9, 2, 1]
    assert counts[0.1] == [300, 90, 10, 1]
    assert torch.equal(shares[1.0], torch.arange(2000))
    chosen = [set(some.tolist()) for some in shares.values()]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert not torch.equal(draw_labels(labels, pool, 0.1, seed=1), shares[0.1])


def test_a_number_of_labels_is_drawn_in_proportion():
    sizes = [600, 300, 90, 10]
    labels = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    pool = torch.arange(1000)
    drawn = {count: draw_labels(labels, pool, float(count), seed=0) for count in range(2, 1001)}
    chosen = {count: set(positions.tolist()) for count, positions in drawn.items()}
    for count in range(2, 1000):
        assert len(chosen[count]) == count
        assert chosen[count] < chosen[count + 1]
        counts = labels[drawn[count]].bincount(minlength=4).tolist()
        if count >= 8:  # two of each class, and at most one image and those two from the exact share
            assert all(abs(own - size * count / 1000) < 3 for own, size in zip(counts, sizes, strict=True))
            assert min(counts) >= 2
    assert [labels[drawn[count]].bincount(minlength=4).tolist() for count in (2, 3, 4, 6, 8)] == [
        [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [2, 2, 1, 1], [2, 2, 2, 2]
    ]  # fmt: skip
    # the two of the last class take the place of the image with the largest quotient, 59.5 / 600 against 29.5 / 300
    assert labels[drawn[100]].bincount().tolist() == [59, 30, 9, 2]
    assert not torch.equal(draw_labels(labels, pool, 100.0, seed=1), drawn[100])


def test_labels_per_class_take_all_of_a_class_that_has_fewer():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 3)
    pool = torch.arange(93)
    few, more = (draw_labels(labels, pool, f"{count} per class", seed=0) for count in (2, 20))
    assert labels[few].bincount().tolist() == [2, 2, 2]
    assert labels[more].bincount().tolist() == [20, 20, 3]
    assert set(few.tolist()) < set(more.tolist())


def test_scores_name_the_amount_of_labels_and_its_images(digits, setup):
    settings = EvaluationSettings(labels=[20, 0.1], labels_per_class=[3], protocols=["knn"], max_images=200)
    scores = evaluate_features([Candidate("raw", raw_pixels)], setup(), settings)
    images = [(score.labels, score.images) for score in scores]
    tenth = sum(max(2, round(int(count) / 10)) for count in digits.train.labels.bincount())
    assert images[:3] == images[3:] == [(20.0, 20), (0.1, min(tenth, 200)), ("3 per class", 30)]
    headings = [block.splitlines()[0].split("  ")[0] for block in format_table(scores).split("\n\n")]
    assert [heading.partition(", ")[2] for heading in headings] == [
        "20 labels", "10% of the labels", "3 labels per class"
    ]  # fmt: skip


def test_more_labels_than_there_are_are_refused(digits):
    EvaluationSettings(labels=[len(digits.train)], max_images=None).check_labels(digits)
    with pytest.raises(
        SettingError, match=rf"labels: got {len(digits.train) + 1}; expected at most {len(digits.train)}"
    ):
        EvaluationSettings(labels=[len(digits.train) + 1], max_images=None).check_labels(digits)
    with pytest.raises(
        SettingError, match=r"at most 50, the number of labelled training images that evaluation\.max_im"
    ):
        EvaluationSettings(labels=[51], max_images=50).check_labels(digits)
    unknown = SimpleNamespace(train=SimpleNamespace(labels=torch.full((9,), -1)))
    with pytest.raises(SettingError, match=r"labels_per_class: got 3; expected null: some images have no single class"):
        EvaluationSettings(labels_per_class=[3]).check_labels(unknown)


def test_every_protocol_is_fitted_to_every_share_and_features_are_computed_once(digits, setup):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return images.flatten(1)

    settings = EvaluationSettings(labels=[0.02, 1.0], max_images=None)
    scores = evaluate_features([Candidate("raw", encoder)], setup(), settings)
    assert sum(seen) == len(digits.train) + len(digits.test)
    assert [(one.encoder, one.labels, one.protocol) for one in scores] == [
        (encoder, share, protocol)
        for encoder in ("raw", "majority class") for share in (0.02, 1.0) for protocol in ("linear_probe", "knn")
    ]  # fmt: skip
    few, all_labels = ([one.metrics["accuracy"] for one in scores[:4] if one.labels == share] for share in (0.02, 1.0))
    assert max(few) < 0.9 < 0.95 < min(all_labels)


def test_validation_is_scored_and_no_test_image_is_decoded(digits, setup):
    images = digits.test.images
    images.decoded[digits.test.indices] = False  # other tests have asked for them
    evaluate_features([Candidate("raw", raw_pixels)], setup(), replace(SETTINGS, split="validation"))
    assert not images.decoded[digits.test.indices].any()
    assert images.decoded[digits.validation.indices].all()
    images.decoded[digits.validation.indices] = False
    evaluate_features([Candidate("raw", raw_pixels)], setup(), SETTINGS)
    assert not images.decoded[digits.validation.indices].any()


def test_metrics_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.choice(4, 500, p=[0.7, 0.2, 0.06, 0.04])
    chances = random.dirichlet(np.ones(4), 500)
    chances[np.arange(500), labels] += 0.3
    chances /= chances.sum(1, keepdims=True)
    predicted = chances.argmax(1)
    assert classification_metrics(labels, chances) == {
        "accuracy": pytest.approx(accuracy_score(labels, predicted), abs=1e-12),
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12),
        "macro_f1": pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12),
        "macro_roc_auc": pytest.approx(roc_auc_score(labels, chances, multi_class="ovr"), abs=1e-12),
    }
    # a class that does not occur, but is predicted, has no recall
    assert classification_metrics(np.array([0, 0, 1]), np.eye(3)[[0, 2, 1]])["balanced_accuracy"] == 0.75


def rank_area(positive, scores):
    """The share of pairs of a positive and a negative that are in the right order, ties as half (Mann and Whitney)."""
    ranks = rankdata(scores)
    hits, others = positive.sum(), (~positive).sum()
    return (ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * others)


def test_the_area_under_the_roc_curve_is_the_share_of_ordered_pairs():
    random = np.random.default_rng(1)
    labels = random.choice(3, 200, p=[0.5, 0.3, 0.2])
    scores = random.normal(size=(200, 4)).round(1)  # with ties; no image is of the last class
    areas = [rank_area(labels == kind, scores[:, kind]) for kind in range(3)]
    assert classification_metrics(labels, scores)["macro_roc_auc"] == pytest.approx(np.mean(areas), abs=1e-12)
    chance = random.random(50)
    two = random.integers(0, 2, 50)
    found = classification_metrics(two, np.stack([1 - chance, chance], 1))["macro_roc_auc"]
    assert found == pytest.approx(roc_auc_score(two, chance), abs=1e-12)
    assert classification_metrics(two, np.ones((50, 2)))["macro_roc_auc"] == 0.5  # always the same class
    assert "macro_roc_auc" not in classification_metrics(np.zeros(5, int), np.ones((5, 2)))


def test_the_metric_of_the_settings_comes_first(setup):
    for metric in ("accuracy", "macro_f1"):
        scores = evaluate_features([Candidate("raw", raw_pixels)], setup(), replace(SETTINGS, metric=metric))
        assert {next(iter(one.metrics)) for one in scores} == {metric}


def test_the_probe_chooses_by_the_metric_in_the_table(digits, setup):
    labels, groups = (digits.test.images.labels == 8).long(), digits.test.images.groups
    source = digits.test.images.source
    images = SimpleNamespace(pixels=digits.test.images.pixels, labels=labels, groups=groups, source=source)
    data = replace(digits, **{part: replace(getattr(digits, part), images=images) for part in ("train", "test")})

    def pixels(images):
        return raw_pixels(images)[:, ::2]

    fitted, scored = (pixels(data.normalize(part.pixels(torch.arange(len(part))))) for part in (data.train, data.test))
    balanced = {}
    for metric in ("accuracy", "balanced_accuracy"):
        settings = EvaluationSettings(protocols=["linear_probe"], metric=metric)
        score = evaluate_features([Candidate("pixels", pixels)], setup(data), settings)[0]
        probe = fit_linear_probe(fitted.numpy(), data.train.labels.numpy(), 0, metric)
        found = np.pad(probe.predict_proba(scored.numpy()), ((0, 0), (0, 8)))  # the setup knows ten classes
        assert score.metrics == classification_metrics(data.test.labels.numpy(), found)
        balanced[metric] = score.metrics["balanced_accuracy"]
    assert balanced["accuracy"] < balanced["balanced_accuracy"]


def test_errors_are_named(digits, setup):
    raw = [Candidate("raw", raw_pixels)]
    with pytest.raises(DataError, match="no labels"):
        evaluate_features(raw, setup(replace(digits, labelled=False)), SETTINGS)
    with pytest.raises(SettingError, match=r"evaluation\.max_images: got 1; expected enough images for two"):
        evaluate_features(raw, setup(), EvaluationSettings(max_images=1))
    with pytest.raises(DataError, match="the features of the broken one are not finite"):
        evaluate_features([Candidate("broken one", lambda images: images.flatten(1) / 0)], setup(), SETTINGS)
    empty = replace(digits, test=replace(digits.test, indices=digits.test.indices[:0]))
    with pytest.raises(DataError, match=r"no test images: raise data\.test_share"):
        evaluate_features(raw, setup(empty), SETTINGS)
    empty = replace(digits, validation=empty.test)
    with pytest.raises(DataError, match=r"no validation images: raise data\.validation_share"):
        evaluate_features(raw, setup(empty), replace(SETTINGS, split="validation"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_images", 0), ("neighbours", 0), ("batch_size", -1), ("seed", -1), ("neighbours", 2.5),
        ("split", "train"), ("labels", []), ("labels", [0.0]), ("labels", [0.1, 1.5]),
        ("labels", [10.5]), ("labels_per_class", []), ("labels_per_class", [5, 0]),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    got = value[-1] if isinstance(value, list) and value else value  # of a list, the element that cannot work
    with pytest.raises(SettingError, match=rf"evaluation\.{name}: got {re.escape(repr(got))}"):
        EvaluationSettings(**{name: value})


def test_the_table_has_a_row_for_each_encoder_and_a_block_for_each_share():
    scores = [
        Score("trained", "linear_probe", 1.0, {"accuracy": 0.5, "macro_f1": 0.4}),
        Score("trained", "finetune", 1.0, {"accuracy": 0.25, "macro_f1": 0.2}),
        Score("raw pixels", "linear_probe", 1.0, {"accuracy": 1.0, "macro_f1": 0.0}),
    ]
    lines = format_table(scores).splitlines()
    assert lines[0].split() == ["test", "accuracy", "linear", "probe", "finetuning"]
    assert lines[1].split() == ["trained", "50.0%", "25.0%"]
    assert lines[2].split() == ["raw", "pixels", "100.0%", "-"]
    assert len({len(line) for line in lines}) == 1
    assert "40.0%" in format_table(scores, "validation", "macro_f1")
    assert format_table(scores, "validation", "macro_f1").startswith("validation macro f1")
    blocks = format_table([*scores, replace(scores[0], labels=0.01)]).split("\n\n")
    assert [block.splitlines()[0].split("  ")[0] for block in blocks] == [
        "test accuracy, all labels", "test accuracy, 1% of the labels"
    ]  # fmt: skip
    with pytest.raises(SettingError, match=r"evaluation\.metric: got 'recall'; expected one of accuracy, macro_f1"):
        format_table(scores, metric="recall")


def test_raw_pixels_are_averaged_down_to_32():
    images = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(raw_pixels(images), torch.arange(4.0)[None])
    large = images.repeat_interleave(32, 2).repeat_interleave(32, 3)
    assert torch.equal(raw_pixels(large), images.repeat_interleave(16, 2).repeat_interleave(16, 3).flatten(1))
