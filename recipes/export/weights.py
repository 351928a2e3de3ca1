"""One configuration and one set of weights that three classes of `transformers` load.

`ViTForImageClassification` reads the class token, whereas the classifier here reads the mean of the patch tokens.
`Dinov2ForImageClassification` (transformers 5.24) is a linear layer on both, [class token, mean of the patch tokens],
on the blocks of ViTMAE plus a layer scale: with a layer scale of 1 and weights of 0 for the class token, it gives the
same logits. So the folder's type is dinov2, and `ViTMAEForPreTraining` finds its own sizes and weights in the same
folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTMAEConfig

from multilevel.recipes.data import ImageData
from multilevel.recipes.export.trained import TrainedModel

BICUBIC = 3  # Pillow's number for the resampling in recipes/data/pictures.py
SHARED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_dropout_prob", "image_size",
    "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip
MAE_ALONE = (
    "intermediate_size", "decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_intermediate_size", "mask_ratio", "norm_pix_loss",
)  # fmt: skip
RENAMED = (
    (r"^vit\.layers\.", "dinov2.encoder.layer."),
    (r"^vit\.", "dinov2."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
)


class FeaturesAndLogits(nn.Module):
    """Normalized images [B, C, H, W] to logits [B, classes] and the mean of the patch tokens [B, width].

    Args:
        model: without classes, its classifier returns its input.
    """

    def __init__(self, model: Dinov2ForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.dinov2(pixel_values).last_hidden_state
        features = tokens[:, 1:].mean(1)
        return self.model.classifier(torch.cat([tokens[:, 0], features], dim=1)), features


def transformers_config(mae: ViTMAEConfig, class_names: Sequence[str]) -> Dinov2Config:
    """The configuration for transformers, with the sizes of encoder, classifier and decoder.

    Args:
        mae: the autoencoder's configuration.
        class_names: names of the classes, by label; empty for an encoder without a classifier.
    """
    return Dinov2Config(
        architectures=["Dinov2ForImageClassification" if class_names else "Dinov2Model"],
        id2label=dict(enumerate(class_names)),
        label2id={name: label for label, name in enumerate(class_names)},
        mlp_ratio=mae.intermediate_size // mae.hidden_size,
        use_mask_token=False,
        layerscale_value=1.0,
        **{name: getattr(mae, name) for name in (*SHARED, *MAE_ALONE)},
    )


def transformers_weights(trained: TrainedModel) -> dict[str, Tensor]:
    """The weights under the names of `Dinov2ForImageClassification`, and again under those of
    `ViTMAEForPreTraining`."""
    autoencoder = {name: tensor.detach().cpu() for name, tensor in trained.autoencoder.mae.state_dict().items()}
    return {**autoencoder, **_dinov2_weights(autoencoder), **_classifier_weights(trained.classifier)}


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite.

    >>> first_not_finite({"mean": torch.zeros(1), "weight": torch.tensor([1.0, torch.inf])})
    'weight'
    """
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def load_dinov2(config: Dinov2Config, weights: Mapping[str, Tensor]) -> FeaturesAndLogits:
    """Load the classifier from exported weights.

    A stored implementation of attention is ignored: it may name one on the hub, which transformers runs.

    Raises:
        RuntimeError: the weights do not fit the configuration.
    """
    config._attn_implementation = None
    model = Dinov2ForImageClassification(config)
    names = [name for name in weights if name.startswith(("dinov2.", "classifier."))]
    model.load_state_dict({name: weights[name] for name in names})
    return FeaturesAndLogits(model.eval())


def processor_settings(data: ImageData) -> dict[str, Any]:
    """The contents of ``preprocessor_config.json``: resize to the square like the data, scale to 0 to 1, normalize with
    its statistics.

    With ``data.tiles`` these steps are those of a tile; ``tiles`` says how to cut, which only ``multilevel`` does.

    ``pixel_range`` has the values that are black and white in images of more than 8 bits, which only ``multilevel``
    scales to 8 bits before these steps; ``max_pixels`` the largest number of pixels of an image.

    Grey images must be given as grey: the processor can only convert to colour.
    """
    side = data.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": data.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": side} if data.fit == "crop" else {"height": side, "width": side},
        "resample": BICUBIC,
        "do_center_crop": data.fit == "crop",
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": data.mean.tolist(),
        "image_std": data.std.tolist(),
        "pixel_range": data.pixel_range.to_store(),
        "max_pixels": data.max_pixels,
        **({"tiles": data.tiling.to_store()} if data.tiling is not None else {}),
    }


def _dinov2_weights(autoencoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder under the names of Dinov2, with layer scales of 1."""
    # clone: a file of safetensors holds no tensor twice
    renamed = {_renamed(name): tensor.clone() for name, tensor in autoencoder.items() if name.startswith("vit.")}
    for name in [name for name in renamed if name.endswith("norm1.weight")]:
        for scale in ("layer_scale1", "layer_scale2"):
            renamed[name.replace("norm1.weight", f"{scale}.lambda1")] = torch.ones_like(renamed[name])
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _classifier_weights(classifier: nn.Linear | None) -> dict[str, Tensor]:
    if classifier is None:
        return {}
    weight = classifier.weight.detach().cpu()
    of_both = torch.cat([torch.zeros_like(weight), weight], dim=1)  # 0 for the class token
    return {"classifier.weight": of_both, "classifier.bias": classifier.bias.detach().cpu()}
