"""Nothing that a stranger's run, study, table or file name says is run, and no secret of the reader is read."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from omegaconf import OmegaConf
from PIL import Image

from multilevel.__main__ import main
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.plain_yaml import read_yaml
from multilevel.runs.screen import Screen, plain_screen
from multilevel.solvers import DataError, MultilevelError, SettingError
from multilevel.study.launch import stored_launcher
from multilevel.study.plan import Study

TINY = ["recipe=hyper_cleaning", "evaluate=false", "data.limit=200", "checkpoint.every=1", "steps=2"]
LOGGER = (
    "from pathlib import Path\n"
    "from multilevel.loggers import Logger\n"
    "Path({mark!r}).touch()\n"
    "class Mine(Logger):\n"
    "    def write(self, step, values): pass\n"
)
STUDY = {
    "arguments": [],
    "settings": ["data=digits"],
    "arms": [
        {
            "name": name,
            "policy": name,
            "guidance": None,
            "learned": name != "random",
            "guided_share": 0.0,
            "updates_per_step": 2,
            "steps": 1,
            "settings": [],
        }
        for name in ("random", "sampled")
    ],
    "seeds": [0],
    "labels": [1.0],
    "transfer": [],
    "transfer_name": "",
    "equal": "updates",
    "metric": "accuracy",
    "protocol": "linear_probe",
    "split": "test",
    "minimum_effect": 0.01,
    "threads": 1,
    "jobs": 1,
    "launcher": [],
    "data": "digits",
    "version": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", *TINY, f"output={run}"]) == 0
    (run / "summary.json").unlink()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "stranger"))


def write_study(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / "study.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({**STUDY, **changes})))
    return folder


@pytest.mark.parametrize("secret", ["${oc.env:SECRET}", "${oc.decode:'1'}", "a/${${recipe}:SECRET}", "${x}${oc.env:A}"])
def test_a_stored_configuration_resolves_no_resolver(run, monkeypatch, capsys, secret):
    monkeypatch.setenv("SECRET", "hunter2")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("hub: null", f'hub: "{secret}"'))
    for command in (
        ["evaluate", str(run)],
        ["train", f"resume={run}"],
        ["export", str(run)],
        ["compare", f"run={run}"],
    ):
        assert main(command) == 2
        said = capsys.readouterr()
        assert "hunter2" not in said.out + said.err
        assert "config.yaml cannot be read" in said.err or command[0] == "compare"


def test_references_to_own_settings_stay(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 3\nb: ${a}\nc: 'x:${a}'\n")
    config = read_yaml(tmp_path / "config.yaml")
    assert (config.b, config.c) == (3, "x:3")


def test_a_stored_logger_runs_only_if_it_is_named_again(run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = tmp_path / "imported"
    (tmp_path / "planted_logger.py").write_text(LOGGER.format(mark=str(mark)))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("loggers: []", "loggers: [planted_logger.Mine]"))
    assert main(["train", f"resume={run}"]) == 2
    assert "loggers: got 'planted_logger.Mine'" in capsys.readouterr().err
    assert not mark.exists()
    assert main(["train", f"resume={run}", "loggers=[planted_logger.Mine]"]) == 0
    assert mark.exists()


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=basic", "+hydra.job.env_set.PYTHONPATH=x"],
        ["hydra/launcher=submitit_slurm", "hydra.launcher.setup=[touch x]"],
        ["hydra/launcher=joblib", "hydra.launcher._target_=os.system"],
        ["hydra/launcher=joblib", "hydra.launcher.backend=${oc.env:HOME}"],
        ["hydra/launcher=../x"],
    ],
)
def test_a_stored_launcher_is_a_name_with_plain_options(tmp_path, capsys, launcher):
    with pytest.raises(SettingError, match="plain options"):
        stored_launcher(launcher)
    assert main(["study", f"resume={write_study(tmp_path / 's', launcher=launcher)}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": ["hydra.job.env_set.PYTHONPATH=x"]},
        {"settings": ["data=digits", "data.hub=${oc.env:HOME}"]},
        {"arms": [{**arm, "name": f"../../{arm['name']}"} for arm in STUDY["arms"]]},
    ],
)
def test_a_stored_study_has_settings_of_training_and_folders_of_its_own(tmp_path, changes):
    with pytest.raises(MultilevelError, match=r"study\.yaml cannot be read"):
        Study.read(write_study(tmp_path / "s", **changes))


def test_a_logger_of_a_stored_study_is_named_again(tmp_path, capsys):
    folder = write_study(tmp_path / "s", settings=["data=digits", "loggers=[planted_logger.Mine]"])
    assert main(["study", f"resume={folder}"]) == 2
    assert "loggers: got 'planted_logger.Mine'" in capsys.readouterr().err


STARTS = {
    "a part of a study": "from multilevel.study.part import start_part; start_part(here, 'random-seed0', 1)",
    "calibration": "from multilevel.study.command import _calibrated; _calibrated(here)",
    "compare": "from multilevel.compare.command import _in_a_process; _in_a_process(dict)",
}


@pytest.mark.parametrize("start", STARTS)
def test_processes_import_nothing_from_the_current_folder(tmp_path, start):
    here, mark = tmp_path / "here", tmp_path / "imported"
    (here / "runs").mkdir(parents=True)
    for module in ("tqdm", "selectors", "torch", "multilevel"):
        (here / f"{module}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    script = tmp_path / "elsewhere" / "script.py"  # as the installed command, which is not in the current folder
    script.parent.mkdir()
    script.write_text(f"from pathlib import Path\nhere = Path('.')\nif __name__ == '__main__':\n    {STARTS[start]}\n")
    subprocess.run([sys.executable, str(script)], cwd=here, capture_output=True, check=False)
    assert not mark.exists()


def test_no_control_character_reaches_the_terminal(capsys):
    with plain_screen():
        print("\x1b]0;title\x07 \x9b2J\n\tnext", file=sys.stderr)
        sys.stderr.write("\x1b[A\x1b[Aa")
        sys.stderr.write("\n\x1b[A")  # a bar moves
        sys.stderr.write("\r 3/10")
    said = capsys.readouterr().err
    assert said == "\\x1b]0;title\\x07 \\x9b2J\n\tnext\n\\x1b[A\\x1b[Aa\n\x1b[A\r 3/10"
    assert Screen(io.StringIO()).write("abc") == 3


def test_a_cell_names_no_file_outside_the_folder_of_its_table(tmp_path):
    (tmp_path / "table").mkdir()
    for number in range(20):
        Image.new("L", (8, 8), 12 * number).save(tmp_path / "table" / f"{number}.png")
    shutil.copy(tmp_path / "table" / "0.png", tmp_path / "secret.png")

    def load(first: str) -> None:
        names = [first, *(str(tmp_path / "table" / f"{number}.png") for number in range(1, 20))]
        rows = {"image": [{"bytes": None, "path": name} for name in names], "label": ["a", "b"] * 10}
        Dataset.from_dict(rows).to_parquet(str(tmp_path / "table" / "train.parquet"))
        settings = DataSettings(
            name="folder", path=str(tmp_path / "table"), image_size=8, channels=1, patch_size=4, batch_size=4,
            near_copies="keep", image_column="image", label_column="label",
        )  # fmt: skip
        load_data(settings)

    load("0.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "table" / "link.png")
    for outside in (str(tmp_path / "secret.png"), "../secret.png", "/dev/zero", "link.png"):
        with pytest.raises(DataError, match="a file outside its folder"):
            load(outside)
