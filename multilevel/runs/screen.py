"""Keeps control characters, which names of files and classes may have, from the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from multilevel.solvers.files import on_screen

_MOVES = re.compile(r"(?:\n|\x1b\[A)+")  # what a progress bar below another writes, and nothing else with it


class Screen:
    """A text stream that escapes control characters; line ends, tabs and what progress bars write remain.

    Args:
        stream: the stream to write to.

    >>> import io
    >>> stream = io.StringIO()
    >>> print("a\\x1b[2Jb", file=Screen(stream))
    >>> stream.getvalue()
    'a\\\\x1b[2Jb\\n'
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = len(text) if _MOVES.fullmatch(text) else text.startswith("\r")
        self._stream.write(text[:start] + on_screen(text[start:], lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def plain_screen() -> Iterator[None]:
    """Standard output and error without control characters, and with what a terminal cannot show escaped."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (stream and Screen(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
