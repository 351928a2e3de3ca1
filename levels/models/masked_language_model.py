"""The masked language model that is pretrained, from `transformers`, and the masking network that guides it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from multilevel.levels.models.attention import use_attention
from multilevel.problems.evaluation.precision import at_least_float32

#: Numbers of the special tokens; words follow.
PADDING, CLASS, MASK, UNKNOWN = range(4)
SPECIAL = 4


class MaskedLanguageModel(nn.Module):
    """BertForMaskedLM (Devlin et al. 2019) with given hidden words and the interface of ``MaskedAutoencoder``, where a
    word takes the role of a patch. A hidden word is always replaced by the mask token; there is no dropout, and the
    output layer does not share weights with the embeddings.

    Args:
        words: size of the vocabulary, special tokens included.
        length: L, words per text; shorter texts end in padding, which is neither hidden nor attended to.
        width: width of the encoder.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        mask_ratio: share of a text's words to hide; at least one is hidden, and with two or more words at least one
            stays visible.
    """

    def __init__(self, words: int, length: int, width: int, depth: int, heads: int, mask_ratio: float) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=words,
            max_position_embeddings=1 + length,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PADDING,
            tie_word_embeddings=False,
        )
        self.bert = BertForMaskedLM(config)
        use_attention(self.bert.config)
        self.mask_ratio = mask_ratio
        self.patches = length
        self.hidden_patches = self._count_hidden(torch.tensor(length)).item()

    def reconstruct(self, words: Tensor, scores: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hide the words with the largest scores and predict them.

        Args:
            words: int64 [B, L].
            scores: [B, L].
            gate: [B, L], factor for each word's embedding before the encoder; None leaves the embeddings unchanged.

        Returns:
            Logits [B, L, words of the vocabulary] and the mask [B, L], 1 where hidden.
        """
        ranks = scores.masked_fill(~self.maskable(words), -torch.inf).argsort(1, descending=True).argsort(1)
        hidden = ranks < self._count_hidden((words != PADDING).sum(1, keepdim=True))
        embed = self.bert.bert.embeddings.word_embeddings
        embedded = embed(words) if gate is None else embed(words) * gate[..., None]
        tokens = self._through(torch.where(hidden[..., None], embed.weight[MASK], embedded), words)
        return self.bert.cls(tokens[:, 1:]), hidden.to(scores.dtype)

    def maskable(self, words: Tensor) -> Tensor:
        """Bool [B, L], the words [B, L] that can be hidden: all except padding."""
        return words != PADDING

    def patch_losses(self, words: Tensor, prediction: Tensor) -> Tensor:
        """Cross-entropy [B, L] of logits [B, L, words of the vocabulary]."""
        return F.cross_entropy(at_least_float32(prediction).transpose(1, 2), words, reduction="none")

    def features(self, words: Tensor) -> Tensor:
        """The encoder's output with all words visible, averaged over words: int64 [B, L] to [B, width]."""
        return self.encode(words)[:, 1:].mean(1)

    def encode(self, words: Tensor) -> Tensor:
        """The encoder's tokens with all words visible, class token first: int64 [B, L] to [B, 1 + L, width].

        Padding gets the mean of the words' tokens, so that the mean over all positions equals the mean over words.
        """
        tokens = self._through(self.bert.bert.embeddings.word_embeddings(words), words)
        first, tokens = tokens[:, :1], tokens[:, 1:]
        is_word = (words != PADDING)[..., None]
        mean = (tokens * is_word).sum(1, keepdim=True) / is_word.sum(1, keepdim=True)
        return torch.cat([first, torch.where(is_word, tokens, mean)], dim=1)

    def _through(self, embedded: Tensor, words: Tensor) -> Tensor:
        """Apply the encoder to embedded words [B, L, width] after its class token: [B, 1 + L, width]."""
        bert = self.bert.bert
        first = bert.embeddings.word_embeddings.weight[CLASS].expand(len(words), 1, -1)
        tokens = bert.embeddings(inputs_embeds=torch.cat([first, embedded], dim=1))
        attended = F.pad(words != PADDING, (1, 0), value=True)[:, None, None, :]
        for layer in bert.encoder.layer:
            tokens = layer(tokens, attended)
        return tokens

    def _count_hidden(self, words: Tensor) -> Tensor:
        """The number of words to hide out of ``words``."""
        return (self.mask_ratio * words).round().clamp(min=1).minimum((words - 1).clamp(min=1)).long()


class WordMaskingNetwork(nn.Module):
    """Computes a logit for hiding each word from the word, its position and the whole text.

    Args:
        words: size of the vocabulary, special tokens included.
        length: number of words in a text.
        width: width of the word embeddings.
        temperature: divisor of the logits; above 1 the probabilities are closer to each other.
    """

    def __init__(self, words: int, length: int, width: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.embed = nn.Embedding(words, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.mix = nn.Linear(2 * width, width)
        self.logit = nn.Linear(width, 1)

    def forward(self, words: Tensor) -> Tensor:
        """int64 [B, L] to logits [B, L]; the logits of padding are meaningless."""
        embedded, is_word = F.gelu(self.embed(words) + self.position), (words != PADDING)[..., None]
        context = ((embedded * is_word).sum(1, keepdim=True) / is_word.sum(1, keepdim=True)).expand_as(embedded)
        mixed = F.gelu(self.mix(torch.cat([embedded, context], dim=-1)))
        return at_least_float32(self.logit(mixed).squeeze(-1)) / self.temperature
