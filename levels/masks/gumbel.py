"""Sampling without replacement."""

import torch
from torch import Tensor


def gumbel_scores(log_weights: Tensor) -> Tensor:
    """Scores whose k largest entries are k patches drawn without replacement in proportion to their weights.

    Gumbel top-k (Kool et al. 2019): the log-weights [B, L] plus standard Gumbel noise.

    Examples:
        >>> gumbel_scores(torch.tensor([[0.0, -100.0, 0.0]])).topk(2).indices.sort().values
        tensor([[0, 2]])
    """
    return log_weights - torch.empty_like(log_weights).exponential_().log()
