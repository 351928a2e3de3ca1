"""How many CPU threads training takes."""

import pytest
import torch

from multilevel.__main__ import main
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Engine
from multilevel.study.calibration import ROUNDS, seconds_per_step

LARGER = ["data=planted", "data.batch_size=512"]  # 512 images of 16 patches, each a token of 48 numbers


@pytest.fixture
def trained_with(monkeypatch):
    """The threads that there were in each training."""
    found, run = [], Engine.run

    def watched(self, steps):
        found.append(torch.get_num_threads())
        run(self, steps)

    monkeypatch.setattr(Engine, "run", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield found
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("settings", "threads"),
    [([], 1), (["threads=2"], 2), (["recipe=hyper_cleaning"], 3), (["recipe=hyper_cleaning", "threads=2"], 2)],
)
def test_training_takes_one_thread_where_operations_are_small_or_as_many_as_asked(
    settings, threads, trained_with, tmp_path, capsys
):
    assert main(["train", "steps=1", "evaluate=false", *settings, f"output={tmp_path / 'run'}"]) == 0
    assert trained_with == [threads]
    assert ("one CPU thread" in capsys.readouterr().err) == (threads == 1)
    assert torch.get_num_threads() == 3


def test_a_study_measures_seconds_a_step_on_the_threads_that_training_takes(trained_with):
    recipes = {
        name: build_recipe(compose_config(["recipe=hyper_cleaning", *settings]))
        for name, settings in (("two", ["threads=2"]), ("open", []))
    }
    seconds_per_step({**recipes, "one": build_recipe(compose_config([]))})
    assert trained_with == [2, 3, 1] * (1 + ROUNDS)


@pytest.mark.parametrize(
    ("settings", "small"), [([], True), (["data=planted"], True), (LARGER, False), ([*LARGER, "model.width=12"], True)]
)
def test_small_is_what_a_batch_is_in_numbers(settings, small):
    assert build_recipe(compose_config(settings)).one_thread is small
