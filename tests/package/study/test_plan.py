"""What a study plans: arms, seeds, budgets; and one line for each wrong setting."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

from multilevel.__main__ import main
from multilevel.configuration.composition import compose_config
from multilevel.runs.lock import only_process
from multilevel.solvers import SettingError
from multilevel.study import command
from multilevel.study.command import plan
from multilevel.study.part import is_done
from multilevel.study.plan import Study, equal_updates
from multilevel.study.settings import StudySettings

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
]  # fmt: skip


@cache
def planned(*arguments):
    given = [*TINY, *arguments]
    return plan(StudySettings.parsed(given), given)


def test_the_default_compares_the_recipes_policy_with_random_over_five_seeds():
    study = planned()
    assert [arm.name for arm in study.arms] == ["random", "sampled"]
    assert [arm.learned for arm in study.arms] == [False, True]
    assert study.seeds == [0, 1, 2, 3, 4]
    assert (study.metric, study.protocol, study.equal) == ("accuracy", "linear_probe", "updates")
    assert [part.name for part in study.parts()][:3] == ["random-seed0", "sampled-seed0", "random-seed1"]
    assert len(study.parts()) == 10


def test_the_baseline_comes_first_and_the_verdict_is_about_the_first_learned_arm():
    study = planned("policies=topk,random,sampled", "baseline=random", "seeds=3,7")
    assert [arm.name for arm in study.arms] == ["random", "topk", "sampled"]
    assert study.about.name == "topk"
    assert study.seeds == [3, 7]


def test_the_verdict_is_about_masks_that_the_task_guides_where_there_are_some():
    assert planned("policies=random,adversarial,topk").about.name == "topk"
    assert planned("policies=random,variance,adversarial").about.name == "variance"


def test_parts_differ_in_the_arm_the_seed_and_who_scores_the_references_alone():
    study = planned("steps=6", "mask.ratio=0.5", "seeds=2")
    configs = [compose_config(study.overrides(part.arm, part.seed)) for part in study.parts()]
    assert [(one.mask.policy, one.seed) for one in configs] == [
        ("random", 0), ("sampled", 0), ("random", 1), ("sampled", 1)
    ]  # fmt: skip
    assert [one.evaluation.references for one in configs] == ["supervised", False, "supervised", False]
    for config in configs:
        assert config.mask.ratio == 0.5
        config.evaluation.references = True
        config.mask.policy, config.seed = "random", 0
    assert all(config == configs[0] for config in configs)


def test_parts_that_an_older_study_adds_have_the_defaults_of_its_time():
    study = planned("seeds=2")
    older = replace(study, version=1)
    new, old = (compose_config(one.overrides(one.baseline, 0)) for one in (study, older))
    assert (new.task.loss, new.task.metric, new.evaluation.references) == ("auto", "auto", "supervised")
    assert (old.task.loss, old.task.metric, old.evaluation.references) == ("cross_entropy", None, True)
    balanced = replace(older, settings=[*older.settings, "task.loss=balanced_cross_entropy"])
    assert compose_config(balanced.overrides(older.baseline, 0)).task.loss == "balanced_cross_entropy"
    segmented = replace(older, settings=[*older.settings, "task=segmentation"])
    assert "metric" not in compose_config(segmented.overrides(older.baseline, 0)).task


def test_an_arm_of_its_own_differs_in_its_settings_alone():
    given = "arm.solved=solver=neumann solver.terms=4 levels.pretrain.steps=4 mask.policy=topk"
    study = planned("policies=random", "steps=3", given)
    assert [(arm.name, arm.policy, arm.learned, arm.steps, arm.updates) for arm in study.arms] == [
        ("random", "random", False, 6, 12), ("solved", "topk", True, 3, 12)
    ]  # fmt: skip
    config = compose_config(study.overrides(study.arms[1], 0))
    assert (config.solver.name, config.solver.terms, config.levels.pretrain.steps) == ("neumann", 4, 4)
    assert study.about.name == "solved"


def test_all_arms_make_the_same_number_of_pretraining_updates():
    study = planned("steps=5", "levels.finetune.steps=3")
    assert [(arm.name, arm.steps, arm.updates) for arm in study.arms] == [("random", 15, 30), ("sampled", 5, 30)]
    assert equal_updates([2, 6], 5) == [15, 5]
    with pytest.raises(SettingError, match=r"steps: got 5; expected a number N with 3 \* N divisible by 2"):
        equal_updates([2, 3], 5)


def test_equal_time_gives_the_cheaper_arms_more_steps():
    study = planned("policies=topk,random,sampled", "baseline=random", "seeds=3,7")
    timed = study.timed({"random": 0.25, "sampled": 0.5, "topk": 0.3})
    assert [arm.steps for arm in timed.arms] == [2000, 1666, 1000]
    assert timed.seconds_per_step == {"random": 0.25, "sampled": 0.5, "topk": 0.3}
    assert [arm.steps for arm in study.timed(dict.fromkeys(("random", "sampled", "topk"), 0.1)).arms] == [1000] * 3


def test_a_plan_is_read_as_it_was_written(tmp_path):
    for study in (planned(), planned().timed({"random": 1 / 3, "sampled": 0.7})):
        study.write(tmp_path)
        assert Study.read(tmp_path) == study


def test_lists():
    parsed = StudySettings.parsed(
        ["labels=1.0,0.01,0.1", "guidance=0.5,0", "seeds=[3]", "transfer.path=D", "transfer=x"]
    )
    assert parsed.amounts == [1.0, 0.01, 0.1]
    assert parsed.guidance == [0.5, 0.0]
    assert parsed.seeds == [3]
    assert parsed.transfer == ["data=x", "data.path=D"]


def test_amounts_of_labels_are_sorted_by_the_images_that_they_come_to():
    study = planned("labels=30,1,0.4,10", "labels_per_class=2,5")
    assert study.labels == [10.0, "2 per class", 30.0, "5 per class", 0.4, 1.0]  # 10, 20, 30, 50, 77, 100 images
    assert sum(study.labelled.values()) == 100
    config = compose_config(study.overrides(study.arms[1], 0))
    assert config.evaluation.labels == [10.0, 30.0, 0.4, 1.0]
    assert config.evaluation.labels_per_class == [2, 5]
    assert planned("labels_per_class=2").labels == ["2 per class"]
    assert planned().labels == planned("labels=1").labels == [1.0]


CASES = [
    (["policies=random,none"], "policies: got 'none'; expected some of "),
    (["policies=random"], "policies: got 'random'; expected at least two"),
    (["baseline=none"], "baseline: got 'none'; expected one of "),
    (["seeds=0"], "seeds: got '0'; expected a number of seeds of at least 1"),
    (["seeds=1,-1"], "seeds: got -1; expected a list, each a whole number from 0"),
    (["seeds=few"], "seeds: got 'few'"),
    (
        ["labels=1.5"],
        "labels: got 1.5; expected a list, each a number above 0: up to 1 a share (1 is all labels), from",
    ),
    (
        ["labels=10,1000"],
        "labels: got 1000; expected at most 100, the number of labelled training images that evaluati",
    ),
    (["labels_per_class=0"], "labels_per_class: got 0; expected a list, each a whole number of at least 1"),
    (["evaluation.labels_per_class=[3]"], "evaluation.labels_per_class: got '[3]'; expected labels_per_class=A,B"),
    (["labels=0.1,0"], "labels: got 0.0"),
    (["arm.x=seed=3"], "arm.x: got 'seed=3'; expected SETTING=VALUE for the training; all arms share data"),
    (["arm.x=direct"], "arm.x: got 'direct'; expected SETTING=VALUE for the training"),
    (["arm.x= "], "arm.x: got ' '; expected at least one SETTING=VALUE for the training"),
    (["arm.topk=paths=direct"], "arm: got 'topk'; expected arm.NAME, a name of letters, digits, - and _"),
    (["arm.x=paths=sideways"], "paths: got 'sideways'; expected one of both, direct"),
    (["guidance=1.5"], "guidance: got 1.5; expected a list, each a share from 0 to 1"),
    (["equal=cost"], "equal: got 'cost'; expected one of updates, time"),
    (["minimum_effect=0"], "minimum_effect: got 0.0; expected a finite number above 0"),
    (["cost.miss=5"], "cost.false_alarm: got None; expected a cost, since the cost of the other kind of error is set"),
    (["cost.miss=5", "cost.false_alarm=1"], "cost.miss: got 5.0; expected null, or good=CLASS: the name of no class"),
    (["good=fine"], "good: got 'fine'; expected one of the classes (0, 1, 2"),
    (["resume={folder}/study", "cost.miss=5", "cost.false_alarm=1"], "cost.miss: got 5.0; expected null: this study"),
    (["jobs=0"], "jobs: got 0; expected a whole number of at least 1"),
    (["seed=3"], "seed: got '3'; expected seeds=N"),
    (["mask.policy=topk"], "mask.policy: got 'topk'; expected policies=A,B"),
    (["evaluate=false"], "evaluate: got 'false'"),
    (["mask.ratio=2"], "mask.ratio: got 2.0"),
    (["maks.ratio=2"], "maks.ratio: got '2'; expected a known setting, such as mask.ratio"),
    (["steps"], "steps: got 'steps'; expected SETTING=VALUE"),
    (["transfer.path=D"], "transfer: got None; expected the name of a data set"),
    (["transfer=none"], "data: got 'none'; expected one of "),
    (["hydra/launcher=none"], "hydra/launcher: got 'none'; expected one of basic"),
    (["output={folder}/taken"], "a new or empty folder"),
    (["resume={folder}/taken"], "expected the folder of a study"),
    (["resume={folder}/taken", "steps=3"], "resume: got 'steps=...'; expected only seeds, jobs"),
    (["resume={folder}/study", "seeds=1"], "seeds: got [0]; expected at least the study's own: [0, 1]"),
    (["resume={folder}/broken"], "study.yaml cannot be read"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("studies")
    for name in ("taken", "study", "broken"):
        (root / name).mkdir()
    (root / "taken" / "file").write_text("mine")
    replace(planned(), seeds=[0, 1]).write(root / "study")
    (root / "broken" / "study.yaml").write_text("arms: 3\n")
    return root


@pytest.mark.parametrize(("arguments", "text"), CASES, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_wrong_input_is_one_line_and_writes_nothing(arguments, text, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("{folder}", str(folder)) for argument in arguments]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["study", *([] if given[0].startswith("resume") else TINY), *given]) == 2
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith("multilevel: ")
    assert text in line
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_verdicts_protocol_and_metric_are_evaluated():
    study = planned("protocol=finetune", "metric=macro_f1")
    assert (study.protocol, study.metric) == ("finetune", "macro_f1")
    for arm in study.arms:
        assert "evaluation.protocols=[linear_probe,knn,finetune]" in study.overrides(arm, 0)
        assert "evaluation.metric=macro_f1" in study.overrides(arm, 0)
    assert not any(one.startswith(("evaluation.protocols", "evaluation.metric")) for one in planned().settings)
    explicit = planned("metric=macro_f1", "evaluation.metric=accuracy").settings
    assert "evaluation.metric=accuracy" in explicit
    assert "evaluation.metric=macro_f1" not in explicit


def test_a_part_that_could_not_be_evaluated_is_not_done(tmp_path):
    study, name = planned(), "random-seed0"
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    for problem, done in ((None, True), ("no image of the split has a box", False)):
        (run / "summary.json").write_text(json.dumps({"evaluation_problem": problem}))
        assert is_done(study, tmp_path, name) is done


def test_studies_that_start_in_one_second_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "now", lambda: "20261130-120000")
    study = SimpleNamespace(data="digits")
    folders = [command.new_folder(None, study) for _ in range(3)]
    assert [folder.name[-8:] for folder in folders] == ["0-120000", "120000-2", "120000-3"]
    assert all((folder / "runs").is_dir() for folder in folders)


def test_a_study_that_another_process_runs_is_not_resumed(tmp_path, capsys):
    folder = tmp_path / "study"
    planned().write(command.new_folder(str(folder), planned()))
    with only_process("output", folder):
        child = subprocess.run(
            [sys.executable, "-m", "multilevel", "study", f"resume={folder}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 2
    assert "a run that no other process trains: process" in child.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["runs", "study.yaml"]
