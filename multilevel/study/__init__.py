"""The command ``multilevel study``: does guided masking pay on this data?"""

from __future__ import annotations

import importlib
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run a study; imported when it is called, as modules of this package are run on their own."""
    return int(importlib.import_module("multilevel.study.command").main(arguments))
