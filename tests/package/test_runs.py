"""Whole runs from the command line: what a run folder holds, resuming, evaluating, sweeping."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from PIL import Image
from safetensors.torch import load_file

from multilevel.__main__ import main
from multilevel.configuration.composition import CONFIG_MODULE, build_recipe, compose_config, register_solvers
from multilevel.recipes.guided_mae import GuidedMae
from multilevel.runs.sweep import objective
from multilevel.solvers import DataError, SettingError

TINY = [
    "model.width=16", "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=16", "data.limit=300", "evaluation.max_images=100",
]  # fmt: skip


def run(folder, *settings):
    assert main(["train", *TINY, f"output={folder}", *settings]) == 0
    return json.loads((folder / "summary.json").read_text())


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["steps=6", "levels.pretrain.solver=neumann", "levels.pretrain.solver.terms=7"]
    return folder, run(folder, *arguments)


def test_a_run_folder_holds_everything(finished):
    folder, summary = finished
    names = ["checkpoint", "config.yaml", "curves.png", "masks.png", "metrics.jsonl", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["step-6"]
    for name in ("curves.png", "masks.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200
    assert [(one["level"], one["step"]) for one in records(folder)] == [
        (level, step) for step in range(6) for level in ("pretrain", "pretrain", "finetune", "mask")
    ]
    encoders = ("trained encoder", "untrained encoder", "raw pixels", "majority class")
    assert [(one["encoder"], one["protocol"], one["labels"]) for one in summary["evaluation"]] == [
        (encoder, protocol, 1.0) for encoder in encoders for protocol in ("linear_probe", "knn")
    ]
    assert summary["levels"]["mask"]["solves"]["pretrain"]["solves"] == 6
    for key in ("seconds", "peak_memory_mib", "images_per_second", "seed", "versions", "steps"):
        assert summary[key] is not None
    assert 0 < summary["waiting_for_data"] < 1


def test_one_levels_solver_and_its_options_from_the_command_line(finished):
    solvers = finished[1]["solvers"]
    assert solvers["pretrain"]["name"] == "neumann"
    assert solvers["pretrain"]["terms"] == 7
    assert solvers["finetune"]["name"] == "identity"


def test_a_solver_with_the_weight_of_an_outer_step_from_the_command_line(tmp_path):
    for name, settings, finetune in (
        ("all", ["solver.scale=null"], None),
        ("pretrain", ["levels.pretrain.solver=identity", "levels.pretrain.solver.scale=null"], 1.0),
        ("sama", ["solver=sama", "solver.scale=null"], None),
    ):
        summary = run(tmp_path / name, *settings, "steps=1", "evaluate=false")
        assert [summary["solvers"][level]["scale"] for level in ("pretrain", "finetune")] == [None, finetune]


def test_an_option_alone_changes_the_solver_of_all_levels_for_one(tmp_path):
    settings = ["steps=1", "evaluate=false", "solver=conjugate_gradient", "solver.iterations=3"]
    summary = run(tmp_path / "run", *settings, "levels.pretrain.solver.damping=0.5")
    assert summary["solvers"]["pretrain"]["damping"] == 0.5
    assert summary["solvers"]["finetune"]["damping"] == 0.0
    assert {one["iterations"] for one in summary["solvers"].values()} == {3}
    assert {one["name"] for one in summary["solvers"].values()} == {"conjugate_gradient"}


def test_evaluate_gives_the_scores_of_the_run(finished, capsys):
    folder, summary = finished
    assert main(["evaluate", str(folder)]) == 0
    rows = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").unlink()
    assert [row for row in rows if row["protocol"] != "supervised"] == summary["evaluation"]
    assert len(rows) == len(summary["evaluation"]) + 1
    assert "supervised from scratch" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "evaluation.references=true"]) == 0
    assert json.loads((folder / "evaluation.json").read_text()) == summary["evaluation"]
    (folder / "evaluation.json").unlink()
    assert sum(summary["scored_images"].values()) == 359  # a fifth of the digits


def test_a_finished_run_is_left_alone_by_resume(finished, capsys):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["train", f"resume={folder}"]) == 0
    assert "has ended" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("settings", "masking", "solved"),
    [
        (["mask.policy=random"], False, set()),
        (["mask.policy=block"], False, set()),
        (["mask.policy=variance", "mask.guidance=0.5"], False, set()),
        (["mask.policy=attention", "mask.options={hint:0.1}"], False, set()),
        (["mask.policy=adversarial", "mask.entropy_bonus=0.1"], True, set()),
        (["mask.policy=topk", "precision=bf16"], True, {"pretrain", "finetune"}),
        (
            ["mask.gradient=both", "mask.guidance=0.5", "mask.temperature=2", "precision=bf16"],
            True,
            {"pretrain", "finetune"},
        ),
        (["paths=direct"], True, {"pretrain"}),
    ],
)
def test_other_graphs(tmp_path, settings, masking, solved):
    summary = run(tmp_path / "run", "steps=2", "evaluate=false", *settings)
    assert list(summary["levels"]) == ["pretrain", "finetune"] + (["mask"] if masking else [])
    assert set(summary["solvers"]) == solved


def images(folder, classes):
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(20):
            noise = Image.effect_noise((40, 40), 60 + 40 * len(label)).convert("RGB")
            noise.save(folder / label / f"{index}.png")


def test_a_folder_of_images_with_labels(tmp_path):
    images(tmp_path / "images", ["good", "scratched"])
    settings = ["data=folder", f"data.path={tmp_path / 'images'}", "data.image_size=16", "data.batch_size=4"]
    summary = run(tmp_path / "run", *settings, "steps=2")
    majority = next(one["metrics"] for one in summary["evaluation"] if one["encoder"] == "majority class")
    assert majority == {
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "macro_f1": pytest.approx(1 / 3),
        "macro_roc_auc": 0.5,
    }


@pytest.mark.parametrize("policy", ["random", "adversarial"])
def test_a_folder_of_images_without_labels_is_pretrained_alone(tmp_path, policy):
    images(tmp_path / "images", [""])
    settings = ["data=folder", f"data.path={tmp_path / 'images'}", "data.image_size=16", "data.batch_size=4"]
    summary = run(tmp_path / "run", *settings, "steps=2", f"mask.policy={policy}")
    assert list(summary["levels"]) == ["pretrain"] + (["mask"] if policy == "adversarial" else [])
    assert summary["evaluation"] is None


def test_multirun_makes_a_run_of_each(tmp_path):
    arguments = [
        *TINY,
        "steps=1",
        "evaluate=false",
        "solver=finite_difference,neumann",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    subprocess.run([sys.executable, "-m", "multilevel", "train", "--multirun", *arguments], check=True, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]
    folders = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["solver=finite_difference", "solver=neumann"]
    for folder, name in zip(folders, ("finite_difference", "neumann"), strict=True):
        assert json.loads((folder / "summary.json").read_text())["solvers"]["pretrain"]["name"] == name


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_an_error_within_multirun_is_one_line(tmp_path, launcher):
    settings = ["mask.ratio=2,3", f"hydra/launcher={launcher}"]
    command = [sys.executable, "-m", "multilevel", "train", "--multirun", *settings]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "mask.ratio=2: mask.ratio: got 2.0; expected a share above 0 and below 1"
    assert done.stderr.strip() == f"multilevel: 2 of the runs failed; the first with {expected}"


def test_failures_are_found_where_a_swept_value_holds_a_slash(tmp_path):
    settings = ["recipe=hyper_cleaning", "steps=1", "data.path=/nowhere/a,/nowhere/b"]
    command = [sys.executable, "-m", "multilevel", "train", "--multirun", *settings, f"hydra.sweep.dir={tmp_path}/s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "2 of the runs failed; the first with " in done.stderr
    assert "data.path: got '/nowhere/a'" in done.stderr


def test_optuna_searches_a_solvers_settings_and_says_what_is_best(tmp_path):
    settings = ["recipe=hyper_cleaning", "steps=2", "evaluate=false", "solver=conjugate_gradient"]
    searched = ["solver.damping=tag(log,interval(0.001,10))", "objective=separation_auc"]
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=0"]
    folder = f"hydra.sweep.dir={tmp_path}/sweep"
    command = [sys.executable, "-m", "multilevel", "train", "--multirun", *settings, *searched, *sweeper, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/summary.json")]
    tried = {one["solvers"]["classify"]["damping"]: one["separation_auc"] for one in summaries}
    assert len(tried) == 3
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(tried.values()) == tried[best["best_params"]["solver.damping"]]
    assert "best_value" in done.stdout


@pytest.mark.parametrize("path", ["levels.mask", "none", "levels.none.last_loss", "recipe"])
def test_an_objective_that_is_no_number_is_named(path):
    with pytest.raises(SettingError, match=f"objective: got '{path}'; expected the path of a number"):
        objective({"recipe": "a", "levels": {"mask": {"last_loss": 1.0}}}, path)
    assert objective({"levels": {"low": {"last_loss": 2.0}, "mask": {"last_loss": 1.0}}}, None) == 1.0


def test_a_cluster_is_a_launcher_like_another():
    register_solvers()
    options = ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2", "hydra.launcher.timeout_min=600"]
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = compose(
            "config",
            ["solver=finite_difference", "hydra/launcher=submitit_slurm", *options],
            return_hydra_config=True,
        )
    launcher = config.hydra.launcher
    assert launcher._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert (launcher.partition, launcher.gpus_per_node, launcher.timeout_min) == ("gpu", 2, 600)
    assert get_class(launcher._target_).__name__ == "SlurmLauncher"


@pytest.mark.parametrize("approximate", [False, True])
def test_approximate_reaches_the_graph(approximate):
    assert build_recipe(compose_config([f"approximate={approximate}"])).graph.approximate is approximate


def test_graph_prints_and_draws(tmp_path, capsys):
    assert main(["graph", "paths=direct", f"output={tmp_path / 'deep' / 'graph.png'}"]) == 0
    assert "hypergradient through pretrain" in capsys.readouterr().out
    with Image.open(tmp_path / "deep" / "graph.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["graph", "-h"], ["evaluate", "--help"], ["--version"]]
)
def test_help(arguments, capsys):
    assert main(arguments) == 0
    assert "multilevel" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_weights(tmp_path, capsys, seed):
    settings = [*TINY, "steps=60", "checkpoint.every=5", "evaluate=false", "mask.policy=sampled"]
    assert main(["train", *settings, f"output={tmp_path / 'whole'}"]) == 0
    command = [sys.executable, "-m", "multilevel", "train", *settings, "output=killed"]
    killed = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "checkpoint").glob("step-*")):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 1.5))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert main(["train", f"resume={tmp_path / 'killed'}"]) == 0
    step = int(capsys.readouterr().err.split("resumed at step ")[1].split()[0])
    assert 0 < step < 60
    final = [
        load_file(tmp_path / name / "checkpoint" / "step-60" / "weights.safetensors") for name in ("whole", "killed")
    ]
    assert final[0].keys() == final[1].keys()
    assert all((final[0][key] == final[1][key]).all() for key in final[0])
    losses = [
        [(one["level"], one["step"], one["loss"]) for one in records(tmp_path / name)] for name in ("whole", "killed")
    ]
    assert losses[0] == losses[1]


def test_an_evaluation_that_cannot_be_made_loses_nothing(tmp_path, monkeypatch, capsys):
    def evaluate(self):
        raise DataError("no image of the split has a box")

    monkeypatch.setattr(GuidedMae, "evaluate", evaluate)
    folder = tmp_path / "run"
    assert main(["train", *TINY, f"output={folder}", "steps=1"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == "multilevel: no image of the split has a box"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation"] is None
    assert summary["evaluation_problem"] == "no image of the split has a box"
    assert summary["peak_memory_mib"] > 0
