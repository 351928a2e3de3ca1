"""Mask policies, one file each; a policy chooses the hidden patches of an image."""

from __future__ import annotations

import sys

from multilevel.levels.masks.base import MaskPolicy, MaskView
from multilevel.solvers.registry import discover

#: Every policy by the name of its file, which is its name in configuration.
POLICIES: dict[str, type[MaskPolicy]] = discover(sys.modules[__name__], MaskPolicy)  # type: ignore[type-abstract]

__all__ = ["POLICIES", "MaskPolicy", "MaskView"]
