"""Concrete levels, each one file."""

from multilevel.levels.adversarial_mask import AdversarialMask
from multilevel.levels.finetune import Finetune
from multilevel.levels.mask_learning import MaskLearning
from multilevel.levels.masked_pretrain import MaskedPretrain
from multilevel.levels.models.masked_autoencoder import MaskedAutoencoder, MaskingNetwork
from multilevel.solvers.extensions import extend

__all__ = ["AdversarialMask", "Finetune", "MaskLearning", "MaskedAutoencoder", "MaskedPretrain", "MaskingNetwork"]

extend(__path__, __name__)
