"""Sampling without replacement."""

import torch
from torch import Tensor


def gumbel_scores(log_weights: Tensor) -> Tensor:
    """Scores whose largest k are k patches drawn one after the other in proportion to their weights.

    Gumbel top-k (Kool et al. 2019): the log-weights [B, L] plus noise of the standard Gumbel distribution.

    Examples:
        >>> gumbel_scores(torch.tensor([[0.0, -100.0, 0.0]])).topk(2).indices.sort().values
        tensor([[0, 2]])
    """
    return log_weights - torch.empty_like(log_weights).exponential_().log()
