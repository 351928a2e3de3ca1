"""Writes report.html: the study as one file that opens anywhere, offline."""

from __future__ import annotations

import base64
import shlex
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from multilevel.recipes.evaluation import metric_title
from multilevel.recipes.pictures.fonts import fonts_for, lacking
from multilevel.reports.texts import Texts
from multilevel.runs.folder import RunFolder
from multilevel.study.explanation import explanation
from multilevel.study.figures import Figures
from multilevel.study.money_section import render_money
from multilevel.study.verdict import points, times
from multilevel.study.words import labels_in_words

JAPANESE = "検出率日本語"  # characters of the Japanese texts, to ask for a font


def write_report(result: Mapping[str, Any], folder: Path, language: str = "en") -> list[Path]:
    """Draw the pictures and write report.html.

    Where no installed font has the language's characters, the pictures are in English, and a line says so.

    Args:
        result: the contents of study.json, with sentences in this language.
        folder: the study's folder.
        language: of the report.

    Returns:
        The files written.
    """
    texts = Texts(language)
    figures = Figures(result, folder, texts, picture_texts(texts))
    drawn = figures.draw()
    template = resources.files("multilevel.study").joinpath("report.html").read_text(encoding="utf-8")
    arms, seconds = result["arms"], result["study"]["seconds_per_step"] or {}
    page = (
        _environment(texts)
        .from_string(template)
        .render(
            **result,
            t=texts,
            split=texts.named("split", result["question"]["split"]),
            explanation=explanation(result, texts),
            money_section=render_money(result, texts),
            figures=drawn,
            galleries=figures.galleries(),
            command=shlex.join(["multilevel", "study", *result["study"]["arguments"]]),
            warnings={part["name"]: part["warnings"] for part in result["parts"] if part["warnings"]},
            others=[comparison for comparison in result["comparisons"] if comparison != result["verdict"]],
            seconds_per_step=texts("separator").join(f"{name} {value:.4g}" for name, value in seconds.items()),
            updates=texts("separator").join(f"{arm['name']} {arm['pretraining_updates']:,}" for arm in arms),
            packages=texts("separator").join(f"{name} {number}" for name, number in result["versions"].items()),
        )
    )
    return [*(figure.path for figure in drawn), RunFolder(folder).write("report.html", page)]


def picture_texts(texts: Texts) -> Texts:
    """The texts for pictures: in this language if an installed font has its characters, else in English."""
    if texts.language == "en":
        return texts
    if fonts_for(lacking(JAPANESE))[1]:
        print(
            "the words in the pictures are English: no installed font has Japanese characters; install one, such as "
            "Noto Sans CJK JP",
            file=sys.stderr,
        )
        return Texts("en")
    return texts


def _environment(texts: Texts) -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "points": points,
        "interval": lambda interval: _interval(interval, texts),
        "embedded": _embedded,
        "duration": lambda seconds: _duration(seconds, texts),
        "times": times,
        "metric_title": metric_title,
        "labels": lambda amount: labels_in_words(amount, texts),
    }
    return environment


def _interval(interval: tuple[float, float] | None, texts: Texts) -> str:
    if interval is None:
        return texts("study_none")
    return texts("interval", low=points(interval[0]), high=points(interval[1]))


def _duration(seconds: float, texts: Texts) -> str:
    if seconds < 120:
        return texts("study_seconds", value=f"{seconds:.1f}")
    if seconds < 7200:
        return texts("study_minutes", value=f"{seconds / 60:.1f}")
    return texts("study_hours", value=f"{seconds / 3600:.1f}")


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
