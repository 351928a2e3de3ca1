"""A trained model for use elsewhere: a folder that `transformers` and onnxruntime load, and what is done with one."""

from multilevel.recipes.export.exported import ExportedModel
from multilevel.recipes.export.folder import FORMATS, write_export
from multilevel.recipes.export.reference import DriftReference
from multilevel.recipes.export.trained import TrainedModel

__all__ = ["FORMATS", "DriftReference", "ExportedModel", "TrainedModel", "write_export"]
