"""What command lines mean: the reader, and each command's own settings as README, docs and tests write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest

from multilevel.commands.export import ExportSettings
from multilevel.commands.monitor import MonitorSettings
from multilevel.commands.new import NewSettings
from multilevel.commands.predict import PredictSettings
from multilevel.commands.train import TrainSettings
from multilevel.compare.command import CompareSettings
from multilevel.configuration.command_line import DERIVED, field_descriptions, read, readable, typed
from multilevel.solvers import SOLVERS, SettingError
from multilevel.solvers.ranges import Above, Count, OneOf
from multilevel.study.settings import StudySettings


@dataclass
class Settings:
    """Settings of an example.

    Args:
        count: how many.
        names: some names, which
            go on in the next line.
    """

    count: Count = 1
    rate: Annotated[float | None, Above(0)] = None
    fast: bool = False
    path: str | None = "here"
    names: list[str] = field(default_factory=list)
    letters: list[Annotated[str, OneOf("a", "b/c")]] | None = None
    numbers: list[int] = field(default_factory=list)
    made: list[str] = field(default_factory=list, metadata=DERIVED)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("count=3", 3),
        ("rate=1e-3", 0.001),
        ("rate=2", 2.0),
        ("rate=null", None),
        ("fast=true", True),
        ("fast=True", True),
        ("path=a b(c)[d]=e", "a b(c)[d]=e"),
        ("path=", ""),
        ("path=3", "3"),
        ("path='quoted'", "'quoted'"),
        ("path=null", None),
        ("names=a", ["a"]),
        ("names=a,b", ["a", "b"]),
        ("names=[a, b]", ["a", "b"]),
        ("names=1,b", ["1", "b"]),
        ("letters=b/c", ["b/c"]),
        ("path=${rate}", "${rate}"),
        ("path=\\\\${oc.env:HOME}\\", "\\\\${oc.env:HOME}\\"),
        ("numbers=3,", [3]),
        ("numbers=[3,]", [3]),
        ("numbers=[3]", [3]),
        ("numbers= 1 , -2 ", [1, -2]),
    ],
)
def test_values(argument, value):
    line = read("example", [argument], Settings)
    assert (line.words, line.overrides) == ([], [])
    found = getattr(line.settings, argument.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("count=0", "count: got 0; expected a whole number of at least 1"),
        ("count=2.5", "count: got '2.5'; expected a whole number of at least 1"),
        ("count=few", "count: got 'few'; expected a whole number of at least 1"),
        ("count=true", "count: got 'true'; expected a whole number of at least 1"),
        ("count=1,2", "count: got '1,2'; expected a whole number of at least 1"),
        ("count=null", "count: got 'null'; expected a whole number of at least 1"),
        ("count=", "count: got ''; expected a whole number of at least 1"),
        ("rate=-1", "rate: got -1.0; expected a number above 0, or null"),
        ("rate=nan", "rate: got nan; expected a number above 0, or null"),
        ("fast=perhaps", "fast: got 'perhaps'; expected true or false"),
        ("letters=a,c", "letters: got 'c'; expected some of a, b/c, or null"),
        ("names=", "names: got ''; expected a list, each text"),
        ("numbers=1,x", "numbers: got '1,x'; expected a list, each a whole number"),
        ("numbers=[3", "numbers: got '[3'; expected a list, each a whole number"),
        ("numbers=3]", "numbers: got '3]'; expected a list, each a whole number"),
        ("count=${rate}", "count: got '${rate}'; expected a whole number of at least 1"),
        ("letters=${path}", "letters: got '${path}'; expected some of a, b/c, or null"),
        ("made=a", "made: got 'a'; expected a setting of example: count, rate, fast, path, names, letters, numbers"),
        ("word", "word: got None; expected a setting of example: count, "),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_would(argument, text):
    with pytest.raises(SettingError) as caught:
        read("example", [argument], Settings, recipe=False)
    assert str(caught.value).startswith(text)


def test_words_settings_of_the_recipe_and_own_ones_are_told_apart(tmp_path, monkeypatch):
    arguments = ["RUN", "count=2", "mask.ratio=0.5", "count=3", "+a=1", "--flag"]
    line = read("example", arguments, Settings, words=True)
    assert (line.words, line.overrides, line.settings) == (["RUN", "--flag"], ["mask.ratio=0.5", "+a=1"], Settings(3))
    assert read("example", arguments, Settings).overrides == ["RUN", "mask.ratio=0.5", "+a=1", "--flag"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"^a: got 'b\.png'; expected a setting of example: count"):
        read("example", ["a=b.png"], Settings, words=True, recipe=False)
    (tmp_path / "a=b.png").touch()
    assert read("example", ["a=b.png"], Settings, words=True, recipe=False).words == ["a=b.png"]


def test_docstrings_describe_fields():
    assert field_descriptions(Settings) == {"count": "how many.", "names": "some names, which go on in the next line."}


@pytest.mark.parametrize(
    "settings_class",
    [CompareSettings, ExportSettings, MonitorSettings, NewSettings, PredictSettings, StudySettings, TrainSettings],
)
def test_every_setting_of_a_command_is_described(settings_class):
    assert set(readable(settings_class)) <= set(field_descriptions(settings_class))


def test_a_study():
    line = [
        "data=cifar10", "policies=random,topk,random", "baseline=topk", "seeds=3,", "labels=1.0,0.01,0.1", "jobs=2",
        "guidance=0.25,0.5", "equal=time", "minimum_effect=0.02", "arm.solved=solver=dense mask.options={hint:0.1}",
        "transfer.path=DIR", "transfer=cifar100", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "output=a b",
        "metric=macro_f1", "protocol=knn", "steps=5",
    ]  # fmt: skip
    assert StudySettings.parsed(line) == StudySettings(
        policies=["random", "topk"],
        baseline="topk",
        seeds=[3],
        labels=[1.0, 0.01, 0.1],
        guidance=[0.25, 0.5],
        arms={"solved": ["solver=dense", "mask.options={hint:0.1}"]},
        transfer=["data=cifar100", "data.path=DIR"],
        equal="time",
        metric="macro_f1",
        protocol="knn",
        minimum_effect=0.02,
        jobs=2,
        launcher=["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        output="a b",
        settings=["data=cifar10", "steps=5"],
    )
    assert StudySettings.parsed([]) == StudySettings()


@pytest.mark.parametrize(
    ("text", "seeds"), [("5", [0, 1, 2, 3, 4]), ("3,", [3]), ("[3]", [3]), ("0,3,7", [0, 3, 7]), ("3,3,1", [3, 1])]
)
def test_seeds_of_a_study_by_their_number_or_one_by_one(text, seeds):
    assert StudySettings.parsed([f"seeds={text}"]).seeds == seeds
    assert StudySettings.parsed(["resume=FOLDER", f"seeds={text}"]).seeds == seeds


def test_a_comparison():
    line = [
        "recipe=guided_mae", "solvers=neumann,betty/darts", "products=reverse,forward", "precisions=float32,bf16",
        "shares=1,0.5", "neumann.terms=7", "neumann.step_size=null", "betty/neumann.neumann_iterations=5", "warmup=0",
        "conjugate_gradient.tolerance=1e-7", "conjugate_gradient.warm_start=true", "damping=60", "resume=a(b)",
        "identity.scale=null", "output=x",
    ]  # fmt: skip
    assert CompareSettings.parsed(line) == CompareSettings(
        solvers=["neumann", "betty/darts"],
        products=["reverse", "forward"],
        precisions=["float32", "bf16"],
        shares=[1.0, 0.5],
        options={
            "neumann": {"terms": 7, "step_size": None},
            "betty/neumann": {"neumann_iterations": 5},
            "conjugate_gradient": {"tolerance": 1e-7, "warm_start": True},
            "identity": {"scale": None},
        },
        warmup=0,
        damping=60.0,
        resume="a(b)",
        settings=["recipe=guided_mae", "output=x"],
    )
    assert CompareSettings.parsed([]).solvers == list(SOLVERS)


def test_files_and_runs():
    predict = read("predict", ["E", "f.png", "output=-", "batch_size=3"], PredictSettings, words=True, recipe=False)
    assert (predict.words, predict.settings) == (["E", "f.png"], PredictSettings("-", 3, "auto"))
    assert typed(MonitorSettings, {}) == MonitorSettings("monitor.json", 64, "auto")
    export = read("export", ["RUN", "format=onnx", "output=a (b)", "data.path=D"], ExportSettings, words=True)
    assert export.settings == ExportSettings("a (b)", "onnx")
    assert (export.words, export.overrides) == (["RUN"], ["data.path=D"])
