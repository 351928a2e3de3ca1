"""Evaluation of encoders: protocols are fitted to labelled training images and scored on the test or validation
split."""

from multilevel.recipes.evaluation.evaluate import evaluate_features, raw_pixels
from multilevel.recipes.evaluation.protocols import PROTOCOLS, Candidate, Setup
from multilevel.recipes.evaluation.scores import Score
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.recipes.evaluation.table import format_table

__all__ = [
    "PROTOCOLS",
    "Candidate",
    "EvaluationSettings",
    "Score",
    "Setup",
    "evaluate_features",
    "format_table",
    "raw_pixels",
]
