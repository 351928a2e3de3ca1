"""Logs to MLflow, into the store at MLFLOW_TRACKING_URI or mlflow.db in the current folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multilevel.configuration.composition import named_settings
from multilevel.loggers.base import Logger
from multilevel.problems import Engine
from multilevel.solvers import SettingError

FOLDER_TAG = "multilevel.folder"


class MLflow(Logger):
    """Logs to a run of the experiment named after the recipe; a resumed run continues in the same MLflow run.

    Raises:
        SettingError: MLflow is not installed, or its store cannot be used.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        try:
            import mlflow
        except ImportError as error:
            raise SettingError("loggers", "mlflow", "pip install 'multilevel[loggers]', or mlflow") from error
        self._mlflow = mlflow
        try:
            self._client = mlflow.MlflowClient()
            self._client.get_experiment_by_name(str(config["recipe"]))
        except mlflow.exceptions.MlflowException as error:
            raise SettingError("loggers", "mlflow", f"a usable store: {error}") from error

    def on_start(self, engine: Engine, steps: int) -> None:
        self._last = engine.step + steps
        name = str(self.config["recipe"])
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        folder = str(self.folder.resolve())
        before = self._client.search_runs([experiment], f"tags.`{FOLDER_TAG}` = '{folder}'")
        if before:
            self._run = before[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        run = self._client.create_run(experiment, run_name=self.folder.name, tags={FOLDER_TAG: folder})
        self._run = run.info.run_id
        for setting, value in named_settings(self.config):
            if not isinstance(value, Mapping):
                self._client.log_param(self._run, setting, value)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        metric, now = self._mlflow.entities.Metric, self._mlflow.utils.time.get_current_time_millis()
        self._client.log_batch(self._run, [metric(name, value, now, step) for name, value in values.items()])

    def on_end(self, engine: Engine) -> None:
        self._client.set_terminated(self._run, "FINISHED" if engine.step >= self._last else "KILLED")
