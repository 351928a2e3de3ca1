"""A parameter as a module."""

from __future__ import annotations

from torch import nn


class ParameterModule(nn.Module):
    """A level that is one parameter: losses read the tensor itself as ``levels.NAME``.

    Args:
        value: the parameter, any shape.
    """

    def __init__(self, value: nn.Parameter) -> None:
        super().__init__()
        self.value = value
