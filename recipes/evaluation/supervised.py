"""The plain supervised classifier, a reference: the run's network trained from scratch on only the labels."""

from __future__ import annotations

from dataclasses import dataclass

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.data import ImageLoader
from multilevel.recipes.evaluation.protocols import Candidate
from multilevel.recipes.evaluation.protocols.base import Share
from multilevel.recipes.evaluation.protocols.finetune import FinetuneProtocol
from multilevel.solvers.ranges import Count, NonNegative, PositiveNumber, PositiveShare

#: Its name among the encoders, and its name among the protocols: it is a classifier of its own, not a set of features.
NAME, COLUMN = "supervised from scratch", "supervised"


@dataclass(kw_only=True)
class SupervisedFromScratch(FinetuneProtocol):
    """Trains an untrained encoder and the task's head end to end by AdamW, with a cosine schedule, on images cropped
    and mirrored at random, all layers at the learning rate that suits the size of the network (model.learning_rate),
    for 128 images in a batch.

    Unlike ``FinetuneProtocol``, without label smoothing, mixup, cutmix and drop path: so few passes from scratch do not
    overcome them (validation images of magnetic tiles, 32,000 passes: balanced accuracy 17.0% with, 25.5% without).

    It is trained for as many passes of images through the encoder as the run's pretraining and finetuning: the sum over
    the updates of these two levels of the images in their batches, data.batch_size each. A pass counts as one whether
    or not patches are hidden, although a masked pass sees only the visible patches and costs less. Batches of the
    masking network, hypergradients and the evaluation are not counted. No choice is made on any image, so it is scored
    once, after the last update.

    Args:
        passes: images to pass through the encoder, at least one batch.
        learning_rate: peak learning rate for 256 images, scaled by the size of a batch / 256.
    """

    title = "whole network"

    passes: Count
    learning_rate: PositiveNumber
    layer_decay: PositiveShare = 1.0
    label_smoothing: Share = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    drop_path: Share = 0.0

    def updates(self, loader: ImageLoader) -> int:
        """The passes divided by the images of a batch, rounded.

        >>> SupervisedFromScratch(passes=6400, learning_rate=1e-3).updates(type("Batches", (), {"batch_size": 128}))
        50
        """
        return max(1, round(self.passes / loader.batch_size))


def supervised_candidate(untrained: MaskedAutoencoder, passes: int, learning_rate: float) -> Candidate:
    """The reference.

    Args:
        untrained: the network, which does not change.
        passes: images to pass through the encoder.
        learning_rate: peak learning rate for 128 images in a batch.
    """
    protocol = SupervisedFromScratch(passes=passes, learning_rate=2 * learning_rate)
    return Candidate(NAME, untrained.features, untrained, (COLUMN, protocol))
