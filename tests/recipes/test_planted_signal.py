"""The masking network finds the patches that show the class, and what ignores the class does not."""

import pytest

from multilevel.configuration import build_recipe, compose_config
from multilevel.problems import Engine

SETTINGS = [
    "data=planted", "data.limit=2500", "data.batch_size=64", "model.width=32", "model.heads=2", "model.depth=2",
    "model.decoder_width=16", "model.decoder_heads=2", "model.decoder_depth=1", "levels.pretrain.steps=8",
    "levels.pretrain.schedule=constant", "levels.finetune.learning_rate=2e-2", "levels.mask.learning_rate=1e-2",
    "mask.guidance=0.5", "paths=direct", "levels.pretrain.solver=unrolled", "levels.pretrain.solver.steps=8",
]  # fmt: skip
STEPS, SEED = 50, 3  # of seeds 0 to 4 the one with the widest margin: other machines round differently


def test_guided_masks_hide_the_signal():
    """Hypergradients through 8 unrolled updates: AUC 1.00, 0.98, 1.00, 1.00 and 1.00 with seeds 0 to 4."""
    recipe = build_recipe(compose_config([*SETTINGS, f"steps={STEPS}", f"seed={SEED}"]))
    before = recipe.findings()["signal_auc"]
    Engine(recipe.graph, seed=SEED).run(STEPS)
    assert recipe.findings()["signal_auc"] > 0.9 > before + 0.2


@pytest.mark.slow
def test_stratified_masks_of_the_signal_make_a_better_encoder():
    """Nearest neighbours on a tenth of the labels: 98.5 to 100.0% with seeds 0 to 4, random masks 77.4 to 88.9%."""
    accuracy, others = {}, [one for one in SETTINGS if not one.startswith("mask.guidance")]
    for policy in ("stratified", "random"):
        asked = [f"mask.policy={policy}", "mask.guidance=1", f"steps={STEPS}", "seed=1"]
        scored = ["evaluation.protocols=[knn]", "evaluation.labels=[0.1]", "evaluation.references=false"]
        recipe = build_recipe(compose_config([*others, *asked, *scored]))
        Engine(recipe.graph, seed=1).run(STEPS)
        accuracy[policy] = recipe.evaluate()[0].metrics["accuracy"]
    assert accuracy["stratified"] > 0.98 > accuracy["random"] + 0.1  # 0.998 and 0.786; 0.916 with weighted losses alone


@pytest.mark.parametrize("policy", ["random", "block", "variance"])
def test_what_ignores_the_class_does_not_find_it(policy):
    """The standard deviation of the AUC of 4 patches among 16 that are alike is 0.17."""
    recipe = build_recipe(compose_config([*SETTINGS[:9], f"mask.policy={policy}"]))
    assert 0.5 - 0.35 < recipe.findings()["signal_auc"] < 0.5 + 0.35
