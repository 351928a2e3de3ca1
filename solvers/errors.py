"""The named errors of the whole project, in the lowest package so that every package can raise them."""

from __future__ import annotations

import torch


class MultilevelError(Exception):
    """Base of every error that a user can cause; its message is one line."""


class SettingError(MultilevelError, ValueError):
    """A setting, from the command line or Python, has an unusable value.

    Args:
        setting: the setting's full name, as a user would type it (``mask.ratio``).
        got: the given value.
        expected: a description of usable values.
    """

    def __init__(self, setting: str, got: object, expected: str) -> None:
        super().__init__(f"{setting}: got {got!r}; expected {expected}")
        self.setting = setting
        self.got = got
        self.expected = expected

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, object, str]]:
        """Make the error picklable, for other processes."""
        return type(self), (self.setting, self.got, self.expected)


class DataError(MultilevelError):
    """The data cannot be used: no images, a broken file, or too few images."""


class SolveError(MultilevelError):
    """A solve failed, and ``strict=true`` asks for an error."""


class CotangentError(SolveError):
    """A cotangent is not finite, so it cannot be solved for."""


class ProductError(SolveError):
    """An operator lacks the derivative that a product needs; the message names it and a product that works."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means out of memory, for which torch raises several types."""
    texts = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )
