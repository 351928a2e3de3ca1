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


def order_log_probability(
    log_weights: Tensor, scores: Tensor, hidden: Tensor, maskable: Tensor | None = None
) -> Tensor:
    """Log-probability [B] of the order in which ``gumbel_scores`` hides patches (Plackett-Luce).

    Each hidden patch was drawn in proportion to its weight among those that were left, whose scores are at most its own
    (Yellott 1977). Memory is B L^2.

    Args:
        log_weights: [B, L].
        scores: [B, L], the Gumbel scores.
        hidden: bool [B, L], the maskable patches with the largest scores.
        maskable: bool [B, L], the patches that can be hidden; None: all.

    Examples:
        Patch 0 is drawn first, with probability 1/2, then patch 1 of two equal ones:

        >>> log_weights, scores = torch.tensor([[2.0, 1.0, 1.0]]).log(), torch.tensor([[3.0, 2.0, 1.0]])
        >>> order_log_probability(log_weights, scores, scores > 1.5).exp()
        tensor([0.2500])
    """
    left = scores[:, None] <= scores[:, :, None]  # [B, drawn, left]
    if maskable is not None:
        left = left & maskable[:, None]
    totals = log_weights[:, None].masked_fill(~left, -torch.inf).logsumexp(2)
    return torch.where(hidden, log_weights - totals, 0.0).sum(1)
