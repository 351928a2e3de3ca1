"""The masking network finds the patches that show the class, and what ignores the class does not."""

import pytest
from claims import above, claims, trained

from multilevel.configuration.composition import build_recipe, compose_config

SETTINGS = [
    "data=planted", "data.limit=2500", "data.batch_size=64", "model.width=32", "model.heads=2", "model.depth=2",
    "model.decoder_width=16", "model.decoder_heads=2", "model.decoder_depth=1", "levels.pretrain.steps=8",
    "levels.pretrain.schedule=constant", "levels.finetune.learning_rate=2e-2", "levels.mask.learning_rate=1e-2",
    "paths=direct", "levels.pretrain.solver=unrolled", "levels.pretrain.solver.steps=8", "steps=50",
]  # fmt: skip


@claims(signal_auc=above(0.9))
def guided_masks(seed):
    """Hypergradients through 8 unrolled updates."""
    return {"signal_auc": trained(*SETTINGS, "mask.guidance=0.5", seed=seed).findings()["signal_auc"]}


def test_guided_masks_hide_the_signal():
    guided_masks.check()


@claims(accuracy=above(0.95))
def stratified_masks(seed):
    """Nearest neighbours on a tenth of the labels. docs/results.md has the gain over random masks, with its spread."""
    asked = ["mask.policy=stratified", "mask.guidance=1"]
    scored = ["evaluation.protocols=[knn]", "evaluation.labels=[0.1]", "evaluation.references=false"]
    return {"accuracy": trained(*SETTINGS, *asked, *scored, seed=seed).evaluate()[0].metrics["accuracy"]}


@pytest.mark.slow
def test_stratified_masks_of_the_signal_make_a_good_encoder():
    stratified_masks.check()


@pytest.mark.parametrize("policy", ["random", "block", "variance"])
def test_what_ignores_the_class_does_not_find_it(policy):
    """The standard deviation of the AUC of 4 patches among 16 that are alike is 0.17."""
    recipe = build_recipe(compose_config([*SETTINGS[:9], f"mask.policy={policy}"]))
    assert 0.5 - 0.35 < recipe.findings()["signal_auc"] < 0.5 + 0.35
