"""Loads autoencoders that were pretrained elsewhere, in transformers' format."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, getLogger

import torch
from transformers import AutoConfig, ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import logging

from multilevel.levels.models.masked_autoencoder import initialize_weights
from multilevel.solvers import SettingError

EXPECTED = "a folder, or a name on the Hugging Face hub, of a ViTMAEForPreTraining checkpoint"
POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def read_config(name: str) -> ViTMAEConfig:
    """The configuration of a checkpoint.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        SettingError: ``init`` cannot be loaded, or is another kind of model.
    """
    with _explained(name):
        config = AutoConfig.from_pretrained(name)
    if not isinstance(config, ViTMAEConfig):
        raise SettingError("init", name, f"{EXPECTED}; this one is of type {config.model_type}")
    return config


def load_autoencoder(name: str, image_size: int, mask_ratio: float) -> ViTMAEForPreTraining:
    """Load a checkpoint's weights in float32 with fixed positions (transformers 5.23 would train them).

    Positions are the checkpoint's own. For images of another size they are replaced by the fixed sine-cosine positions
    of the MAE paper (He et al. 2022) for the new number of patches.

    Args:
        name: a folder, or a name on the hub.
        image_size: pixels per side of the images to train on.
        mask_ratio: share of the patches that will be hidden.

    Raises:
        SettingError: ``init`` cannot be loaded, is another kind of model, or has only an encoder's weights.
    """
    read_config(name)
    with _explained(name):
        mae, loaded = ViTMAEForPreTraining.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if loaded["missing_keys"]:
        first = sorted(loaded["missing_keys"])[0]
        raise SettingError("init", name, f"{EXPECTED}; {len(loaded['missing_keys'])} weights are missing, as {first}")
    config = copy.deepcopy(mae.config)
    config.image_size, config.mask_ratio, config.norm_pix_loss = image_size, mask_ratio, True
    resized = ViTMAEForPreTraining(config)
    initialize_weights(resized)
    weights = mae.state_dict()
    if mae.config.image_size != image_size:
        weights = {key: value for key, value in weights.items() if key not in POSITIONS}
    resized.load_state_dict(weights, strict=False)  # complete, except perhaps for the positions
    return resized


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Within the block, transformers' errors take one line, without its warnings and progress bars."""
    hub = getLogger("huggingface_hub")  # repeats the error for each attempt
    before, hub_before = logging.get_verbosity(), hub.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.setLevel(CRITICAL)
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())
        raise SettingError("init", name, f"{EXPECTED} ({type(error).__name__}: {cause})") from error
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
        hub.setLevel(hub_before)
