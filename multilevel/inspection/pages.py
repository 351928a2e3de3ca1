"""Makes the report's pages of pictures: missed defects, false alarms, or the most suspicious images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from multilevel.inspection.findings import CLASSIFIER, DISTANCE, Findings, Inspected
from multilevel.inspection.patches import PatchShares
from multilevel.inspection.pictures import heat_map, read_pixels, thumbnail
from multilevel.inspection.settings import InspectSettings
from multilevel.recipes.export import ExportedModel
from multilevel.reports.texts import Texts


@dataclass(frozen=True)
class Card:
    """A picture of a page.

    Attributes:
        name: file name relative to the folder.
        lines: of the caption.
        picture: a data URI.
        shares: a data URI of the shares of patches; None without them.
    """

    name: str
    lines: list[str]
    picture: str
    shares: str | None


@dataclass(frozen=True)
class Page:
    """A page of pictures, with its heading and caption."""

    heading: str
    caption: str
    cards: list[Card]


class PageMaker:
    """Makes pages of pictures.

    Args:
        model: the exported model.
        export: its folder.
        images: the inspected images.
        findings: the numbers.
        files: the files of the images.
        settings: ``worst`` and ``batch_size`` are read.
        texts: of the language.
        device: device that PyTorch computes on.

    Attributes:
        without_shares: why there are no shares of patches: ``onnx`` or ``classifier``; None if there are.
    """

    def __init__(
        self,
        model: ExportedModel,
        export: Path,
        images: Inspected,
        findings: Findings,
        files: Sequence[Path],
        settings: InspectSettings,
        texts: Texts,
        device: torch.device,
    ) -> None:
        self._model, self._images, self._findings, self._files = model, images, findings, files
        self._settings, self._texts = settings, texts
        self._shares = None
        self.without_shares: str | None = "classifier"
        if findings.good is not None and CLASSIFIER in findings.values:
            self.without_shares = None if PatchShares.available(export) else "onnx"
        if self.without_shares is None and findings.good is not None:
            self._shares = PatchShares(export, images.classes.index(findings.good.name), device)

    def pages(self) -> list[Page]:
        """Missed defects and false alarms; for images without labels, the most suspicious ones."""
        if not self._findings.labelled:
            return [self._suspicious()]
        decision, good = self._findings.decision, self._findings.good
        assert decision is not None
        assert good is not None
        scores = self._findings.values[self._findings.score]
        defect, stopped = (
            np.array([name != good.name for name in self._images.truth]),
            scores >= decision.threshold.value,
        )
        pages = []
        if defect.any():
            missed = np.flatnonzero(defect & ~stopped)
            pages.append(self._page("missed", missed[np.argsort(scores[missed], kind="stable")]))
        else:
            pages.append(self._suspicious())
        if not defect.all():
            false = np.flatnonzero(~defect & stopped)
            pages.append(self._page("false", false[np.argsort(-scores[false], kind="stable")]))
        return pages

    def _suspicious(self) -> Page:
        """The images farthest from the training images; without distances, those with the highest scores."""
        values = self._findings.values.get(DISTANCE, self._findings.values[self._findings.score])
        return self._page("suspicious", np.argsort(-values, kind="stable"))

    def _page(self, kind: str, rows: np.ndarray) -> Page:
        """The first ``worst`` of the images ``rows``."""
        shown = rows[: self._settings.worst].tolist()
        texts = self._texts
        caption = texts(f"{kind}_caption", shown=len(shown), count=len(rows)) if len(rows) else texts(f"no_{kind}")
        cards = []
        for start in range(0, len(shown), self._settings.batch_size):
            cards += self._cards(shown[start : start + self._settings.batch_size])
        return Page(texts(f"{kind}_heading"), caption, cards)

    def _cards(self, rows: list[int]) -> list[Card]:
        model, texts = self._model, self._texts
        pixels = [read_pixels(self._files[row], model) for row in rows]
        maps: list[str | None] = [None] * len(rows)
        lines = [self._lines(row) for row in rows]
        if self._shares is not None:
            shares = self._shares(model.normalized(np.stack(pixels)))
            maps = [heat_map(*pair) for pair in zip(pixels, shares.values, strict=True)]
            for line, label, difference in zip(lines, shares.classes, shares.differences, strict=True):
                defect, good = model.class_names[label], self._findings.good
                assert good is not None
                line.append(texts("shares_of", defect=defect, good=good.name, difference=f"{difference:+.2f}"))
        return [
            Card(self._images.names[row], line, thumbnail(self._files[row], model), shares)
            for row, line, shares in zip(rows, lines, maps, strict=True)
        ]

    def _lines(self, row: int) -> list[str]:
        """The caption of an image: its class and scores."""
        name, texts = self._images.truth[row], self._texts
        numbers = [
            texts(f"{score}_of", value=texts.score(float(values[row])))
            for score, values in self._findings.values.items()
        ]
        return [*([] if name is None else [texts("class_of", name=name)]), texts("separator").join(numbers)]
