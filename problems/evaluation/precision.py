"""Keeps losses and norms in float32 under autocast, and in float64 for float64 parameters."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if that is its dtype."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
