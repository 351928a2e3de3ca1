"""Carries derivatives through random draws, which themselves have none."""

from __future__ import annotations

from torch import Tensor

from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.solvers.ranges import require


def score_function(losses: Tensor, log_probabilities: Tensor, draws: int = 1) -> Tensor:
    """Add the derivative of the draws' distribution to the losses of a batch, whose values stay the same.

    What a level draws can depend on a level that it reads, as sampled masks depend on a masking network, but a draw has
    no derivative. Called in a loss, this function multiplies each loss by exp(c - c.detach()), which is 1 and has the
    derivative of c: the log-probability of the example's draw, minus the mean of the other examples' as a baseline
    (leave-one-out; Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"). A single
    example has no baseline.

    In the mixed product d/dr <dg/dp, x>, this adds an unbiased but noisy estimate of the derivative that the choice of
    the draws contributes, for a given solution x. The loss, the level's own gradient and its Hessian products do not
    change. With accumulation or several ranks, each part of a batch has its own baseline.

    Compute the log-probabilities in the loss, from what ``draw`` returned, and detach the level's own parameters in
    them. Otherwise the level's own gradient changes, which is not detected. A level with ``outputs`` and ``criterion``
    calls this in ``criterion``.

    Args:
        losses: [B], each dependent on its own example's draw only.
        log_probabilities: [B], of independent draws, up to a constant; 0 for examples without a draw.
        draws: number of draws for each input, at positions i, i + B / draws, ...; above 1, the baseline of a draw is
            the mean over the other draws for the same input, which removes the differences between inputs.

    Returns:
        [B], the values of ``losses``, in float32 or wider.

    Raises:
        SettingError: ``losses`` is not a vector, ``log_probabilities`` has another shape, or ``draws`` does not divide
            their length.

    Examples:
        The loss of the first draw is 2 below the other's, that of the second 2 above:

        >>> log_probabilities = torch.zeros(2, requires_grad=True)
        >>> losses = score_function(torch.tensor([1.0, 3.0]), log_probabilities)
        >>> losses.tolist(), torch.autograd.grad(losses.sum(), log_probabilities)
        ([1.0, 3.0], (tensor([-2.,  2.]),))
    """
    count, shape = len(losses) if losses.ndim else 0, list(log_probabilities.shape)
    require("losses", list(losses.shape), losses.ndim == 1, "the shape [B], one loss per example")
    require("log_probabilities", shape, shape == [count], f"the shape of losses, [{count}]")
    require("draws", draws, draws >= 1 and count % draws == 0, f"a divisor of the number of losses, {count}")
    peers = draws if draws > 1 else count  # the examples that share a baseline
    # a probability that underflows to 0 has an infinite logarithm
    centred = at_least_float32(log_probabilities).clamp_min(-1e30).view(peers, -1)
    if peers > 1:
        centred = (centred - centred.mean(0)) * (peers / (peers - 1))
    centred = centred.flatten()
    return at_least_float32(losses) * (centred - centred.detach()).exp()
