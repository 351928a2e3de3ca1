"""The typed settings of a data set: one dataclass, which is also the schema of the Hydra group ``data``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from multilevel.recipes.data.pictures import FITS
from multilevel.recipes.data.raster import MAX_PIXELS
from multilevel.solvers.ranges import AtLeast, Below, Count, NonNegative, OneOf, PositiveShare, Text, check

Share = Annotated[float, AtLeast(0), Below(1)]
KEEP = "keep"
MASK_SHARE = 0.2  # for mask learning, if no other share is set


class Correlation:
    """A correlation, or ``keep``."""

    def holds(self, value: Any) -> bool:
        return value == KEEP or (isinstance(value, float) and 0 < value < 1)

    def __str__(self) -> str:
        return f"above 0 and below 1, or {KEEP}"


class IncreasingPair:
    """Two finite numbers, the first below the second, or ``None``."""

    def holds(self, value: Any) -> bool:
        if value is None:
            return True
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
            return False
        numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in value)
        return numbers and value[0] < value[1]

    def __str__(self) -> str:
        return "two numbers, the smaller first, such as [0,4095], or null"


@dataclass(kw_only=True)
class DataSettings:
    """The images of a run, their size, and their splits.

    A data set comes from ``path`` if given, otherwise from ``hub``; ``name="digits"`` needs neither.

    Args:
        name: the name of the data set; ``digits`` comes with scikit-learn.
        path: a folder of ``train*.parquet`` files (or one such file), or a folder of images.
        hub: the data set's name on the Hugging Face Hub.
        unlabelled: a folder of further images without labels, for pretraining, in subfolders or not.
        image_size: height and width of every image after resizing, in pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: how an image becomes a square: crop (its centre) or stretch (the whole image, distorted).
        tiles: cut every picture into tiles, each resized to ``image_size``, for small defects in large pictures: with
            ``fit=crop`` square tiles, N along the shorter side and as many along the longer side as cover it; with
            ``fit=stretch`` N along each side. Neighbours overlap by a quarter of a tile or more, and every pixel is in
            a tile. The tile that is least likely to be good gives a picture its label and score. ``None``: no tiles.
        good: the class of pictures without a defect, for ``tiles``; ``None`` finds a usual name, such as good, OK or
            良品.
        patch_size: a suitable patch size for the images; only the model's configuration reads it.
        batch_size: images in a batch.
        mask_share: share of the labelled training images that mask learning gets; finetuning gets the rest. ``None``: a
            fifth, or nothing for a recipe without mask learning.
        test_share: share of the labelled images kept for testing, if the data set has no test split.
        validation_share: share of the labelled training images held out for choosing settings.
        split_seed: the seed of all random splits.
        group: images of one part, lot or date, which stay in one part of the division: a regular expression for file
            names (its first group, or the whole match), ``folder`` (the subfolder of a class) or a table's column.
        near_copies: correlation of two images, grey and at 32 x 32 pixels, above which they stay in one part of the
            division; ``keep`` compares none.
        division: ``data.json`` of a run, whose division, classes and pixel statistics to use for the same images; the
            shares, ``limit`` and ``split_seed`` are then not used.
        changed: what to do if the images have changed since ``division`` was written: refuse, or accept (removed images
            are left out, new ones not used, changed ones used as they are).
        limit: largest number of training images, with every class in proportion; ``None`` uses all.
        image_column: the column of a table with the images; ``None`` finds it.
        label_column: the column of a table, or of ``metadata.csv``, with the labels; ``None`` finds it by its type or a
            usual name, such as label.
        mask_column: the column of a table with mask images, for tasks that learn from them; ``None`` finds it.
        boxes_column: the column of a table with boxes, for tasks that learn from them; ``None`` finds it.
        mask_classes: meaning of a mask: ``binary`` (a defect above half of white), ``labels`` (the class of its image)
            or ``values`` (class numbers, 0 for the background, 255 for pixels to ignore).
        min_area: marks with fewer pixels in a mask get no box.
        train_split: the name of the training split, on the hub and in the names of parquet files.
        test_split: the name of the test split; ``None`` looks for ``test``, ``validation`` and other names.
        pixel_range: the values that are black and white in images of more than 8 bits, as ``[0, 4095]``; ``None``
            chooses them for the whole set, by its least and largest value.
        max_pixels: the largest number of pixels of an image file; decoding takes up to 16 bytes for each. Line-scan
            cameras may need more.
        flip: mirror training images at random.
        crop_scale: smallest share of an image's area that a random crop keeps; 1.0 crops nothing.
        memory_gib: largest size of the decoded images to keep in memory, in GiB; larger data sets are decoded on
            demand.

    Raises:
        SettingError: an unusable value, by its name (``data.mask_share``).
    """

    name: Text
    path: Text | None = None
    hub: Text | None = None
    unlabelled: Text | None = None
    image_size: Count
    channels: Annotated[int, OneOf(1, 3)]
    fit: Annotated[str, OneOf(*FITS)] = "crop"
    tiles: Count | None = None
    good: Text | None = None
    patch_size: Count
    batch_size: Count
    mask_share: Share | None = None
    test_share: Share = 0.2
    validation_share: Share = 0.0
    split_seed: Annotated[int, AtLeast(0)] = 0
    group: Text | None = None
    near_copies: Annotated[Any, Correlation()] = 0.95
    division: Text | None = None
    changed: Annotated[str, OneOf("refuse", "accept")] = "refuse"
    limit: Count | None = None
    image_column: Text | None = None
    label_column: Text | None = None
    mask_column: Text | None = None
    boxes_column: Text | None = None
    mask_classes: Annotated[str, OneOf("binary", "labels", "values")] = "binary"
    min_area: Count = 10
    train_split: Text = "train"
    test_split: Text | None = None
    pixel_range: Annotated[Any, IncreasingPair()] = None
    max_pixels: Count = MAX_PIXELS
    flip: bool = False
    crop_scale: PositiveShare = 1.0
    memory_gib: NonNegative = 4.0

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; ``load_data`` calls this again, since fields can be changed after construction.

        Raises:
            SettingError: the first unusable value.
        """
        check(self, "data.")
