"""Fonts for characters that the pictures' own font lacks, such as those of Japanese class names."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FONT = "DejaVu Sans"  # comes with matplotlib
LAST_RESORT = "Last Resort"  # comes with matplotlib, too: a box for every character
SHOWN = 8  # characters in a message


def make_legible(figure: Figure) -> None:
    """Give each text that the style's font cannot write another installed font as well. Characters that no installed
    font has are escaped, as in ``\\u65e5``, and a line on standard error says so, once for the same characters."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    labels = {axis: [label.get_text() for label in axis.get_ticklabels()] for axis in axes}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and lacking(text.get_text())]
    if not texts:
        return
    fonts, unwritable = fonts_for(lacking("".join(text.get_text() for text in texts)))
    for text in texts:
        text.set_text(escaped(text.get_text(), unwritable))
        text.set_fontfamily([FONT, *fonts])
    for axis, names in labels.items():  # an axis writes its labels again
        if unwritable & set("".join(names)):
            axis.set_ticks(axis.get_majorticklocs(), labels=[escaped(name, unwritable) for name in names])
    if unwritable:
        _tell(unwritable)


def escaped(text: str, characters: Iterable[str]) -> str:
    """The text with some characters as Python's escapes.

    Examples:
        >>> print(escaped("日本: ok", "日本"))
        \\u65e5\\u672c: ok
    """
    chosen = set(characters)
    return "".join(ascii(character)[1:-1] if character in chosen else character for character in text)


def lacking(text: str) -> frozenset[str]:
    """The characters of a text that the pictures' font lacks.

    Examples:
        >>> lacking("0.5 µm"), sorted(lacking("日本"))
        (frozenset(), ['日', '本'])
    """
    return frozenset(text) - _known() - {"\n"}


@cache
def fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of installed fonts that together have these characters, the one with most of them first; and the characters
    that none has."""
    known = {entry.fname for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - known:  # installed since matplotlib last looked
        with suppress(OSError, RuntimeError):
            fontManager.addfont(path)
    usable = [entry for entry in fontManager.ttflist if not entry.name.startswith(LAST_RESORT)]
    has = {entry.name: _characters(entry.fname, characters) for entry in usable if entry.style == "normal"}
    chosen, left = [], characters
    while left and (best := max(sorted(has), key=lambda name: len(has[name] & left))) and has[best] & left:
        chosen.append(best)
        left -= has[best]
    return tuple(chosen), left


def _characters(path: str, wanted: frozenset[str]) -> frozenset[str]:
    """The wanted characters that a font file has; none of a file that is broken, gone, or has only bitmaps."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    numbers = font.get_charmap().keys() if font.scalable else ()
    return frozenset(character for character in wanted if ord(character) in numbers)


@cache
def _known() -> frozenset[str]:
    return frozenset(map(chr, FT2Font(findfont(FONT)).get_charmap()))


@cache
def _tell(unwritable: frozenset[str]) -> None:
    shown = " ".join(sorted(unwritable)[:SHOWN]) + " ..." * (len(unwritable) > SHOWN)
    print(
        f"no installed font has the characters {shown}: pictures show them as escapes, such as "
        f"{escaped(min(unwritable), unwritable)}; install a font that has them, such as Noto Sans CJK JP",
        file=sys.stderr,
    )
