"""Evaluation protocols, one file each: a protocol fits a predictor on an encoder to labelled images, and scores it."""

from __future__ import annotations

import sys

from multilevel.recipes.evaluation.protocols.base import Candidate, Encoder, EvaluationProtocol, Setup, Trial
from multilevel.solvers.registry import discover

#: Every protocol by the name of its file, which is its name in configuration.
PROTOCOLS: dict[str, type[EvaluationProtocol]] = discover(sys.modules[__name__], EvaluationProtocol)  # type: ignore[type-abstract]

__all__ = ["PROTOCOLS", "Candidate", "Encoder", "EvaluationProtocol", "Setup", "Trial"]
