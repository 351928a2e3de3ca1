"""Recognizes the class of good parts by its name."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

#: Names of the good class without differences of case and of full-width letters, the surest first.
GOOD_NAMES = ("good", "ok", "normal", "free", "fine", "pass", "良品", "良", "正常", "合格")


def usual_good(names: Sequence[str]) -> str | None:
    """The class with a usual name of the good class; None if there is none.

    >>> usual_good(["scratch", "OK"]), usual_good(["0", "1"])
    ('OK', None)
    """
    plain = {unicodedata.normalize("NFKC", name).casefold().strip(): name for name in reversed(names)}
    return next((plain[usual] for usual in GOOD_NAMES if usual in plain), None)
