"""The named errors of the whole project: the lowest room holds them so that every room can raise them."""

from __future__ import annotations

import torch


class MultilevelError(Exception):
    """Base of every error that a user can cause; its text is one line."""


class SettingError(MultilevelError, ValueError):
    """A setting, from the command line or from Python, with a value that cannot work.

    Args:
        setting: the setting's full name, as a user would type it (``mask.ratio``).
        got: the value that was given.
        expected: what would do.
    """

    def __init__(self, setting: str, got: object, expected: str) -> None:
        super().__init__(f"{setting}: got {got!r}; expected {expected}")
        self.setting = setting
        self.got = got
        self.expected = expected

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, object, str]]:
        """For another process to have it too, pickled."""
        return type(self), (self.setting, self.got, self.expected)


class DataError(MultilevelError):
    """Data that cannot be used as it is: no images, a broken file, too few of them."""


class SolveError(MultilevelError):
    """A solve that failed where ``strict=true`` asks for an error."""


class CotangentError(SolveError):
    """A cotangent that is not finite, so that there is nothing to solve for."""


class ProductError(SolveError):
    """An operator lacks the derivative that a product needs; the text names it and the product that would work."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which torch says by errors of several kinds."""
    texts = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )
