"""The typed settings of a data set: one dataclass, which is also the schema of the Hydra group ``data``."""

from __future__ import annotations

from dataclasses import dataclass

from multilevel.recipes.data.pictures import FITS
from multilevel.solvers.errors import SettingError

MASK_CLASSES = ("binary", "labels", "values")


@dataclass(kw_only=True)
class DataSettings:
    """Which images a run uses, how large they are, and how they are divided.

    A set comes from ``path`` where that is given, otherwise from ``hub``; ``name="digits"`` needs neither.

    Args:
        name: what the set is called; ``digits`` is the set that scikit-learn brings along.
        path: a folder of ``train*.parquet`` files (or one such file), or a folder of images.
        hub: the set's name on the Hugging Face hub.
        image_size: height and width that every image is brought to, in pixels.
        channels: 3 (RGB) or 1 (grey).
        fit: how an image becomes a square: crop (its centre) or stretch (all of it, with other proportions).
        patch_size: a patch that suits images of this size; only the model's configuration reads it.
        batch_size: images in a batch.
        mask_share: share of the labelled training images that mask learning gets; finetuning gets the rest.
        test_share: share of the labelled images kept for testing, where the set has no test split of its own.
        validation_share: share of the labelled training images that nothing is trained on: to choose settings by.
        split_seed: the seed of every random division of the set.
        limit: use only that many training images, every class in proportion; ``None`` uses all.
        image_column: the column of a table that holds the images; ``None`` finds it.
        label_column: the column of a table that holds the labels; ``None`` finds it.
        mask_column: the column of a table that holds mask images, for tasks that learn from them; ``None`` finds it.
        boxes_column: the column of a table that holds boxes, for tasks that learn from them; ``None`` finds it.
        mask_classes: what a mask says: ``binary`` (a defect above half of white), ``labels`` (the class of its image
            there) or ``values`` (class numbers, 0 the background, 255 where a pixel does not count).
        min_area: marks in a mask of fewer pixels get no box.
        train_split: the name of the training split, on the hub and in the names of parquet files.
        test_split: the name of the test split; ``None`` looks for ``test``, then ``validation``.
        flip: mirror training images at random.
        crop_scale: smallest share of an image's area that a random crop keeps; 1.0 crops nothing.
        memory_gib: a decoded set up to this size is kept in memory, a larger one is decoded on demand.

    Raises:
        SettingError: a value that cannot work, by its name (``data.mask_share``).
    """

    name: str
    path: str | None = None
    hub: str | None = None
    image_size: int
    channels: int
    fit: str = "crop"
    patch_size: int
    batch_size: int
    mask_share: float = 0.2
    test_share: float = 0.2
    validation_share: float = 0.0
    split_seed: int = 0
    limit: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    mask_column: str | None = None
    boxes_column: str | None = None
    mask_classes: str = "binary"
    min_area: int = 10
    train_split: str = "train"
    test_split: str | None = None
    flip: bool = False
    crop_scale: float = 1.0
    memory_gib: float = 4.0

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every value; ``load_data`` calls this again, since fields can be changed after construction.

        Raises:
            SettingError: the first value that cannot work.
        """
        for setting in ("name", "train_split"):
            self._require(setting, self._is_text(setting), "a name")
        for setting in ("path", "hub", "image_column", "label_column", "mask_column", "boxes_column", "test_split"):
            usable = getattr(self, setting) is None or self._is_text(setting)
            self._require(setting, usable, "some text, or null")
        usable = self.mask_classes in MASK_CLASSES
        self._require("mask_classes", usable, f"one of {', '.join(MASK_CLASSES)}")
        for setting in ("image_size", "patch_size", "batch_size", "min_area"):
            self._require(setting, self._is_whole(setting, 1), "a whole number of at least 1")
        self._require("channels", self._is_whole("channels", 1) and self.channels in (1, 3), "1 or 3")
        self._require("fit", self.fit in FITS, f"one of {', '.join(FITS)}")
        self._require("split_seed", self._is_whole("split_seed", 0), "a whole number of at least 0")
        limit_usable = self.limit is None or self._is_whole("limit", 1)
        self._require("limit", limit_usable, "a whole number of at least 1, or null for all images")
        for setting in ("mask_share", "test_share", "validation_share"):
            usable = self._is_number(setting) and 0 <= getattr(self, setting) < 1
            self._require(setting, usable, "a share of at least 0 and below 1")
        crop_usable = self._is_number("crop_scale") and 0 < self.crop_scale <= 1
        self._require("crop_scale", crop_usable, "a share above 0 and at most 1 (1 crops nothing)")
        memory_usable = self._is_number("memory_gib") and self.memory_gib >= 0
        self._require("memory_gib", memory_usable, "a size in GiB of at least 0")
        self._require("flip", isinstance(self.flip, bool), "true or false")

    def _require(self, setting: str, usable: bool, expected: str) -> None:
        if not usable:
            raise SettingError(f"data.{setting}", getattr(self, setting), expected)

    def _is_text(self, setting: str) -> bool:
        value = getattr(self, setting)
        return isinstance(value, str) and bool(value.strip())

    def _is_number(self, setting: str) -> bool:
        value = getattr(self, setting)
        return isinstance(value, int | float) and not isinstance(value, bool)

    def _is_whole(self, setting: str, smallest: int) -> bool:
        value = getattr(self, setting)
        return isinstance(value, int) and not isinstance(value, bool) and value >= smallest
