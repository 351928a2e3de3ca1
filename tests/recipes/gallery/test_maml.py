"""Meta-learned parameters adapt to held-out tasks better than others, by MAML and by iMAML."""

import pytest
import torch

from multilevel.configuration import build_recipe, compose_config
from multilevel.recipes.data.few_shot import ClassTasks, TaskSizes, held_out_combinations
from multilevel.train import new_engine

IMPLICIT = ["solver=conjugate_gradient", "levels.adapt.steps=20", "steps=50"]
DIGITS = ["tasks=digits", "shots=1", "levels.adapt.learning_rate=0.1"]


@pytest.mark.parametrize("overrides", [[], IMPLICIT, DIGITS], ids=["maml", "imaml", "digits"])
def test_meta_learning_pays_on_held_out_tasks(overrides):
    recipe = build_recipe(compose_config(["recipe=maml", "steps=80", *overrides]))
    new_engine(recipe).run(recipe.settings.steps)
    errors = recipe.findings()["held_out_error"]
    assert errors["meta-learned"]["5 steps"] < 0.8 * min(errors["pooled"]["5 steps"], errors["random"]["5 steps"])


def test_held_out_digits_are_other_images_and_other_combinations():
    recipe = build_recipe(compose_config(["recipe=maml", "tasks=digits"]))
    training, held_out = (recipe._tasks(split, 50)(1) for split in ("train", "held_out"))
    images = [{tuple(one) for one in some.query_inputs.flatten(0, 1).tolist()} for some in (training, held_out)]
    assert not images[0] & images[1]
    combinations = [set(map(tuple, some.tolist())) for some in held_out_combinations(10, 3)]
    assert [len(some) for some in combinations] == [96, 24]
    assert not combinations[0] & combinations[1]


def test_a_class_is_numbered_alike_in_support_and_query():
    """Each image is its label, so that a task's targets must be a numbering of its three labels."""
    labels = torch.arange(10).repeat_interleave(30)
    sizes = TaskSizes(tasks=20, shots=4, queries=5)
    tasks = ClassTasks(sizes, "0", labels[:, None].float(), labels, torch.combinations(torch.arange(10), 3))(7)
    for task in zip(*tasks, strict=True):
        pairs = {(int(x), int(y)) for xs, ys in (task[:2], task[2:]) for x, y in zip(xs, ys, strict=True)}
        assert len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs}) == 3
    assert tasks.support_inputs.shape == (20, 12, 1)
