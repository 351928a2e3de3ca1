"""Which class is that of images without a defect."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

#: Usual names of the good class, as compared by ``named_good``.
GOOD_NAMES = ("good", "ok", "normal", "free", "fine", "pass", "良品", "良", "正常", "合格")


def named_good(class_names: Sequence[str]) -> str | None:
    """The class with a usual name of the good one, whatever its case and the width of its letters; None without.

    >>> named_good(["scratch", "OK"]), named_good(["scratch", "dent"])
    ('OK', None)
    """
    plain = {unicodedata.normalize("NFKC", name).casefold().strip(): name for name in reversed(class_names)}
    return next((plain[usual] for usual in GOOD_NAMES if usual in plain), None)
