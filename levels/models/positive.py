"""Parameters that stay above 0."""

from __future__ import annotations

from torch import Tensor, nn


class Positive(nn.Module):
    """Numbers above 0, stored as logarithms; a call without arguments returns them in their initial shape.

    Args:
        initial: the initial numbers, float [...].
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.logarithms = nn.Parameter(initial.log())

    def forward(self) -> Tensor:
        return self.logarithms.exp()
