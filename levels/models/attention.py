"""Attention for the autoencoder's blocks, with the fastest kernel for their device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: Up to this many tokens, bfloat16 attention on a CPU takes plain steps: the fused kernel is several times slower at 65
#: tokens, and faster at 577 (heads of 64, torch 2.13, one core with AVX-512).
PLAIN_TOKENS = 257


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **keywords: Any
) -> tuple[Tensor, None]:
    """Attention with the interface of transformers' blocks: query, key and value [B, heads, L, D] to [B, L, heads,
    D]."""
    slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] <= PLAIN_TOKENS
    if not slow or attention_mask is not None or keywords.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **keywords)
    weights = (query @ key.transpose(2, 3) * keywords["scaling"]).softmax(-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).transpose(1, 2), None


def use_attention(*configs: PreTrainedConfig) -> None:
    """Make the blocks with these configurations use ``attention``."""
    for config in configs:
        config._attn_implementation = NAME


NAME = "multilevel"
AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # without a mask, transformers' models attend to padding
