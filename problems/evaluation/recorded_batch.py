"""The batches of an update, recorded for its loss to be evaluated again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multilevel.problems.evaluation.randomness import RandomState
from multilevel.solvers.vectors import Tensors


@dataclass(frozen=True)
class RecordedBatch:
    """One batch of an update, and all that its loss depends on besides parameters.

    Attributes:
        batch: the batch, on the module's device.
        draws: what the level's ``draw`` returned for it.
        state: the generators' state that the loss starts from.
        generators: the states of the user's own ``torch.Generator`` that the loss uses, at its start.
    """

    batch: Any
    draws: Any
    state: RandomState
    generators: dict[torch.Generator, Tensor] = field(default_factory=dict)


#: By level and name.
Values = Mapping[str, Tensors]
#: What an update used: one part for each batch that it averages over.
RecordedBatches = tuple[RecordedBatch, ...]
