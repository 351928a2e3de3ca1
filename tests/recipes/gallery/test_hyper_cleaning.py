"""Learned weights tell wrong labels from right ones, and cleaning with them pays."""

from multilevel.configuration import build_recipe, compose_config
from multilevel.train import new_engine


def test_the_weights_find_the_wrong_labels_and_cleaning_pays():
    recipe = build_recipe(compose_config(["recipe=hyper_cleaning", "steps=150"]))
    assert recipe.findings()["separation_auc"] == 0.5  # all weights are equal at first
    new_engine(recipe).run(150)
    found = recipe.findings()
    assert found["separation_auc"] > 0.93
    scores = found["test_accuracy"]
    assert scores["no cleaning"] + 0.01 < scores["cleaned"] < scores["clean alone (oracle)"] + 0.02


def test_a_label_is_wrong_where_it_is_said_to_be():
    recipe = build_recipe(compose_config(["recipe=hyper_cleaning", "noise=0.3"]))
    clean = build_recipe(compose_config(["recipe=hyper_cleaning", "noise=1e-9"])).labels
    assert ((recipe.labels != clean) == recipe.wrong).all()
    assert abs(float(recipe.wrong.float().mean()) - 0.3) < 0.05
