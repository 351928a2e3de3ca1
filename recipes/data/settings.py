"""The typed settings of a data set: one dataclass, which is also the schema of the Hydra group ``data``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from multilevel.recipes.data.pictures import FITS
from multilevel.solvers.ranges import AtLeast, Below, Count, NonNegative, OneOf, PositiveShare, Text, check

Share = Annotated[float, AtLeast(0), Below(1)]


@dataclass(kw_only=True)
class DataSettings:
    """Which images a run uses, how large they are, and how they are divided.

    A set comes from ``path`` where that is given, otherwise from ``hub``; ``name="digits"`` needs neither.

    Args:
        name: the name of the set; ``digits`` is the one that comes with scikit-learn.
        path: a folder of ``train*.parquet`` files (or one such file), or a folder of images.
        hub: the set's name on the Hugging Face hub.
        image_size: height and width that every image is brought to, in pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: how an image becomes a square: crop (its centre) or stretch (all of it, with other proportions).
        patch_size: a patch that suits images of this size; only the model's configuration reads it.
        batch_size: images in a batch.
        mask_share: share of the labelled training images that mask learning gets; finetuning gets the rest.
        test_share: share of the labelled images kept for testing, where the set comes without a test split.
        validation_share: share of the labelled training images that is kept out of training, for choosing settings.
        split_seed: the seed of every random division of the set.
        limit: use only that many training images, every class in proportion; ``None`` uses all.
        image_column: the column of a table that holds the images; ``None`` finds it.
        label_column: the column of a table that holds the labels; ``None`` finds it.
        mask_column: the column of a table that holds mask images, for tasks that learn from them; ``None`` finds it.
        boxes_column: the column of a table that holds boxes, for tasks that learn from them; ``None`` finds it.
        mask_classes: meaning of a mask: ``binary`` (a defect above half of white), ``labels`` (the class of its image
            there) or ``values`` (class numbers, 0 the background, 255 where a pixel does not count).
        min_area: marks in a mask with fewer pixels get no box.
        train_split: the name of the training split, on the hub and in the names of parquet files.
        test_split: the name of the test split; ``None`` looks for ``test``, then ``validation``.
        flip: mirror training images at random.
        crop_scale: smallest share of an image's area that a random crop keeps; 1.0 crops nothing.
        memory_gib: a decoded set up to this size is kept in memory, a larger one is decoded on demand.

    Raises:
        SettingError: a value that cannot work, by its name (``data.mask_share``).
    """

    name: Text
    path: Text | None = None
    hub: Text | None = None
    image_size: Count
    channels: Annotated[int, OneOf(1, 3)]
    fit: Annotated[str, OneOf(*FITS)] = "crop"
    patch_size: Count
    batch_size: Count
    mask_share: Share = 0.2
    test_share: Share = 0.2
    validation_share: Share = 0.0
    split_seed: Annotated[int, AtLeast(0)] = 0
    limit: Count | None = None
    image_column: Text | None = None
    label_column: Text | None = None
    mask_column: Text | None = None
    boxes_column: Text | None = None
    mask_classes: Annotated[str, OneOf("binary", "labels", "values")] = "binary"
    min_area: Count = 10
    train_split: Text = "train"
    test_split: Text | None = None
    flip: bool = False
    crop_scale: PositiveShare = 1.0
    memory_gib: NonNegative = 4.0

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; ``load_data`` calls this again, since fields can be changed after construction.

        Raises:
            SettingError: the first value that cannot work.
        """
        check(self, "data.")
