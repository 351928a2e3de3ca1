"""Exports a trained model to a folder that `transformers` and onnxruntime load, and uses exported models."""

from multilevel.recipes.export.exported import ExportedModel
from multilevel.recipes.export.folder import FORMATS, write_export
from multilevel.recipes.export.reference import DriftReference
from multilevel.recipes.export.trained import TrainedModel

__all__ = ["FORMATS", "DriftReference", "ExportedModel", "TrainedModel", "write_export"]
