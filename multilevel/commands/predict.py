"""multilevel predict EXPORT FILE ... [SETTING=VALUE ...]: label images with an exported model, as CSV

Labels images (files or folders) with an exported model of either format; needs neither the run nor its data. Writes
CSV: file, label, probability, error, the probability of each class, and the model (a hash of its weights, class names
and preprocessing). A file that cannot be read as an image has an empty label and the reason under error.

csv=excel writes a file that Excel opens by a double click, with names in any script: UTF-8 with a byte order mark,
separated by commas as in the Japanese and English settings of Windows (elsewhere: Data, From Text/CSV). A text that
Excel would take for a formula begins with an apostrophe.

Exit status: 0; 1 if a file could not be read (the others are labelled); 2 for wrong input (nothing is written).

  multilevel predict runs/guided_mae-digits-20260101-120000/export images/ output=-
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from multilevel.commands.image_files import ImageFileSettings, Request, Results, writable
from multilevel.recipes.export.exported import probabilities
from multilevel.runs.folder import write_whole
from multilevel.solvers import MultilevelError
from multilevel.solvers.ranges import OneOf

NAMED = 5  # unreadable files named on the screen
BYTE_ORDER_MARK = "\ufeff"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that Excel computes


@dataclass
class PredictSettings(ImageFileSettings):
    """Settings of ``multilevel predict``.

    Args:
        output: the file to write; - prints to standard output.
        csv: plain (UTF-8) or excel (UTF-8 with a byte order mark).
    """

    output: str = "predictions.csv"
    csv: Annotated[str, OneOf("plain", "excel")] = "plain"


SETTINGS = PredictSettings


def main(arguments: Sequence[str]) -> int:
    """Label images and write CSV; returns 1 if some could not be read, which then have no label."""
    request = Request.parse("predict", arguments, PredictSettings)
    if not request.model.class_names:
        raise MultilevelError(f"{request.folder} holds an encoder without a classifier: it cannot label images")
    path = None if request.output == "-" else writable(request.output, request.files)
    results = request.run()
    text, counts = table(request, results, for_excel=request.settings.csv == "excel")
    if path is None:
        print(text, end="")
    else:
        write_whole(path, text)
    summary = ", ".join(f"{label} {count}" for label, count in counts.most_common())
    print(f"{len(results.files)} images labelled: {summary or 'none'}", file=sys.stderr)
    if path is not None:
        print(path)
    report_unreadable(results)
    return 1 if results.errors else 0


def table(request: Request, results: Results, for_excel: bool = False) -> tuple[str, Counter[str]]:
    """The CSV, one row per file in the given order, and the count of each label."""
    model = request.model
    names, cell = model.class_names, excel_cell if for_excel else str
    rows = {} if results.logits is None else dict(zip(results.files, probabilities(results.logits), strict=True))
    counts: Counter[str] = Counter()
    text = io.StringIO()
    text.write(BYTE_ORDER_MARK if for_excel else "")
    writer = csv.writer(text, lineterminator="\r\n" if for_excel else "\n")
    writer.writerow(["file", "label", "probability", "error", *map(cell, names), "model"])
    for file in request.files:
        if file in results.errors:
            error = cell(results.errors[file])
            writer.writerow([cell(str(file)), "", "", error, *[""] * len(names), model.identity])
            continue
        row = rows[file]
        label = names[int(row.argmax())]
        counts[label] += 1
        written = [f"{probability:.6f}" for probability in row]
        writer.writerow([cell(str(file)), cell(label), f"{row.max():.6f}", "", *written, model.identity])
    return text.getvalue(), counts


def excel_cell(text: str) -> str:
    """Text with an apostrophe in front if Excel would take it for a formula.

    >>> [excel_cell(text) for text in ("=1+1", "傷.png")]
    ["'=1+1", '傷.png']
    """
    return f"'{text}" if text.startswith(FORMULA) else text


def report_unreadable(results: Results) -> None:
    """Print one line for each file that could not be read."""
    for file, error in list(results.errors.items())[:NAMED]:
        print(f"multilevel: {file}: {error}", file=sys.stderr)
    if len(results.errors) > NAMED:
        print(f"multilevel: and {len(results.errors) - NAMED} more", file=sys.stderr)
