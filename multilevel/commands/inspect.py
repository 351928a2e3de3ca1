"""multilevel inspect EXPORT FOLDER [SETTING=VALUE ...]: report how an exported model would inspect a folder's parts

multilevel inspect RUN reports on the run's own test images, with its export in RUN/export, and writes into RUN.

Scores the images of FOLDER, which has a subfolder for each class, and writes one HTML file that opens offline, and its
numbers as JSON: recall of defects and false alarms with intervals, the threshold, what the data can prove, costs per
thousand parts, and pictures of the worst errors. Without subfolders the images have no labels: the report then lists
those that differ most from the training images.

Exit status: 0 whatever the verdict; 1 if a file could not be read (it is named); 2 for wrong input.

  multilevel inspect runs/pilot
  multilevel inspect runs/pilot/export images/test max_false_alarms=0.05 language=ja
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from multilevel.commands.image_files import Request, Results
from multilevel.commands.outputs import Outputs, is_file
from multilevel.commands.predict import report_unreadable
from multilevel.configuration.command_line import read
from multilevel.inspection.distance import FEWEST, measure_distances
from multilevel.inspection.findings import Inspected, find
from multilevel.inspection.folder import Good, ImageFolder, choose_good, read_folder, read_test_images
from multilevel.inspection.pages import PageMaker
from multilevel.inspection.report import Names, report
from multilevel.inspection.settings import InspectSettings
from multilevel.inspection.stored import read_stored
from multilevel.inspection.verdict import verdict
from multilevel.recipes.export import DriftReference, ExportedModel
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.settings import chosen_device
from multilevel.reports.texts import Texts
from multilevel.runs.folder import RunFolder
from multilevel.solvers import DataError, SettingError
from multilevel.solvers.files import shown
from multilevel.solvers.ranges import require

SETTINGS = InspectSettings


def main(arguments: Sequence[str]) -> int:
    """Write the report; returns 1 if some files could not be read."""
    line = read("inspect", arguments, InspectSettings, words=True, recipe=False)
    usage = "an exported folder and a folder of images: multilevel inspect EXPORT FOLDER; or a run that was exported"
    require("inspect", " ".join(line.words) or None, 1 <= len(line.words) <= 2, usage)
    line.settings.check_together()
    run = RunFolder.open("inspect", Path(line.words[0])) if len(line.words) == 1 else None
    settings, export = line.settings, Path(line.words[0])
    if run is not None:
        export = run.path / "export"
        require("inspect", str(run.path), export.is_dir(), f"an exported run: multilevel export {run.path}")
        if not any(argument.startswith("output=") for argument in arguments):
            settings = replace(settings, output=str(run.path / settings.output))
    device = chosen_device(settings.device)
    model = ExportedModel(export, device)
    classes = model.class_names if len(model.class_names) > 1 else ()
    root = Path(line.words[-1])
    root, images = read_test_images(run) if run else (root, read_folder(root, classes, settings.unknown))
    stored = read_stored(export, classes)
    good = None
    if classes or images.labelled or settings.good is not None:
        known = None if model.tiling is None else model.tiling.good
        good = choose_good(settings.good, stored.good or known, classes or images.class_names, images.truth)
        fits = known in (None, good.name)
        require("good", settings.good, fits, f"{known}, by which the export chooses the tile that stands for a picture")
    outputs = _outputs(settings.output, images.files, model.folder)
    path = outputs.paths[0]
    results = Request(model, export, images.files, settings.output, settings.batch_size).run()
    inspected = _inspected(images, results, classes, root, good, DriftReference.load(export))
    unreadable = {_relative(file, root): reason for file, reason in results.errors.items()}
    findings = find(inspected, good, stored, settings, unreadable, images.left_out)
    settings = settings.completed(stored.point)
    texts = Texts(settings.language)
    maker = PageMaker(model, export, inspected, findings, results.files, settings, texts, device)
    shown = [argument for argument in arguments if argument not in line.words and not argument.startswith("output=")]
    names = Names(model.name, root.resolve().name, path.with_suffix(".json").name, shown)
    pages, without_shares = maker.pages(), maker.without_shares
    outputs.write(*report(findings, inspected, pages, without_shares, names, settings))
    outputs.print(*verdict(findings, Texts("en")))
    outputs.print_paths()
    report_unreadable(results)
    return 1 if results.errors else 0


def _inspected(
    images: ImageFolder,
    results: Results,
    classes: tuple[str, ...],
    root: Path,
    good: Good | None,
    reference: DriftReference,
) -> Inspected:
    """The readable images, with probabilities, and with distances from good training images, if there are enough.

    Raises:
        DataError: none of the files can be read, or the model's results are not finite.
    """
    if not results.files:
        file, reason = next(iter(results.errors.items()))
        raise DataError(f"{root} holds no readable images: {shown(file)}: {reason}")
    if not np.isfinite(results.features).all():
        raise DataError("the model's features of these images are not finite: export a run that has not diverged")
    truth = dict(zip(images.files, images.truth, strict=True))
    label = classes.index(good.name) if good is not None and good.name in classes else None
    features = reference.features_of(label)
    if label is None or reference.labels is None or len(features) < FEWEST:
        label, features = None, reference.sample.features
    return Inspected(
        [_relative(file, root) for file in results.files],
        [truth[file] for file in results.files],
        classes,
        probabilities(results.logits) if classes and results.logits is not None else None,
        measure_distances(features, results.features) if len(features) >= FEWEST else None,
        None if label is None else classes[label],
    )


def _outputs(output: str, files: Sequence[Path], export: Path) -> Outputs:
    """The report and its numbers, which may not be among the files of the export: they are inputs."""
    if Path(output).suffix.lower() != ".html" and is_file(output, Path(output)):
        raise SettingError("output", output, "a .html file: the numbers are written next to it, as .json")
    return Outputs.of(output, files, [export], [".json"])


def _relative(file: Path, root: Path) -> str:
    return shown(file.relative_to(root).as_posix())
