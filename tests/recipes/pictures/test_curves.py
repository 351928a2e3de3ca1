"""The panels of curves.png: none is empty, held-out curves lie beside training ones, names are words."""

import math

import numpy as np
import pytest
from claims import untrained

from multilevel.problems import Callback, Engine
from multilevel.recipes.base import recipe_classes
from multilevel.runs.curves import CurveLabels, curve_panels, draw_curves

STEPS = 1
RECIPES = sorted(recipe_classes())


class Log(Callback):
    """The event log, in memory."""

    def __init__(self):
        self.records = []

    def on_update(self, engine, update):
        self.records.append(
            {"level": update.level, "step": update.step, "loss": update.loss, "metrics": dict(update.metrics)}
        )


@pytest.fixture(scope="module", params=RECIPES)
def run(request):
    recipe = untrained(f"recipe={request.param}", "evaluate=false", seed=0)
    log = Log()
    Engine(recipe.graph, seed=0, callbacks=[log]).run(STEPS)
    return recipe, log.records


def test_no_panel_of_a_recipe_is_empty_and_every_value_is_in_one(run, figures, tmp_path):
    recipe, records = run
    draw_curves(tmp_path / "curves.png", records, CurveLabels.of(recipe))
    (figure,) = figures
    drawn = []
    for axis in figure.axes:
        assert axis.get_visible()
        lines = [line for line in axis.get_lines() if not line.get_label().startswith("majority class")]
        assert lines
        for line in lines:
            values = np.asarray(line.get_ydata(), dtype=float)
            assert len(values) > 0
            assert np.isfinite(values).all()
            drawn += [values.tolist()]
    for level in {record["level"] for record in records}:
        own = [record for record in records if record["level"] == level]
        if len(own) < 20:  # more are smoothed
            expected = {"loss": [record["loss"] for record in own]}
            expected |= {name: [record["metrics"][name] for record in own] for name in own[0]["metrics"]}
            for name, values in expected.items():
                assert any(np.allclose(values, line) for line in drawn if len(line) == len(values)), (level, name)
    width, _ = figure.get_size_inches() * 120
    assert width <= 1280
    assert len(figure.axes) <= 4


def test_titles_and_labels_are_words(run):
    recipe, records = run
    panels = curve_panels(records, CurveLabels.of(recipe))
    assert not [panel.title for panel in panels if "_" in panel.title]
    assert not [label for panel in panels for label in panel.lines if "_" in label]
    assert len({panel.title for panel in panels}) == len(panels)


def test_accuracy_has_the_line_of_the_majority_class():
    recipe = untrained("mask.policy=sampled", seed=0)
    labels = recipe.data.train.labels
    majority = max(int((labels == label).sum()) for label in labels.unique()) / len(labels)
    record = {"step": 0, "loss": 1.0, "metrics": {"accuracy": 0.5}}
    records = [{"level": level, **record} for level in ("finetune", "mask")]
    loss, accuracy = curve_panels(records, CurveLabels.of(recipe))
    assert loss.title == "finetuning: loss"
    assert accuracy.title == "finetuning: accuracy"
    assert loss.majority is None
    assert accuracy.majority == pytest.approx(majority, abs=1e-12)
    for panel in (loss, accuracy):
        assert list(panel.lines) == ["finetuning, training data", "mask learning, held-out data"]


def test_an_adversarial_mask_level_has_panels_of_its_own():
    recipe = untrained("mask.policy=adversarial", seed=0)
    records = [{"level": level, "step": 0, "loss": 1.0, "metrics": {}} for level in ("pretrain", "finetune", "mask")]
    assert [panel.title for panel in curve_panels(records, CurveLabels.of(recipe))] == [
        "pretraining: reconstruction loss", "finetuning: loss", "mask learning: negative reconstruction loss"
    ]  # fmt: skip


def test_levels_that_say_nothing_are_named_as_they_are():
    metrics = [{"rate_of_change": 0.5}, {"rate_of_change": None}]
    records = [{"level": "inner_loop", "step": step, "loss": math.nan, "metrics": metrics[step]} for step in (0, 1)]
    (panel,) = curve_panels(records, CurveLabels())  # none for the loss, which is never finite
    assert panel.title == "inner loop: rate of change"
    (steps, values) = panel.lines["rate of change"]
    assert (steps.tolist(), values.tolist()) == ([0.0], [0.5])


def test_a_held_out_level_without_its_partner_stands_alone():
    records = [{"level": "mask", "step": 0, "loss": 1.0, "metrics": {}}]
    (panel,) = curve_panels(records, CurveLabels(held_out_from={"mask": "finetune"}))
    assert panel.title == "mask: loss"
