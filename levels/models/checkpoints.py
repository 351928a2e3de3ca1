"""Loads autoencoders from folders in transformers' format: released ones, and exports of this project."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL, getLogger

import torch
from torch import Tensor
from transformers import AutoConfig, Dinov2Config, ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import logging

from multilevel.levels.models.masked_autoencoder import initialize_weights
from multilevel.solvers import SettingError

EXPECTED = (
    "a folder, or a name on the Hugging Face hub, of a ViTMAEForPreTraining checkpoint, or a run or an export of "
    "multilevel"
)
POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")


def read_config(name: str) -> ViTMAEConfig:
    """The configuration of a checkpoint; an export's is that of the autoencoder in it.

    A stored implementation of attention is left out: it may name one on the hub, which transformers runs.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        SettingError: ``init`` cannot be loaded, or is another kind of model.
    """
    with _explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if is_exported(config):
            config = ViTMAEConfig.from_pretrained(name)
    if not isinstance(config, ViTMAEConfig):
        raise SettingError("init", name, f"{EXPECTED}; this one is of type {config.model_type}")
    config._attn_implementation = None
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
    config = read_config(name)
    with _explained(name):
        mae, loaded = ViTMAEForPreTraining.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
    if loaded["missing_keys"]:
        first = sorted(loaded["missing_keys"])[0]
        raise SettingError("init", name, f"{EXPECTED}; {len(loaded['missing_keys'])} weights are missing, as {first}")
    return new_autoencoder(mae.config, mae.state_dict(), image_size, mask_ratio)


def new_autoencoder(
    config: ViTMAEConfig, weights: Mapping[str, Tensor], image_size: int, mask_ratio: float
) -> ViTMAEForPreTraining:
    """An autoencoder with these weights; for images of another size than the configuration's, with new positions.

    Args:
        config: its sizes; unchanged.
        weights: all its weights by name.
        image_size: pixels per side of the images to train on.
        mask_ratio: share of the patches that will be hidden.
    """
    resized = copy.deepcopy(config)
    resized.image_size, resized.mask_ratio, resized.norm_pix_loss = image_size, mask_ratio, True
    mae = ViTMAEForPreTraining(resized)
    initialize_weights(mae)
    if config.image_size != image_size:
        weights = {key: value for key, value in weights.items() if key not in POSITIONS}
    mae.load_state_dict(weights, strict=False)  # complete, except perhaps for the positions
    return mae


def is_exported(config: object) -> bool:
    """Whether a configuration is an export's: an encoder's of type dinov2 that also has the sizes of a decoder."""
    return isinstance(config, Dinov2Config) and hasattr(config, "decoder_hidden_size")


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
