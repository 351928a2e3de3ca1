"""The three levels are solved together, and what they learn withstands more than training without an adversary."""

from multilevel.configuration import build_recipe, compose_config
from multilevel.train import new_engine


def test_the_learned_decay_beats_fixed_ones_and_the_adversary_pays():
    recipe = build_recipe(compose_config(["recipe=trilevel_adversarial", "steps=10", "data.limit=200"]))
    assert recipe.graph.blocks("decay")[0].levels == ("adversary", "classify")  # they read each other
    new_engine(recipe).run(10)
    found = recipe.findings()
    loss, clean, robust = (found[name] for name in ("held_out_loss", "clean_accuracy", "robust_accuracy"))
    assert loss["learned"] < 0.95 * min(loss[f"fixed at {decay}"] for decay in ("0.001", "0.01", "0.1", "1"))
    assert robust["learned"] > robust[f"no adversary, {found['weight_decay']:.3g}"]
    assert all(robust[name] < clean[name] for name in clean)
