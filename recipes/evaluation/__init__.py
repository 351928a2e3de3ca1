"""How good frozen features are: a linear probe and nearest neighbours on the test split."""

from multilevel.recipes.evaluation.evaluate import Encoder, evaluate_features, raw_pixels
from multilevel.recipes.evaluation.settings import EvaluationSettings
from multilevel.recipes.evaluation.table import format_table

__all__ = ["Encoder", "EvaluationSettings", "evaluate_features", "format_table", "raw_pixels"]
