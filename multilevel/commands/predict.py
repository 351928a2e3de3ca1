"""multilevel predict EXPORT FILE ... [SETTING=VALUE ...]: label images with an exported model, as CSV

Labels images (files or folders) with an exported model of either format; needs neither the run nor its data. Writes
CSV: file, label, probability, error, the probability of each class, and the model (a hash of its weights, class names
and preprocessing). A file that cannot be read as an image has an empty label and the reason under error. If the export
stores a threshold, there are two more columns: defect, the probability of any class but the good one, and decision,
stop from the threshold and pass below it.

csv=excel writes a file that Excel opens by a double click, with names in any script: UTF-8 with a byte order mark,
separated by commas as in the Japanese and English settings of Windows (elsewhere: Data, From Text/CSV). A text that
Excel would take for a formula begins with an apostrophe.

Exit status: 0; 1 if a file could not be read (the others are labelled); 2 for wrong input (nothing is written).

  multilevel predict runs/guided_mae-digits-20260101-120000/export images/ output=-
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from multilevel.commands.image_files import ImageFileSettings, Request, Results
from multilevel.commands.outputs import Outputs, csv_line, csv_text
from multilevel.recipes.export import ExportedModel
from multilevel.recipes.export.exported import probabilities
from multilevel.recipes.export.operating_point import NUMBER, OperatingPoint, defect_probability, good_class
from multilevel.solvers import MultilevelError
from multilevel.solvers.files import on_screen, shown
from multilevel.solvers.ranges import AtLeast, OneOf, Text, require

NAMED = 5  # unreadable files named on the screen
BYTE_ORDER_MARK = "\ufeff"


@dataclass
class PredictSettings(ImageFileSettings):
    """Settings of ``multilevel predict``.

    Args:
        output: the file to write; - prints to standard output.
        csv: plain (UTF-8) or excel (UTF-8 with a byte order mark).
        threshold: probability of a defect from which an image is stopped. None: that of the export, if it has one.
        good: the class of good parts. None: that of the export.
    """

    output: str = "predictions.csv"
    csv: Annotated[str, OneOf("plain", "excel")] = "plain"
    threshold: Annotated[float | None, AtLeast(0)] = None
    good: Text | None = None

    def operating_point(self, model: ExportedModel) -> OperatingPoint | None:
        """The operating point that applies; None without one.

        Raises:
            SettingError: ``good`` is not a class, or no class of good parts is known to a threshold, or no threshold to
                the class.
        """
        stored, good = model.operating_point, good_class(model.class_names, self.good)
        if self.good is None and stored is not None:
            good = stored.good
        if self.threshold is not None:
            names = ", ".join(model.class_names)
            require("good", self.good, good is not None, f"the class of good parts, to apply a threshold: {names}")
            return OperatingPoint(str(good), self.threshold, NUMBER, None)
        if self.good is not None:
            fits = stored is not None and stored.good == good
            require("threshold", None, fits, f"a number: the export stores no threshold for good={good}")
        return stored


SETTINGS = PredictSettings


def main(arguments: Sequence[str]) -> int:
    """Label images and write CSV; returns 1 if some could not be read, which then have no label."""
    request = Request.parse("predict", arguments, PredictSettings)
    if not request.model.class_names:
        raise MultilevelError(f"{request.folder} holds an encoder without a classifier: it cannot label images")
    point = request.settings.operating_point(request.model)
    outputs = Outputs.of(request.output, request.files, [request.model.folder])
    results = request.run()
    for_excel = request.settings.csv == "excel"
    text, counts = table(request, results, for_excel, point)
    outputs.write(text.encode("utf-8", "backslashreplace") if for_excel else text)
    summary = ", ".join(f"{label} {count}" for label, count in counts.most_common())
    print(f"{len(results.files)} images labelled: {summary or 'none'}", file=sys.stderr)
    if point is not None:
        print(point.describe(), file=sys.stderr)
    outputs.print_paths()
    report_unreadable(results)
    return 1 if results.errors else 0


def table(
    request: Request, results: Results, for_excel: bool = False, point: OperatingPoint | None = None
) -> tuple[str, Counter[str]]:
    """The CSV, one row per file in the given order, and the count of each label."""
    model = request.model
    names = model.class_names
    rows = {} if results.logits is None else dict(zip(results.files, probabilities(results.logits), strict=True))
    counts: Counter[str] = Counter()
    text = io.StringIO()
    text.write(BYTE_ORDER_MARK if for_excel else "")
    end = "\r\n" if for_excel else "\n"
    decided = [] if point is None else ["defect", "decision"]
    text.write(csv_line(["file", "label", "probability", "error", *map(csv_text, names), *decided, "model"], end))
    for file in request.files:
        if file in results.errors:
            error = csv_text(results.errors[file])
            blank = [""] * len([*names, *decided])
            text.write(csv_line([csv_text(shown(file)), "", "", error, *blank, model.identity], end))
            continue
        row = rows[file]
        label = names[int(row.argmax())]
        counts[label] += 1
        written = [f"{probability:.6f}" for probability in row]
        if point is not None:
            defect = float(defect_probability(row[None], names.index(point.good))[0])
            written += [f"{defect:.6f}", "stop" if defect >= point.threshold else "pass"]
        cells = [csv_text(shown(file)), csv_text(label), f"{row.max():.6f}", "", *written, model.identity]
        text.write(csv_line(cells, end))
    return text.getvalue(), counts


def report_unreadable(results: Results) -> None:
    """Print one line for each file that could not be read."""
    for file, error in list(results.errors.items())[:NAMED]:
        print(f"multilevel: {on_screen(shown(file))}: {on_screen(error)}", file=sys.stderr)
    if len(results.errors) > NAMED:
        print(f"multilevel: and {len(results.errors) - NAMED} more", file=sys.stderr)
