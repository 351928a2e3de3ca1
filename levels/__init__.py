"""Concrete levels, one file each."""

from multilevel.solvers.extensions import extend
from multilevel.solvers.extras import needing

with needing("recipes", "multilevel.levels"):
    from multilevel.levels.adversarial_mask import AdversarialMask
    from multilevel.levels.finetune import Finetune
    from multilevel.levels.mask_learning import MaskLearning
    from multilevel.levels.masked_pretrain import MaskedPretrain
    from multilevel.levels.models.masked_autoencoder import MaskedAutoencoder, MaskingNetwork

__all__ = ["AdversarialMask", "Finetune", "MaskLearning", "MaskedAutoencoder", "MaskedPretrain", "MaskingNetwork"]

extend(__path__, __name__)
