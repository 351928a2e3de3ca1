"""Estimates how much of a single hypergradient is signal, from hypergradients of successive steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import NormalDist, fmean
from typing import Any

import torch
from torch import Tensor

CONFIDENCE = 0.95
#: Cosines for which the number of held-out examples is given.
COSINES = (0.5, 0.8)
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95% interval.

    >>> print(Estimate(0.124, -0.01, 0.25))
    0.12 (-0.01 to 0.25)
    """

    value: float
    low: float
    high: float

    def of_cosine(self) -> Estimate:
        """The estimate with its interval cut to the range of a cosine."""
        return Estimate(self.value, max(-1.0, self.low), min(1.0, self.high))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Reliability:
    """How much of a single hypergradient is signal.

    A step's hypergradient is h = mu + t + e: the mean mu over steps; training's noise t with E|t|^2 = T, from the
    point, batches and draws of the levels below; and the held-out batch's noise e with E|e|^2 = V/B for B examples.
    Hence

        E[h_i h_j] = |mu|^2 for distant steps,    E|h|^2 = |mu|^2 + T + V/B,    E|a - b|^2 = V (1/A + 1/B')

    where a and b are the hypergradients of two halves, of A and B' examples, of a step's held-out batch, and distant is
    at least L steps apart, see ``block_jackknife``. These give unbiased estimates of |mu|^2, V and T. The cosine of a
    single hypergradient with mu, about |mu| / sqrt(|mu|^2 + T + V/B), reaches c with

        B = V / (|mu|^2 (1/c^2 - 1) - T)

    examples, or with no number of them if that is negative: training's noise then limits it, to
    |mu| / sqrt(|mu|^2 + T).

    The upper loss must be a mean over its examples, and the hypergradient linear in it, as with most solvers. Anything
    that distant steps have in common counts as signal, such as held-out examples that come again, or a state of
    training that lasts longer than L steps.

    Attributes:
        steps: number of hypergradients, K.
        examples: held-out examples for each of them, B.
        noise: mean cosine of a single hypergradient with the mean of the others'. It is below ``cosine``, the more so
            the fewer steps, since that mean is noisy too; correlations of successive steps raise it.
        halves: mean cosine of the hypergradients of two halves of one held-out batch: at most the held-out batch's
            noise separates them.
        signal: |mu|^2 / E|h|^2; its estimate may be negative.
        held_out: (V/B) / E|h|^2.
        training: T / E|h|^2, the rest to 1; its estimate may be negative.

    Examples:
        >>> share, cosine = Estimate(0.1, 0.05, 0.15), Estimate(0.2, 0.1, 0.3)
        >>> result = Reliability(24, 64, cosine, cosine, share, held_out=0.8, training=0.1)
        >>> round(result.cosine, 2), result.needed(0.5), round(result.limit, 2), result.needed(0.8)
        (0.32, 256, 0.71, None)
    """

    steps: int
    examples: float
    noise: Estimate
    halves: Estimate
    signal: Estimate
    held_out: float
    training: float

    @property
    def cosine(self) -> float | None:
        """The cosine of a single hypergradient with the mean mu; None if it cannot be told from 0."""
        return math.sqrt(min(1.0, self.signal.value)) if self.signal.low > 0 else None

    @property
    def limit(self) -> float | None:
        """That cosine with any number of held-out examples; None if it cannot be told from 0."""
        return None if self.cosine is None else self.cosine / math.sqrt(self.cosine**2 + max(0.0, self.training))

    def needed(self, cosine: float) -> int | None:
        """The number of held-out examples for that cosine with the mean; None if no number reaches it (``limit`` is
        below), or if it cannot be told (``limit`` is None)."""
        if self.cosine is None:
            return None
        spare = self.cosine**2 * (1 / cosine**2 - 1) - max(0.0, self.training)
        return max(1, math.ceil(self.examples * self.held_out / spare)) if spare > 0 else None

    def figures(self) -> dict[str, Any]:
        """All of it for a JSON file; ``needed`` by cosine."""
        needed = {str(cosine): self.needed(cosine) for cosine in COSINES}
        return {**asdict(self), "cosine": self.cosine, "limit": self.limit, "needed": needed}

    def __str__(self) -> str:
        text = f"cosine with the mean of the others {self.noise}, of two halves of the held-out batch {self.halves}"
        if self.limit is None:
            return f"{text}; the mean cannot be told from 0 with {self.steps} steps"
        needed = ", ".join(f"{self.needed(cosine) or 'no number'} for {cosine}" for cosine in COSINES)
        limit = f"training's noise limits the cosine to {self.limit:.2f}"
        return f"{text}; held-out examples needed for a cosine: {needed} (now {self.examples:g}; {limit})"


@dataclass(frozen=True)
class Halves:
    """Two hypergradients at one point, from the two halves of a held-out batch.

    Attributes:
        cosine: between them.
        distance: their squared distance.
        variances: the variance of the mean over the whole batch and over each half, for one example's variance of 1:
            1 / (number of examples).
    """

    cosine: float
    distance: float
    variances: tuple[float, float, float]

    @classmethod
    def of(cls, first: Tensor, second: Tensor, variances: tuple[float, float, float]) -> Halves:
        """From two vectors of shape [N]."""
        first, second = first.double(), second.double()
        size = (first.norm() * second.norm()).clamp_min(TINY)
        return cls((first.dot(second) / size).item(), (first - second).square().sum().item(), variances)


def decompose(hypergradients: Sequence[Tensor], halves: Sequence[Halves]) -> Reliability:
    """The reliability from hypergradients of successive steps with the level held.

    Args:
        hypergradients: one of shape [N] for each step, at least 4.
        halves: for each step.
    """
    products = inner_products(hypergradients)
    whole = fmean(pair.variances[0] for pair in halves)
    variance = fmean(pair.distance / sum(pair.variances[1:]) for pair in halves)
    size = max(products.diagonal().mean().item(), TINY)
    signal = block_jackknife(lambda kept: _signal(products, kept), len(halves))
    held_out = variance * whole / size
    cosine = block_jackknife(lambda kept: fmean(halves[step].cosine for step in kept), len(halves)).of_cosine()
    return Reliability(
        len(halves), 1 / whole, noise_cosine(products), cosine, signal, held_out, 1 - signal.value - held_out
    )


def inner_products(vectors: Collection[Tensor]) -> Tensor:
    """The inner products of K vectors of shape [N]: float64, shape [K, K].

    >>> inner_products([torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])])
    tensor([[ 5.,  1.],
            [ 1., 10.]], dtype=torch.float64)
    """
    products = torch.empty(len(vectors), len(vectors), dtype=torch.float64)
    for row, vector in enumerate(vectors):
        doubled = vector.double()
        for column, other in enumerate(islice(vectors, row + 1)):
            products[row, column] = products[column, row] = doubled.dot(other.double())
    return products


def noise_cosine(products: Tensor) -> Estimate:
    """The mean cosine of each of K vectors with the mean of the others, from their ``inner_products``."""
    return block_jackknife(lambda kept: _cosine_with_others(products[kept][:, kept]), len(products)).of_cosine()


def block_jackknife(statistic: Callable[[list[int]], float], steps: int) -> Estimate:
    """A statistic of successive steps with a 95% interval, by the jackknife that leaves out runs of steps.

    Each of the ``steps`` runs of L = steps^(1/3) steps, at most a quarter of them (the last runs continue at the first
    step), is left out once; the variance of the statistic is (steps - L) / L times that of the results (Künsch 1989,
    section 2.2). Correlations over more than L steps make the interval too narrow; without a common mean, that of a
    cosine is up to 1.6 times too wide.

    Args:
        statistic: a function of the indices of steps that are kept.
        steps: their number, at least 4.

    >>> values = [1.0, 2.0, 4.0, 5.0]
    >>> block_jackknife(lambda kept: fmean(values[step] for step in kept), 4).value
    3.0
    """
    length = _run_length(steps)
    runs = [{(start + offset) % steps for offset in range(length)} for start in range(steps)]
    results = [statistic([step for step in range(steps) if step not in run]) for run in runs]
    mean, value = fmean(results), statistic(list(range(steps)))
    variance = (steps - length) / length * fmean((result - mean) ** 2 for result in results)
    width = _student(max(1.0, steps / length - 1)) * math.sqrt(variance)
    return Estimate(value, value - width, value + width)


def _run_length(steps: int) -> int:
    return max(1, min(round(steps ** (1 / 3)), steps // 4))


def _signal(products: Tensor, kept: list[int]) -> float:
    """The share |mu|^2 / E|h|^2, from the kept steps."""
    steps = torch.tensor(kept)
    distant = (steps[:, None] - steps).abs() >= _run_length(len(products))
    products = products[kept][:, kept]
    return (products[distant].mean() / products.diagonal().mean().clamp_min(TINY)).item()


def _cosine_with_others(products: Tensor) -> float:
    sums, sizes = products.sum(1), products.diagonal()
    others = (products.sum() - 2 * sums + sizes).clamp_min(0)  # the squared norm of the sum of the others
    return ((sums - sizes) / (sizes * others).sqrt().clamp_min(TINY)).mean().item()


def _student(freedom: float) -> float:
    """The quantile of Student's t for a two-sided interval (Abramowitz and Stegun 26.7.5, two terms)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
