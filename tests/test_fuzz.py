"""Whatever is read from outside ends well or in a named error of one line: checkpoints, settings, folders of images.

FUZZ_EXAMPLES=5000 tries more of each.
"""

import io
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from multilevel import Engine, Graph, Problem
from multilevel.configuration.composition import compose_config, typed_settings
from multilevel.problems import CheckpointError, load_checkpoint, save_checkpoint
from multilevel.problems.checkpoint import write_digests
from multilevel.recipes.base import recipe_class
from multilevel.recipes.data import load_data
from multilevel.solvers import MultilevelError

TRIED = int(os.environ.get("FUZZ_EXAMPLES", "150"))
fuzzed = settings(
    max_examples=TRIED, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def error_of(call, kind=MultilevelError):
    """The text of the named error that a call ends in; None where it ends well. Any other error is a failure."""
    try:
        call()
    except kind as error:
        return str(error)
    return None


class Fit(Problem):
    def loss(self, levels, batch, draws):
        return levels.fit.weight.square().sum() + levels.fit.bias.square().sum()


def engine():
    module = nn.Linear(3, 2)
    return Engine(Graph(Fit("fit", module, optimizer=torch.optim.Adam(module.parameters(), 0.1))))


@st.composite
def edits(draw, content):
    """Bytes with some of them changed, cut out, cut off or put in."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(["change", "cut out", "cut off", "put in"]))
        if kind == "cut off":
            del result[place:]
        elif kind == "cut out":
            del result[place : place + draw(st.integers(1, 20))]
        elif kind == "put in":
            result[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif result:
            result[place] = draw(st.integers(0, 255))
    return bytes(result)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    one = engine()
    one.run(2)
    return save_checkpoint(one, folder)


@contextmanager
def copy_of(saved):
    """A copy of a checkpoint's folder, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield shutil.copytree(saved, Path(folder) / saved.name)


def refused(checkpoint):
    """Whether an engine takes a checkpoint; where it does not, it says so in one line and is what it was."""
    one = engine()
    weight = one.graph.problems["fit"].module.weight.clone()
    said = error_of(lambda: load_checkpoint(one, checkpoint.parent), CheckpointError)
    if said is not None:
        assert "\n" not in said
        assert torch.equal(one.graph.problems["fit"].module.weight, weight)
    return said is not None


@fuzzed
@given(data=st.data(), digests=st.booleans())
def test_an_edited_checkpoint_is_refused_in_one_line_or_loads(saved, data, digests):
    """With the digests of the edited files, as somebody would write them who wants it read."""
    with copy_of(saved) as copy:
        path = copy / data.draw(st.sampled_from(sorted(one.name for one in saved.iterdir())))
        before = path.read_bytes()
        path.write_bytes(data.draw(edits(before)))
        changed = path.read_bytes() != before
        if digests:
            write_digests(copy)
        assert refused(copy) or digests or not changed or path.name == "digests.json"


def places(value, at=()):
    """The place of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in children:
        yield (*at, key)
        yield from places(one, (*at, key))


ODD = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just([]), st.just({"dict": []}))


@fuzzed
@given(data=st.data())
def test_a_checkpoint_of_another_structure_is_refused_in_one_line_or_loads(saved, data):
    """A value of state.json replaced by another one, or taken out: JSON all the same, and digests that fit."""
    with copy_of(saved) as copy:
        structure = json.loads((copy / "state.json").read_text())
        *way, last = data.draw(st.sampled_from(list(places(structure))))
        inside = structure
        for key in way:
            inside = inside[key]
        if data.draw(st.booleans()):
            inside[last] = data.draw(ODD)
        else:
            del inside[last]
        (copy / "state.json").write_text(json.dumps(structure))
        write_digests(copy)
        refused(copy)


KEYS = [
    "steps", "seed", "device", "precision", "mask.ratio", "mask.policy", "mask.options", "mask.temperature", "paths",
    "data.image_size", "data.batch_size", "data.mask_share", "data.validation_share", "model.width", "model.heads",
    "levels.pretrain.solver", "levels.pretrain.steps", "levels.mask.learning_rate", "solver", "solver.radius", "task",
    "evaluation.labels", "evaluation.protocols", "evaluation.max_images", "checkpoint.every", "max_skipped", "data",
    "levels.pretrain.solver.terms", "diagnose", "experiment", "evaluation.finetune.epochs", "no.such.setting",
]  # fmt: skip
VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["null", "true", "[]", "{}", "[1,2]", "{a: 1}", "${steps}", "${oc.env:HOME}", "???", "''", "a,b"]),
    st.text(max_size=12),
)


@fuzzed
@given(given_settings=st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=3))
def test_settings_are_taken_or_refused_in_one_line(given_settings):
    overrides = [f"{key}={value}" for key, value in given_settings]

    def check():
        config = compose_config(overrides)
        typed_settings(config, recipe_class(config.recipe).settings_class).validate()

    assert error_of(check) != ""


def png(size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def of_folder():
    """Settings of a folder of images: composing them takes longer than reading it."""
    config = compose_config(["data=folder", "data.path=.", "data.image_size=8", "data.patch_size=4"])
    return typed_settings(config, recipe_class(config.recipe).settings_class).data


@fuzzed
@given(data=st.data())
def test_a_folder_of_images_is_read_or_refused_in_one_line(of_folder, data):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("good", "bad"):
            (Path(folder) / name).mkdir()
            for index in range(4):
                (Path(folder) / name / f"{index}.png").write_bytes(png())
        for index in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(["odd.png", "odd.jpg", "odd.txt", "4.PNG", ".hidden.png", "a b.png"]))
            inside = Path(folder) / data.draw(st.sampled_from(["good", "bad", "", "third"]))
            inside.mkdir(exist_ok=True)
            (inside / f"{index}{name}").write_bytes(data.draw(st.one_of(st.binary(max_size=40), edits(png()))))
        said = error_of(lambda: load_data(replace(of_folder, path=folder)))
        assert said is None or "\n" not in said
