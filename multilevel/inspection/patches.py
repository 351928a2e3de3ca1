"""Divides a logit exactly among the patches of an image.

The exported head is linear in the mean of the patch tokens, so the logit of a defect class minus that of the good class
is the mean over patches of (w_defect - w_good) . token, plus a bias. Each patch's term is its share; nothing is
approximated. It is not attention: a token also carries what attention has moved into it from other patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Dinov2Config

from multilevel.recipes.export.folder import WEIGHTS
from multilevel.recipes.export.weights import load_dinov2
from multilevel.solvers.files import parse_json


@dataclass(frozen=True)
class Shares:
    """The shares of the patches of B images in a difference of logits.

    Attributes:
        values: float32 [B, rows, columns]; they sum to the difference. What does not depend on a patch (the bias and,
            if the head reads it, the class token) is spread evenly.
        differences: logit of the defect class minus that of the good class, float32 [B].
        classes: the defect class of each image: its most probable one.
    """

    values: np.ndarray
    differences: np.ndarray
    classes: np.ndarray


class PatchShares:
    """Computes the shares of patches with an exported classifier.

    Args:
        folder: an export in the format of transformers, see ``available``.
        good: index of the good class.
        device: device that PyTorch computes on.
    """

    def __init__(self, folder: Path, good: int, device: torch.device) -> None:
        config = Dinov2Config.from_dict(parse_json((folder / "config.json").read_text()))
        self._network = load_dinov2(config, load_file(folder / WEIGHTS)).to(device).model
        self._good, self._device = good, device

    @staticmethod
    def available(folder: Path) -> bool:
        """Whether an export gives tokens; an ONNX model gives only logits and features."""
        return (folder / WEIGHTS).is_file()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Shares:
        """The shares in normalized images, float32 [B, C, H, W]."""
        tokens = self._network.dinov2(torch.from_numpy(images).to(self._device)).last_hidden_state
        weight, bias = self._network.classifier.weight, self._network.classifier.bias
        width = tokens.shape[-1]
        logits = tokens[:, 0] @ weight[:, :width].T + tokens[:, 1:].mean(1) @ weight[:, width:].T + bias
        without_good = logits.clone()
        without_good[:, self._good] = -torch.inf
        classes = without_good.argmax(1)
        direction = weight[classes] - weight[self._good]  # [B, 2 width]: of the class token, then of the patches
        constant = (direction[:, :width] * tokens[:, 0]).sum(1) + bias[classes] - bias[self._good]
        terms = torch.einsum("bpw,bw->bp", tokens[:, 1:], direction[:, width:]) + constant[:, None]
        differences = logits.gather(1, classes[:, None])[:, 0] - logits[:, self._good]
        return Shares(_square(terms / terms.shape[1]), differences.cpu().numpy(), classes.cpu().numpy())


def _square(shares: Tensor) -> np.ndarray:
    """[B, patches] as [B, rows, columns]; images are squares."""
    side = int(shares.shape[1] ** 0.5)
    return shares.reshape(len(shares), side, side).cpu().numpy()
