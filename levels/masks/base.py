"""The interface of mask policies, and the view of the images that they see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from math import isqrt
from typing import Any, ClassVar, Literal

from torch import Tensor


class MaskView:
    """A batch as a mask policy sees it; the masking network and the encoder run only on demand.

    Args:
        images: [B, C, H, W], normalized.
        patches: L, in a square.
        hidden: number of patches to hide in each image.
        logits: computes the masking network's logits [B, L].
        attention: computes the attention [B, L] of the encoder's class token to each patch.
        maskable: bool [B, L], the patches that can be hidden; None: all.

    Examples:
        Four patches in a square, two of which will be hidden. The examples of the policies use this view.

        >>> logits = torch.tensor([[9.0, -9.0, 8.0, -8.0]])
        >>> attention = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        >>> view = MaskView(torch.zeros(1, 1, 4, 4), 4, 2, lambda: logits, lambda: attention)
        >>> view.side, view.hidden
        (2, 2)
    """

    def __init__(
        self,
        images: Tensor,
        patches: int,
        hidden: int,
        logits: Callable[[], Tensor],
        attention: Callable[[], Tensor],
        maskable: Tensor | None = None,
    ) -> None:
        self.images = images
        self.patches = patches
        self.hidden = hidden
        self.maskable = maskable
        self._logits = logits
        self._attention = attention

    @classmethod
    def of(cls, levels: Any, images: Tensor, pretrain: str = "pretrain", mask: str = "mask") -> MaskView:
        """Create the view of images [B, C, H, W]; the encoder's attention has no gradient.

        Args:
            levels: object with the autoencoder (or a handle on it) and the masking network as attributes.
            images: normalized images.
            pretrain: name of the autoencoder's level.
            mask: name of the masking network's.
        """
        encoder = getattr(levels, pretrain)
        return cls(
            images,
            encoder.patches,
            encoder.hidden_patches,
            lambda: getattr(levels, mask)(images),
            lambda: encoder.class_attention(images).detach(),
            encoder.maskable(images) if hasattr(encoder, "maskable") else None,
        )

    @property
    def side(self) -> int:
        """The number of patches per row and per column."""
        return isqrt(self.patches)

    @cached_property
    def logits(self) -> Tensor:
        """The masking network's logit for hiding each patch: [B, L]."""
        return self._logits()

    @cached_property
    def attention(self) -> Tensor:
        """Attention of the class token in the encoder's last layer to all patches, averaged over heads: [B, L]."""
        return self._attention()


LearnsFrom = Literal["downstream", "reconstruction"] | None


class MaskPolicy(ABC):
    """Orders the patches of each image; those with the largest scores are hidden.

    A policy's options are the keyword arguments of its constructor. Random numbers come from torch's generators.

    Attributes:
        learns_from: source of the masking network's gradient: ``downstream`` (the loss of the downstream task falls),
            ``reconstruction`` (the reconstruction loss rises), or None without a masking network.

    Examples:
        A policy that hides the first patches of the view in ``MaskView``'s example:

        >>> class First(MaskPolicy):
        ...     def scores(self, view):
        ...         return -torch.arange(view.patches).expand(len(view.images), -1)
        >>> First().scores(view).topk(view.hidden).indices
        tensor([[0, 1]])
    """

    learns_from: ClassVar[LearnsFrom] = "downstream"

    @abstractmethod
    def scores(self, view: MaskView) -> Tensor:
        """Scores [B, L], called without gradients."""

    def log_probability(self, view: MaskView, scores: Tensor, hidden: Tensor) -> Tensor:
        """Log-probability [B] of a draw, up to a constant, with gradients in ``view.logits``: for mask.gradient=choice.

        A policy defines it if it draws masks at random and the network's logits determine their distribution.

        Args:
            view: the images.
            scores: [B, L], as drawn.
            hidden: bool [B, L], the patches that were hidden.
        """
        raise NotImplementedError

    @classmethod
    def has_differentiable_choice(cls) -> bool:
        """Whether the downstream task can teach the masking network by ``log_probability``."""
        return cls.learns_from == "downstream" and cls.log_probability is not MaskPolicy.log_probability
