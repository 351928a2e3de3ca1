"""Concrete levels, each one file."""

from multilevel.levels.finetune import Finetune
from multilevel.levels.mask_learning import MaskLearning
from multilevel.levels.masked_autoencoder import MaskedAutoencoder, MaskingNetwork
from multilevel.levels.masked_pretrain import MaskedPretrain

__all__ = ["Finetune", "MaskLearning", "MaskedAutoencoder", "MaskedPretrain", "MaskingNetwork"]
