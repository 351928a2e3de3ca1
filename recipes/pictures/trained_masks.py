"""The masks of a recipe that pretrains a masked autoencoder: their probabilities, what they hide, and their picture."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from multilevel.levels.masks import MaskPolicy, MaskView
from multilevel.levels.masks.statistics import hiding_probabilities, mask_predictability
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.data import ImageData, Split
from multilevel.recipes.pictures.masks import draw_masks, reconstruct_pixels

PICTURED = 6  # images, which fit a screen
MEASURED = 16  # images
LINE = 24  # characters of a label's line


@dataclass(frozen=True)
class TrainedMasks:
    """The masks of a policy with trained levels.

    Args:
        policy: chooses the hidden patches.
        modules: by level: ``pretrain``, the autoencoder, and ``mask``, the masking network.
        data: the images.
        device: where the modules are.
        seed: of the draws.
    """

    policy: MaskPolicy
    modules: Mapping[str, Any]
    data: ImageData
    device: torch.device
    seed: int

    @property
    def part(self) -> Split:
        """The images to show: those held out from pretraining if masks are learned, never those of the test split."""
        learns = self.policy.learns_from is not None
        return self.data.mask if learns and len(self.data.mask) else self.data.pretrain

    @property
    def positions(self) -> Tensor:
        """The images of the part to measure, int64 [B]: evenly spaced, since a part may be sorted by class."""
        return _spaced(len(self.part), MEASURED)

    def probabilities(self) -> Tensor:
        """The probability [B, L] that each patch of the images at ``positions`` is hidden by the policy, whatever the
        share of images that it masks; see ``hiding_probabilities``."""
        view = self._view(self.part, self.positions)
        with torch.no_grad(), RandomState.seeded(self.seed).active():
            return hiding_probabilities(self.policy, view)

    def predictability(self) -> float:
        """See ``mask_predictability``."""
        return mask_predictability(self.probabilities())

    def draw(self, path: Path, patch_size: int, guidance: float = 1.0) -> None:
        """Draw masks of some of the images, with patches of this size in pixels; ``guidance`` is the share of images
        with masks from the policy."""
        part, probabilities = self.part, self.probabilities()
        shown = _spaced(len(probabilities), PICTURED)
        positions = self.positions[shown]
        view = self._view(part, positions)
        with torch.no_grad(), RandomState.seeded(self.seed).active():
            scores = self.policy.scores(view)
        model, data = self.modules["pretrain"], self.data
        hidden, reconstruction = reconstruct_pixels(model, view.images, scores, data.mean, data.std)
        draw_masks(
            path,
            part.pixels(positions) / 255,
            probabilities[shown],
            hidden,
            reconstruction,
            patch_size,
            labels=[image_label(part, position, data.class_names) for position in positions.tolist()],
            title=_title(mask_predictability(probabilities), guidance),
        )

    def signal(self, batch_size: int) -> dict[str, float]:
        """``signal_auc``, if the patches that show the class are known: how well the masks separate them, as the ROC
        AUC of each patch's mean score. The score is the masking network's probability or, without one, the policy's
        score.

        Above 0.5 these patches are hidden more often than others, below 0.5 less often. ``signal_gap`` is their mean
        score minus that of the others, which distinguishes a meaningful ranking from near ties.
        """
        signal, learns = self.data.signal_patches, self.policy.learns_from is not None
        if signal is None or len(signal) != self.modules["pretrain"].patches:
            return {}
        part, scores = self.data.mask if len(self.data.mask) else self.data.pretrain, []
        with torch.no_grad(), RandomState.seeded(self.seed).active():
            for batch in torch.arange(len(part)).split(batch_size):
                view = self._view(part, batch)
                scores.append((view.logits.sigmoid() if learns else self.policy.scores(view)).cpu())
        mean = torch.cat(scores).double().mean(0)
        gap = mean[signal].mean() - mean[~signal].mean()
        return {"signal_auc": float(roc_auc_score(signal, mean)), "signal_gap": float(gap)}

    def _view(self, part: Split, positions: Tensor) -> MaskView:
        images = self.data.normalize(part.pixels(positions).to(self.device))
        return MaskView.of(SimpleNamespace(**self.modules), images)


def _spaced(count: int, most: int) -> Tensor:
    """Evenly spaced positions among ``count``, at most ``most``, with both ends."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _title(predictability: float, guidance: float) -> str:
    number = f"{max(predictability, 0.0):.2f}"
    title = f"How predictable the masks are: {number} (0: random masks; 1: one fixed mask for each image)"
    if guidance == 1:
        return title
    return (
        f"{title}\nOnly masks of the policy; training gives random masks to a share of {1 - guidance:.3g} of the images"
    )


def image_label(part: Split, position: int, class_names: tuple[str, ...]) -> str:
    """Name an image of a part by its file, without the folder, or its row, and by its class if it has one."""
    described = part.images.source.describe_row(int(part.indices[position]))
    row, path = re.fullmatch(r"(row \d+ of )?(.*)", described, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    lines, label = [_wrapped(row + PurePath(path).name)], int(part.labels[position])
    if 0 <= label < len(class_names):
        lines.append(_wrapped(f"class {class_names[label]}"))
    return "\n".join(lines)


def _wrapped(name: str) -> str:
    """A name in at most two lines, without its middle if it is longer.

    Examples:
        >>> print(_wrapped("camera-2_2024-05-17T13-45-02.png"))
        camera-2_2024-05-17T13-
        45-02.png
    """
    name = unicodedata.normalize("NFC", name)  # some systems write accents and voiced kana as two characters
    lines = textwrap.wrap(name, LINE) or [""]
    return "\n".join(lines if len(lines) <= 2 else [lines[0], f"…{name[1 - LINE :]}"])
