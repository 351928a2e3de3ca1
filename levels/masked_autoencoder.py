"""The masked autoencoder that is pretrained, from `transformers`, and the masking network that guides it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from multilevel.levels.precision import at_least_float32


class MaskedAutoencoder(nn.Module):
    """ViTMAEForPreTraining (He et al. 2022) with the masking order given, and its encoder on all patches.

    Args:
        mae: the model; its configuration holds the sizes and the mask ratio.
    """

    def __init__(self, mae: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.mae = mae
        self.patches = mae.vit.embeddings.patch_embeddings.num_patches
        self.width = mae.config.hidden_size

    @classmethod
    def of_size(
        cls,
        *,
        image_size: int,
        channels: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        mask_ratio: float,
    ) -> MaskedAutoencoder:
        """A freshly initialized model; feed-forward layers are 4 times as wide as their block."""
        config = ViTMAEConfig(
            image_size=image_size,
            num_channels=channels,
            patch_size=patch_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=decoder_depth,
            decoder_num_attention_heads=decoder_heads,
            decoder_intermediate_size=4 * decoder_width,
            mask_ratio=mask_ratio,
            norm_pix_loss=True,
        )
        mae = ViTMAEForPreTraining(config)
        initialize(mae)
        return cls(mae)

    def reconstruct(self, images: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Hide the patches with the largest scores and predict them.

        Args:
            images: [B, C, H, W], normalized.
            scores: [B, L], L patches in row-major order.

        Returns:
            Predicted pixels [B, L, patch * patch * C] and the mask [B, L], 1 where hidden.
        """
        seen = self.mae.vit(images, noise=scores)
        return self.mae.decoder(seen.last_hidden_state, seen.ids_restore).logits, seen.mask

    def targets(self, images: Tensor) -> Tensor:
        """The pixels of each patch [B, L, patch * patch * C], normalized within the patch (He et al., section 4.1)."""
        pixels = self.mae.patchify(images)
        return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()

    def patch_losses(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Mean squared error [B, L] of predicted pixels [B, L, patch * patch * C]."""
        return (at_least_float32(prediction) - self.targets(images)).square().mean(-1)

    def features(self, images: Tensor) -> Tensor:
        """The encoder on all patches, averaged over them: [B, C, H, W] to [B, width].

        The same computation as transformers' ViTModel with these parameters.
        """
        return self.encode(images)[:, 1:].mean(1)

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's tokens on all patches, class token first: [B, C, H, W] to [B, 1 + L, width]."""
        vit = self.mae.vit
        positions = vit.embeddings.position_embeddings
        patches = vit.embeddings.patch_embeddings(images) + positions[:, 1:]
        first = (vit.embeddings.cls_token + positions[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([first, patches], dim=1)
        for layer in vit.layers:
            tokens = layer(tokens)
        return vit.layernorm(tokens)


def initialize(mae: ViTMAEForPreTraining) -> None:
    """Initial weights as in the MAE paper's code: fixed sine-cosine positions, Xavier-uniform linear layers.

    transformers 5.23 by itself leaves every position embedding at 0: it takes the embeddings for initialized once
    their projection is, and clears the decoder's positions after having set them.
    """
    for module in mae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    embeddings = mae.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    mae.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)


class MaskingNetwork(nn.Module):
    """A logit for each patch of being hidden, from the patch, its place and the image as a whole.

    Args:
        image_size: pixels a side.
        channels: of the images.
        patch_size: pixels a side.
        width: of the patch embeddings.
    """

    def __init__(self, image_size: int, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        self.mix = nn.Linear(2 * width, width)
        self.logit = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, L]."""
        patches = nn.functional.gelu(self.embed(images).flatten(2).transpose(1, 2) + self.position)
        context = patches.mean(1, keepdim=True).expand_as(patches)
        mixed = nn.functional.gelu(self.mix(torch.cat([patches, context], dim=-1)))
        return at_least_float32(self.logit(mixed).squeeze(-1))
