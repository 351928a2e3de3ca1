"""Removes the machine's absolute paths from what a study reports."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

#: An absolute path within a text: not after a word or another path, and up to a space or punctuation.
PATH = re.compile(r"(?<![\w./~:-])~?/[^\s'\",;:\[\](){}]+")


def without_paths(value: Any) -> Any:
    """A value of study.json, or any list or dictionary in it, in which only the last part of absolute paths is left.

    >>> without_paths(["data.path=/home/me/My parts/tiles", "broken: /srv/a/b.png is empty", "data.path=tiles", "1/2"])
    ['data.path=tiles', 'broken: b.png is empty', 'data.path=tiles', '1/2']
    """
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    setting, equals, text = value.partition("=")
    bare = text.strip("'\"")
    if equals and re.fullmatch(r"[\w./+]+", setting) and bare.startswith(("/", "~")) and "=" not in bare:
        return f"{setting}={PurePath(bare).name}"  # the whole value is a path, which may have spaces
    return PATH.sub(lambda found: PurePath(found[0]).name, value)
