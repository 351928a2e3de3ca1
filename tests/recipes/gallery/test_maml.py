"""Meta-learned parameters adapt to held-out tasks better than others, by MAML and by iMAML."""

import pytest
import torch
from claims import below, claims, trained

from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.recipes.few_shot import ClassTasks, TaskSizes, held_out_combinations

IMPLICIT = ["solver=conjugate_gradient", "levels.adapt.steps=20", "steps=100"]
DIGITS = ["tasks=digits", "shots=1", "levels.adapt.learning_rate=0.1"]


def error_ratio(bound, steps, *settings):
    """The error of learned parameters after some steps of adaptation, over that of the better of the others."""

    @claims(error_ratio=bound)
    def measure(seed):
        errors = trained("recipe=maml", *settings, seed=seed).findings()["held_out_error"]
        adapted = {start: by_steps[f"{steps} steps"] for start, by_steps in errors.items()}
        return {"error_ratio": adapted["meta-learned"] / min(adapted["pooled"], adapted["random"])}

    return measure


maml = error_ratio(below(0.7), 5, "steps=80", "levels.meta.learning_rate=1e-2")
imaml = error_ratio(below(0.7), 20, *IMPLICIT)
digits = error_ratio(below(0.6), 5, "steps=80", *DIGITS)


@pytest.mark.parametrize("claim", [maml, imaml, digits], ids=["maml", "imaml", "digits"])
def test_meta_learning_pays_on_held_out_tasks(claim):
    claim.check()


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


def test_a_query_is_no_support_sample():
    """Each sample is its number."""
    labels = torch.arange(10).repeat_interleave(12)
    sizes = TaskSizes(tasks=50, shots=4, queries=5)
    tasks = ClassTasks(sizes, "0", torch.arange(120)[:, None], labels, torch.combinations(torch.arange(10), 3))(7)
    for support, queries in zip(tasks.support_inputs.squeeze(-1), tasks.query_inputs.squeeze(-1), strict=True):
        samples = [*support.tolist(), *queries.tolist()]
        assert len(set(samples)) == len(samples) == 27


@pytest.mark.parametrize("kind", ["sinusoids", "digits", "new_digits"])
def test_held_out_tasks_are_not_those_of_training(kind):
    recipe = build_recipe(compose_config(["recipe=maml", f"tasks={kind}"]))
    rounds = [recipe._tasks(split, 5)(number) for split in ("train", "held_out") for number in (-1, 0, 1, 2)]
    samples = [tuple(one.support_inputs.flatten().tolist()) for one in rounds]
    assert len(set(samples)) == len(samples)
