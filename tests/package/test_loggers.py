"""The numbers of every step reach TensorBoard, MLflow and a class of one's own, over a resume too."""

import json

import pytest

from multilevel.__main__ import main

TINY = ["recipe=hyper_cleaning", "evaluate=false", "data.limit=200", "checkpoint.every=1"]


def expected(run):
    """{step: {name: value}} of the last update of each level, from the event log."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        values = found.setdefault(record["step"] + 1, {})
        values[f"{record['level']}/loss"] = record["loss"]
        values[f"{record['level']}/gradient_norm"] = record["gradient_norm"]
    return found


def train(run, *settings):
    assert main(["train", *TINY, f"output={run}", *settings]) == 0


def agrees(logged, run):
    wanted = expected(run)
    assert sorted(logged) == sorted(wanted)
    for step, values in wanted.items():
        for name, value in values.items():
            assert logged[step][name] == pytest.approx(value, rel=1e-6)


def test_a_class_of_ones_own_by_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from multilevel.loggers import Logger\n"
        "class Lines(Logger):\n"
        "    def write(self, step, values):\n"
        "        with (self.folder / 'lines').open('a') as file:\n"
        "            print(step, values['clean/loss'], file=file)\n"
    )
    train(tmp_path / "run", "loggers=[mine.Lines]", "steps=3")
    lines = [line.split() for line in (tmp_path / "run" / "lines").read_text().splitlines()]
    wanted = expected(tmp_path / "run")
    assert [(int(step), float(loss)) for step, loss in lines] == [(n, wanted[n]["clean/loss"]) for n in (1, 2, 3)]


def stopped(run, *settings):
    """A run that a kill after its second step would leave: its summary is missing, its last step is redone."""
    train(run, *settings, "steps=3")
    (run / "summary.json").unlink()
    newest = max((run / "checkpoint").glob("step-*"))
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    stopped(run, "loggers=[tensorboard]")
    assert main(["train", f"resume={run}"]) == 0
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    logged = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            logged.setdefault(event.step, {})[name] = event.value
        steps = [event.step for event in events.Scalars(name)]
        assert len(steps) == len(set(steps))
    agrees(logged, run)


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    import mlflow

    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)  # where the store goes, where nothing else is said
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    stopped(run, "loggers=[mlflow]")
    assert main(["train", f"resume={run}"]) == 0
    client = mlflow.MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "hyper_cleaning"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["levels.classify.steps"] == "5"
    logged = {}
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            logged.setdefault(metric.step, {})[name] = metric.value
    agrees(logged, run)


def test_a_logger_that_fails_costs_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "failing.py").write_text(
        "from multilevel.loggers import Logger\n"
        "class Failing(Logger):\n"
        "    def write(self, step, values):\n"
        "        raise RuntimeError('the server is gone')\n"
    )
    train(tmp_path / "run", "loggers=[failing.Failing]", "steps=3")
    said = [line for line in capsys.readouterr().err.splitlines() if "server" in line]
    assert said == ["step 1: Failing stopped logging: RuntimeError: the server is gone"]


@pytest.mark.parametrize("name", [".none", "..none", "none", "json.JSONDecoder", "json.none", "no_such_module.Class"])
def test_a_logger_that_there_is_not_is_told_before_anything_is_written(name, tmp_path, capsys):
    assert main(["train", *TINY, "steps=1", f"loggers=[{name}]", f"output={tmp_path / 'run'}"]) == 2
    assert f"loggers: got '{name}'; expected some of mlflow, tensorboard, or MODULE.CLASS" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["class", "raise RuntimeError('no server')", "nothing_there"])
def test_a_loggers_module_that_is_broken_is_a_line(text, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_logger.py").write_text(text)
    assert main(["train", *TINY, "steps=1", "loggers=[broken_logger.Lines]", f"output={tmp_path / 'run'}"]) == 2
    assert "loggers: got 'broken_logger.Lines'; expected some of mlflow," in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    assert main(["train", *TINY, "steps=1", "loggers=[mlflow]", f"output={tmp_path / 'run'}"]) == 2
    assert "loggers: got 'mlflow'; expected pip install" in capsys.readouterr().err
