"""Writes the inspection report: one HTML file that opens offline, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from multilevel.inspection import curves
from multilevel.inspection.findings import Findings, Inspected
from multilevel.inspection.pages import Page
from multilevel.inspection.settings import InspectSettings
from multilevel.inspection.verdict import explanation, money_verdict, notes, tone, verdict
from multilevel.reports.formulas import cost_formulas
from multilevel.reports.plain import plain
from multilevel.reports.texts import Texts


@dataclass(frozen=True)
class Names:
    """Names that a report uses; none has a path of this machine."""

    export: str
    folder: str
    json: str
    settings: Sequence[str]


def report(
    findings: Findings,
    images: Inspected,
    pages: Sequence[Page],
    without_shares: str | None,
    names: Names,
    settings: InspectSettings,
) -> tuple[str, str]:
    """The report as HTML, and its numbers as JSON.

    Args:
        findings: the numbers.
        images: the inspected images.
        pages: the pages of pictures.
        without_shares: ``onnx`` or ``classifier`` if that is why there are no shares of patches.
        names: of export, folder and settings.
        settings: of the command.
    """
    texts, money = Texts(settings.language), findings.money
    template = resources.files("multilevel.inspection").joinpath("report.html").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            t=texts,
            curves=curves,
            findings=findings,
            verdict=verdict(findings, texts),
            tone=tone(findings),
            notes=notes(findings, texts),
            explanation=explanation(findings, _images(findings, names, texts), texts),
            money_verdict=money_verdict,
            images=_images(findings, names, texts),
            drawn=_drawn(findings, images, texts),
            pages=pages,
            without_shares=without_shares,
            names=names,
            settings=settings,
            formulas=[]
            if money is None or money.costs is None
            else cost_formulas(money.way, money.costs, money.defect_rate, settings, texts),
            version=version("multilevel"),
        )
    )
    return page, _numbers(findings, images, names, texts)


def _drawn(findings: Findings, images: Inspected, texts: Texts) -> list[Markup]:
    """The two curves as SVG; none unless defects and good images are there."""
    good = findings.good
    defect = np.array([good is not None and name is not None and name != good.name for name in images.truth])
    if not findings.labelled or not 0 < defect.sum() < len(defect) or findings.decision is None:
        return []
    named = [(texts(f"curve_{name}"), values) for name, values in findings.values.items()]
    recall, alarms = findings.decision.recall, findings.decision.false_alarms
    stopped = recall.count + alarms.count
    share = recall.total / (recall.total + alarms.total)
    assert recall.share is not None
    assert alarms.share is not None
    roc = curves.draw(
        [curves.roc(name, values, defect) for name, values in named],
        (texts("axis_false_alarms"), texts("axis_recall")),
        texts("roc_title"),
        ((0, 0), (1, 1)),
        (alarms.share, recall.share),
    )
    precision = curves.draw(
        [curves.precision_recall(name, values, defect) for name, values in named],
        (texts("axis_recall"), texts("precision")),
        texts("pr_title"),
        ((0, share), (1, share)),
        (recall.share, recall.count / stopped) if stopped else None,
    )
    return [Markup(roc), Markup(precision)]


def _images(findings: Findings, names: Names, texts: Texts) -> str:
    return texts("images_of", count=texts.number(findings.images), folder=names.folder)


def _numbers(findings: Findings, images: Inspected, names: Names, texts: Texts) -> str:
    """The contents of the .json file."""
    numbers = plain(findings)
    scores = numbers.pop("values")
    numbers["files"] = [
        {"file": name, "class": label, **{score: scores[score][row] for score in scores}}
        for row, (name, label) in enumerate(zip(images.names, images.truth, strict=True))
    ]
    head = {"verdict": " ".join(verdict(findings, texts)), "export": names.export, "folder": names.folder}
    return json.dumps({**head, "settings": list(names.settings), **numbers}, indent=2, ensure_ascii=False) + "\n"
