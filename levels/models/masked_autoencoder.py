"""The masked autoencoder that is pretrained, from `transformers`, and the masking network that guides it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from multilevel.levels.models.attention import use_attention
from multilevel.problems.evaluation.precision import at_least_float32
from multilevel.problems.evaluation.rematerialization import rematerialize

#: Sizes as the settings of a model call them, and as transformers' configuration does.
SIZES = {
    "patch_size": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
}


class MaskedAutoencoder(nn.Module):
    """ViTMAEForPreTraining (He et al. 2022) with a given masking order, and its encoder applied to all patches.

    Args:
        mae: the model; its configuration holds the sizes and the mask ratio.
    """

    def __init__(self, mae: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.mae = mae
        use_attention(mae.config, mae.vit.config, mae.decoder.config)
        self.patches = mae.vit.embeddings.patch_embeddings.num_patches
        self.hidden_patches = self.patches - int(self.patches * (1 - mae.config.mask_ratio))
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
        """A freshly initialized model; its feed-forward layers are 4 times as wide as their blocks.

        Args:
            image_size: height and width of an image, in pixels.
            channels: number of the images' channels.
            patch_size: height and width of a patch, in pixels.
            width: width of the encoder's tokens.
            depth: number of the encoder's blocks.
            heads: number of the encoder's attention heads.
            decoder_width: width of the decoder's tokens.
            decoder_depth: number of the decoder's blocks.
            decoder_heads: number of the decoder's attention heads.
            mask_ratio: share of the patches that is hidden.
        """
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
        initialize_weights(mae)
        return cls(mae)

    def rematerialize_blocks(self) -> None:
        """Make every transformer block recompute its activations when it is differentiated; call this once."""
        for block in (*self.mae.vit.layers, *self.mae.decoder.decoder_layers):
            rematerialize(block)

    def reconstruct(self, images: Tensor, scores: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hide the patches with the largest scores and predict them.

        Args:
            images: [B, C, H, W], normalized.
            scores: [B, L], L patches in row-major order.
            gate: [B, L], factor for each patch's token before the encoder; None leaves the tokens unchanged.

        Returns:
            Predicted pixels [B, L, patch * patch * C] and the mask [B, L], 1 where hidden.
        """
        patches = self._embed(images)
        if gate is not None:
            patches = patches * gate[..., None]
        visible, hidden, order = self.mae.vit.embeddings.random_masking(patches, scores)
        tokens = self.mae.vit.layernorm(self._through(self.mae.vit.layers, self._with_class_token(visible)))
        return self.mae.decoder(tokens, order).logits, hidden

    def targets(self, images: Tensor) -> Tensor:
        """The pixels of each patch [B, L, patch * patch * C], normalized within the patch (He et al., section 4.1)."""
        pixels = self.mae.patchify(images)
        return (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()

    def patch_losses(self, images: Tensor, prediction: Tensor) -> Tensor:
        """Mean squared error [B, L] of predicted pixels [B, L, patch * patch * C]."""
        return (at_least_float32(prediction) - self.targets(images)).square().mean(-1)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's output on all patches, averaged over patches: [B, C, H, W] to [B, width].

        The same computation as transformers' ViTModel with these parameters.
        """
        return self.encode(images)[:, 1:].mean(1)

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's tokens for all patches, class token first: [B, C, H, W] to [B, 1 + L, width]."""
        vit = self.mae.vit
        return vit.layernorm(self._through(vit.layers, self._with_class_token(self._embed(images))))

    def class_attention(self, images: Tensor) -> Tensor:
        """Attention of the last layer's class token to each patch, with all patches visible: [B, C, H, W] to [B, L].

        The mean over heads. It sums to 1 together with the class token's attention to itself, which is left out.
        """
        layers = self.mae.vit.layers
        tokens = self._through(layers[:-1], self._with_class_token(self._embed(images)))
        attention, normalized = layers[-1].attention, layers[-1].layernorm_before(tokens)
        by_head = (len(images), -1, attention.num_attention_heads, attention.head_dim)
        queries = attention.q_proj(normalized[:, :1]).view(by_head).transpose(1, 2)
        keys = attention.k_proj(normalized).view(by_head).transpose(1, 2)
        weights = at_least_float32(queries @ keys.transpose(2, 3) * attention.scaling).softmax(-1)
        return weights[:, :, 0, 1:].mean(1)

    def _embed(self, images: Tensor) -> Tensor:
        """Embed patches and their positions: [B, C, H, W] to [B, L, width]."""
        embeddings = self.mae.vit.embeddings
        return embeddings.patch_embeddings(images) + embeddings.position_embeddings[:, 1:]

    def _with_class_token(self, patches: Tensor) -> Tensor:
        embeddings = self.mae.vit.embeddings
        first = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        return torch.cat([first.expand(len(patches), -1, -1), patches], dim=1)

    @staticmethod
    def _through(layers: nn.ModuleList, tokens: Tensor) -> Tensor:
        for layer in layers:
            tokens = layer(tokens)
        return tokens


def initialize_weights(mae: ViTMAEForPreTraining) -> None:
    """Initialize weights as in the MAE paper's code: fixed sine-cosine positions, Xavier-uniform linear layers.

    transformers 5.23 leaves every position embedding at 0: it considers the embeddings initialized once their
    projection is, and clears the decoder's positions after setting them.
    """
    for module in mae.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    embeddings = mae.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    mae.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)


class MaskingNetwork(nn.Module):
    """Computes a logit for hiding each patch from the patch, its position and the whole image.

    Args:
        image_size: pixels per side.
        channels: number of the images' channels.
        patch_size: pixels per side.
        width: width of the patch embeddings.
        temperature: divisor of the logits; above 1 the probabilities are closer to each other.
    """

    def __init__(self, image_size: int, channels: int, patch_size: int, width: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.embed = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        self.mix = nn.Linear(2 * width, width)
        self.logit = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, L]."""
        patches = nn.functional.gelu(self.embed(images).flatten(2).transpose(1, 2) + self.position)
        context = patches.mean(1, keepdim=True).expand_as(patches)
        mixed = nn.functional.gelu(self.mix(torch.cat([patches, context], dim=-1)))
        return at_least_float32(self.logit(mixed).squeeze(-1)) / self.temperature
