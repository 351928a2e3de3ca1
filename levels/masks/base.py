"""What a mask policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class MaskPolicy(ABC):
    """Orders the patches of each image; those with the largest scores are hidden.

    Attributes:
        guided: whether the scores depend on the masking network.
    """

    guided: ClassVar[bool] = True

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Scores [B, L] from the masking network's logits [B, L] (zeros where the policy is not guided)."""
