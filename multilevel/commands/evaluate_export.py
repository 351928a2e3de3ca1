"""Scores an exported classifier, as it is, on labelled images: ``multilevel evaluate EXPORT data.path=DIR``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multilevel.commands.image_files import Request
from multilevel.commands.labelled_images import labelled_images
from multilevel.commands.outputs import Outputs
from multilevel.commands.predict import report_unreadable
from multilevel.configuration.command_line import read
from multilevel.levels.tasks.classification import classification_metrics, majority_metrics
from multilevel.recipes.data.sources.split_folders import test_folder
from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.evaluation.remarks import few_images
from multilevel.recipes.export import ExportedModel
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.export.folder import EVALUATION, INSPECTION, PROCESSOR, read_json
from multilevel.recipes.export.operating_point import defect_probability
from multilevel.recipes.settings import chosen_device
from multilevel.reports.proportions import Proportion
from multilevel.reports.texts import Texts
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.ranges import Count, require

MAJORITY = "majority class"
ENGLISH = Texts("en")


@dataclass
class LabelledFolder:
    """The images to score on.

    Args:
        path: a folder with a subfolder of images for each class, or with such folders in its subfolder test.
    """

    path: str | None = None


@dataclass
class ExportEvaluationSettings:
    """Settings of ``multilevel evaluate EXPORT``.

    Args:
        output: a file for the scores as JSON; None writes none.
        batch_size: images at a time.
        device: device that PyTorch computes on.
    """

    data: LabelledFolder = field(default_factory=LabelledFolder)
    output: str | None = None
    batch_size: Count = 64
    device: str = "auto"


def is_export(folder: Path) -> bool:
    """Whether a folder was written by ``multilevel export``."""
    return (folder / PROCESSOR).is_file()


def evaluate_export(arguments: Sequence[str]) -> int:
    """Print the scores of an export on labelled images; returns 1 if some files could not be read.

    Raises:
        SettingError: an unknown setting, no folder of labelled images, or a class that the export does not know.
        MultilevelError: the export is broken or has no classifier.
    """
    line = read("evaluate", arguments, ExportEvaluationSettings, words=True, recipe=False)
    require("evaluate", " ".join(line.words), len(line.words) == 1, "one exported folder, and data.path=DIR")
    settings, export = line.settings, Path(line.words[0])
    require("data.path", settings.data.path, settings.data.path is not None, "a folder with a subfolder for each class")
    root = Path(str(settings.data.path))
    root = (test_folder(root) if root.is_dir() else None) or root
    images = labelled_images(root, None)
    model = ExportedModel(export, chosen_device(settings.device))
    if not model.class_names:
        raise MultilevelError(f"{export} holds an encoder without a classifier: evaluate its run")
    for name in images.class_names:
        expected = f"a class of the export: {', '.join(model.class_names)}"
        require("data.path", str(root / name), name in model.class_names, expected)
    outputs = None if settings.output is None else Outputs.of(settings.output, images.files, [model.folder])
    results = Request(model, export, images.files, settings.output or "", settings.batch_size).run()
    if results.logits is None:
        raise SettingError("data.path", str(root), "images that can be read")
    numbers = np.array([model.class_names.index(name) for name in images.class_names])
    readable = [file not in results.errors for file in images.files]
    labels = numbers[images.labels[readable]]
    report = Report(model, labels, probabilities(results.logits), read_json(export / INSPECTION))
    say = print if outputs is None else outputs.print
    say(report.text(root))
    stored = read_json(export / EVALUATION)
    if stored:
        say(f"on the run's own test images, {stored['metric'].replace('_', ' ')}: {_references(stored)}")
    if outputs is not None:
        outputs.write(json.dumps(report.record(), indent=2) + "\n")
        outputs.print_paths()
    report_unreadable(results)
    return 1 if results.errors else 0


@dataclass(frozen=True)
class Report:
    """The scores of a classifier.

    Attributes:
        model: the export.
        labels: int64 [N], positions in its classes.
        probabilities: float64 [N, classes].
        inspection: the contents of its ``inspection.json``.
    """

    model: ExportedModel
    labels: np.ndarray
    probabilities: np.ndarray
    inspection: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by name, of the export and, if the export knows it, of its most frequent training class."""
        rows = {"this export": classification_metrics(self.labels, self.probabilities)}
        if self.inspection.get("labels"):
            known = np.array(self.inspection["labels"])
            rows[MAJORITY] = majority_metrics(known, self.labels, self.probabilities.shape[1])
        return rows

    @property
    def recalls(self) -> dict[str, Proportion]:
        """The recall of each class that occurs."""
        predicted = self.probabilities.argmax(1)
        return {
            self.model.class_names[label]: Proportion.of(
                int((predicted[self.labels == label] == label).sum()), int((self.labels == label).sum())
            )
            for label in np.unique(self.labels)
        }

    @property
    def errors(self) -> dict[str, Proportion]:
        """Recall of defects and false alarms at the export's threshold; empty without one."""
        point = self.model.operating_point
        if point is None:
            return {}
        good = self.model.class_names.index(point.good)
        stopped, defect = defect_probability(self.probabilities, good) >= point.threshold, self.labels != good
        kinds = {"defects found": defect, "false alarms": ~defect}
        return {name: Proportion.of(int(stopped[kind].sum()), int(kind.sum())) for name, kind in kinds.items()}

    def record(self) -> dict[str, Any]:
        """The report as JSON."""
        shares = {**{f"recall of {name}": share for name, share in self.recalls.items()}, **self.errors}
        return {
            "export": self.model.identity,
            "images": len(self.labels),
            "metrics": self.metrics,
            "shares": {name: vars(share) for name, share in shares.items()},
        }

    def text(self, root: Path) -> str:
        """The report as lines."""
        counts = np.bincount(self.labels, minlength=len(self.model.class_names)).tolist()
        rows = self.metrics
        titles = [metric_title(name) for name in rows["this export"]]
        width = max(map(len, titles))
        lines = [f"{len(self.labels):,} images of {root.name}", " " * width + "".join(f"  {name}" for name in rows)]
        for metric, title in zip(rows["this export"], titles, strict=True):
            cells = "".join(f"  {100 * row[metric]:>{len(name) - 1}.1f}%" for name, row in rows.items())
            lines.append(title.ljust(width) + cells)
        lines += [f"recall of {name}: {ENGLISH.proportion(share)}" for name, share in self.recalls.items()]
        if self.model.operating_point is not None:
            lines.append(self.model.operating_point.describe())
            lines += [f"{name}: {ENGLISH.proportion(share)}" for name, share in self.errors.items()]
        remark = few_images(dict(zip(self.model.class_names, counts, strict=True)), "labelled")
        return "\n".join([*lines, remark] if remark else lines)


def _references(stored: dict[str, Any]) -> str:
    scores = {"this export": stored["model"], **stored["references"]}
    return ", ".join(f"{name} {100 * score:.1f}%" for name, score in scores.items())
