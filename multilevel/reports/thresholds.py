"""The score from which an image counts as a defect, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from.

    Attributes:
        value: an image whose score is at least this counts as a defect.
        rule: ``false_alarms``, ``recall``, or ``number`` for one that was given or stored as a number.
        source: ``out_of_fold`` (training images, by models that had not seen them), ``reference`` (training images,
            each compared with the others), ``stored`` (a number in the export), ``given`` (by the user), or ``folder``
            (the inspected images themselves, so that figures at it are optimistic).
        images: number of images that it was chosen on; 0 if it was stored or given.
    """

    value: float
    rule: str
    source: str
    images: int

    @property
    def is_optimistic(self) -> bool:
        """Whether the images it was chosen on are those it is checked on."""
        return self.source == "folder"
