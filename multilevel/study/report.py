"""Writes report.html: the study as one file that opens anywhere, offline."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.evaluation.labels import labels_phrase
from multilevel.reports.texts import Texts
from multilevel.runs.folder import RunFolder
from multilevel.study.figures import Figures
from multilevel.study.money_section import render_money
from multilevel.study.results import TITLES
from multilevel.study.verdict import points, times

#: Explanations of the protocols for readers who do not know them.
PROTOCOLS = {
    "linear_probe": "a linear classifier on the features of the frozen trained encoder",
    "knn": "a vote of the training images with the most similar features",
    "finetune": "a classifier on the trained encoder, with both trained further",
}


def write_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the pictures and write report.html.

    Args:
        result: the contents of study.json.
        folder: the study's folder.

    Returns:
        The files written.
    """
    figures = Figures(result, folder)
    drawn = figures.draw()
    template = resources.files("multilevel.study").joinpath("report.html").read_text()
    page = (
        _environment()
        .from_string(template)
        .render(
            **result,
            money_section=render_money(result, Texts("en")),
            figures=drawn,
            galleries=figures.galleries(),
            command=shlex.join(["multilevel", "study", *result["study"]["arguments"]]),
            warnings={part["name"]: part["warnings"] for part in result["parts"] if part["warnings"]},
            protocol=PROTOCOLS.get(result["study"]["protocol"]),
            others=[comparison for comparison in result["comparisons"] if comparison is not result["verdict"]],
        )
    )
    return [*(figure.path for figure in drawn), RunFolder(folder).write("report.html", page)]


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "points": points,
        "interval": _interval,
        "embedded": _embedded,
        "protocol_title": lambda name: TITLES.get(name, name),
        "duration": _duration,
        "times": times,
        "metric_title": metric_title,
        "labels_phrase": labels_phrase,
    }
    return environment


def _interval(interval: tuple[float, float] | None) -> str:
    return "none" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
