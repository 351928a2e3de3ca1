"""The supervised reference, and the lines below the table of an evaluation."""

from dataclasses import replace

import pytest
import torch

from multilevel import Engine
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.evaluation import (
    Candidate,
    EvaluationSettings,
    Score,
    describe_scores,
    evaluate_features,
    not_better,
    raw_pixels,
    scored_images,
)
from multilevel.recipes.evaluation.remarks import few_images, few_labels
from multilevel.recipes.evaluation.supervised import supervised_candidate
from multilevel.solvers import DataError, SettingError

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300",
]  # fmt: skip


def scores(rows, metric="accuracy", labels=1.0):
    return [Score(encoder, protocol, labels, {metric: value}) for encoder, protocol, value in rows]


def test_the_line_names_each_reference_by_protocol_and_figures():
    rows = [
        ("trained encoder", "linear_probe", 0.9), ("trained encoder", "knn", 0.7),
        ("untrained encoder", "linear_probe", 0.8), ("untrained encoder", "knn", 0.7),
        ("raw pixels", "linear_probe", 0.95), ("raw pixels", "knn", 0.98),
        ("supervised from scratch", "supervised", 0.91), ("majority class", "linear_probe", 0.1),
    ]  # fmt: skip
    assert not_better(scores(rows)) == (
        "the trained encoder is not better than an untrained encoder (nearest neighbours: 70.0% against 70.0%); raw "
        "pixels (linear probe: 95.0% against 90.0%, nearest neighbours: 98.0% against 70.0%); the same network "
        "supervised from scratch (linear probe, its best: 91.0% against 90.0%)"
    )
    assert not_better(scores([row for row in rows if row[0] != "raw pixels"][:3])) == ""
    few = scores([("trained encoder", "linear_probe", 0.2), ("raw pixels", "linear_probe", 0.5)], labels=0.1)
    assert not_better([*scores(rows[:1]), *few]) == ""  # the largest amount of labels counts


def test_the_amount_with_the_most_images_counts_and_is_named():
    rows = [("trained encoder", "knn", 0.2), ("raw pixels", "knn", 0.5)]
    more = [replace(score, images=30) for score in scores(rows, labels="5 per class")]
    fewer = [replace(score, images=10) for score in scores(rows[:1], labels=10.0)]
    assert not_better([*fewer, *more]) == (
        "with 5 labels per class the trained encoder is not better than raw pixels (nearest neighbours: 50.0% against "
        "20.0%)"
    )


def test_classes_with_fewer_labels_than_wanted_are_said():
    counts = {"good": 90, "dent": 7, "scratch": 3}
    assert few_labels("3 per class", counts) == few_labels(1.0, counts) == few_labels(3.0, counts) == ""
    assert few_labels("20 per class", counts) == "20 labels per class: there are only 7 of dent, 3 of scratch"
    many = few_labels("5 per class", dict.fromkeys("abcdefg", 2))
    assert many == "5 labels per class: there are only 2 of a, 2 of b, 2 of c, 2 of d, fewer of 3 more classes"
    assert few_labels(2.0, counts) == "2 labels are fewer than the 3 classes: 1 of these have none"
    assert few_labels("20 per class", {}) == ""


def test_few_scored_images_are_said():
    assert few_images({"good": 25, "dent": 5}, "test") == ""
    assert few_images({"good": 24, "dent": 5}, "validation") == "few validation images: 29 in all"
    assert few_images({"good": 200, "dent": 4}, "test") == "few test images: 4 of dent"
    many = few_images(dict.fromkeys("abcdefg", 2), "test")
    assert many == "few test images: 14 in all, 2 of a, 2 of b, 2 of c, 2 of d, few of 3 more classes"
    assert "a class without any has no part in balanced accuracy" in few_images({"good": 90, "dent": 0}, "test")
    assert few_images({}, "test") == ""


def test_the_lines_follow_the_table(digits, setup):
    settings = EvaluationSettings(max_images=300, protocols=["knn"])
    small = replace(digits, test=replace(digits.test, indices=digits.test.indices[:25]))
    noise = Candidate("trained encoder", lambda images: torch.ones(len(images), 2))
    found = evaluate_features([noise, Candidate("raw pixels", raw_pixels)], setup(small), settings)
    *_, better, few = describe_scores(found, small, settings).splitlines()
    assert better.startswith("the trained encoder is not better than raw pixels (nearest neighbours: ")
    assert few.startswith("few test images: 25 in all, ")
    counts = torch.bincount(small.test.labels, minlength=10)
    assert list(scored_images(small, "test").values()) == counts.tolist()
    assert sum(scored_images(digits, "validation").values()) == len(digits.validation)


def test_an_area_under_the_curve_of_one_class_is_refused(digits, setup):
    ones = replace(digits, test=replace(digits.test, indices=digits.test.indices[digits.test.labels == 1]))
    settings = EvaluationSettings(max_images=300, protocols=["knn"], metric="macro_roc_auc")
    with pytest.raises(DataError, match=r"all test images are of one class, .* or set evaluation\.metric=accuracy"):
        evaluate_features([Candidate("raw", raw_pixels)], setup(ones), settings)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (["steps=5"], 5 * 16 * (2 + 1)),  # two updates of pretraining and one of finetuning; masks are not counted
        (["steps=5", "mask.policy=random"], 5 * 16 * (2 + 1)),
        (["steps=4", "levels.pretrain.steps=3", "levels.finetune.steps=2"], 4 * 16 * (3 * 2 + 2)),
        (["steps=4", "levels.pretrain.accumulate=2"], 4 * 16 * (2 * 2 + 1)),
    ],
)
def test_the_passes_are_the_images_that_pretraining_and_finetuning_take(settings, passes):
    recipe = build_recipe(compose_config([*TINY, *settings]))
    Engine(recipe.graph, check=False).run(recipe.settings.steps)
    taken = 0
    for name in ("pretrain", "finetune"):
        batches, loader = recipe.graph.batches[name].state_dict(), recipe.graph.problems[name].data
        taken += loader.batch_size * (batches["epoch"] * len(loader) + batches["position"])
    assert recipe.encoder_passes == taken == passes


def test_the_supervised_reference_sees_as_many_images_as_it_is_told(digits, setup):
    recipe = build_recipe(compose_config([*TINY, "steps=5"]))
    module = recipe.modules["pretrain"]
    before = [parameter.clone() for parameter in module.parameters()]
    seen = []

    def encode(self, images):
        if torch.is_grad_enabled():
            seen.append(len(images))
        return plain(self, images)

    plain = type(module).encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module), "encode", encode)
        candidate = supervised_candidate(module, 1000, 1e-3)
        (score,) = evaluate_features([candidate], setup(), EvaluationSettings(max_images=300, protocols=["head"]))[:1]
    assert (score.encoder, score.protocol) == ("supervised from scratch", "supervised")
    assert set(seen) == {128}
    assert sum(seen) == 1000 // 128 * 128 + 128  # rounded: 8 batches
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


def test_references_are_true_false_or_supervised():
    with pytest.raises(
        SettingError, match=r"evaluation\.references: got 'all'; expected one of true, false, supervised"
    ):
        EvaluationSettings(references="all")
    found = {}
    for references in ("false", "true", "supervised"):
        settings = ["steps=5", "evaluation.protocols=[knn]", f"evaluation.references={references}"]
        recipe = build_recipe(compose_config([*TINY, *settings]))
        found[references] = [score.encoder for score in recipe.evaluate()]
    assert found["false"] == ["trained encoder", "majority class"]
    assert found["true"] == ["trained encoder", "untrained encoder", "raw pixels", "majority class"]
    assert found["supervised"] == [*found["true"][:3], "supervised from scratch", "majority class"]
