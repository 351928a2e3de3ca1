"""Evaluation of encoders: protocols are fitted to labelled training images and scored on the test or validation
split."""

from multilevel.recipes.evaluation.evaluate import evaluate_features, raw_pixels
from multilevel.recipes.evaluation.folds import grouped_folds, out_of_fold
from multilevel.recipes.evaluation.protocols import PROTOCOLS, Candidate, Setup
from multilevel.recipes.evaluation.remarks import describe_scores, not_better, scored_images
from multilevel.recipes.evaluation.scores import Score, metric_title
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.recipes.evaluation.table import format_table

__all__ = [
    "PROTOCOLS",
    "Candidate",
    "EvaluationSettings",
    "Score",
    "Setup",
    "describe_scores",
    "evaluate_features",
    "format_table",
    "grouped_folds",
    "metric_title",
    "not_better",
    "out_of_fold",
    "raw_pixels",
    "scored_images",
]
