"""Wraps a bare parameter as a level."""

from __future__ import annotations

from torch import nn


class ParameterModule(nn.Module):
    """Holds a level's only parameter; ``levels.NAME`` is the tensor itself.

    Args:
        value: the parameter, of any shape; its name in the level is ``value``.
    """

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value
