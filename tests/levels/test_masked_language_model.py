"""The masked language model against transformers' own, and its hypergradient against plain autograd."""

from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertForMaskedLM

from multilevel import Engine, Graph
from multilevel.levels import Finetune, MaskedPretrain, MaskLearning
from multilevel.levels.masks import POLICIES, MaskView
from multilevel.levels.models.masked_language_model import (
    CLASS,
    MASK,
    PADDING,
    SPECIAL,
    MaskedLanguageModel,
    WordMaskingNetwork,
)
from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.classification import ClassificationTask
from multilevel.solvers import Identity

generator = torch.Generator().manual_seed(0)
WORDS = torch.randint(SPECIAL, 20, (5, 8), generator=generator)
SHORT = WORDS.clone()
SHORT[0, 3:], SHORT[1, 1:], SHORT[2, 7:] = PADDING, PADDING, PADDING
SCORES = torch.rand(5, 8, generator=generator)
LABELS = torch.randint(3, (5,), generator=generator)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedLanguageModel(words=20, length=8, width=16, depth=2, heads=2, mask_ratio=0.5)


@pytest.fixture
def bert(model):
    """transformers' own model with the same parameters, with its own attention."""
    bert = BertForMaskedLM(BertConfig(**model.bert.config.to_diff_dict())).eval()
    bert.load_state_dict(model.bert.state_dict())
    assert bert.config._attn_implementation == "sdpa"
    return bert


@pytest.mark.parametrize("words", [WORDS, SHORT])
def test_encode_is_berts_encoder_and_features_are_the_mean_over_words(model, bert, words):
    tokens = F.pad(words, (1, 0), value=CLASS)
    seen = tokens != PADDING
    expected = bert.bert(input_ids=tokens, attention_mask=seen.long()).last_hidden_state
    torch.testing.assert_close(model.encode(words)[seen], expected[seen], rtol=1e-5, atol=1e-5)
    for row, features in enumerate(model.features(words)):
        mean = expected[row, 1:][seen[row, 1:]].mean(0)
        torch.testing.assert_close(features, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", [WORDS, SHORT])
@pytest.mark.parametrize("gate", [None, torch.ones(5, 8)])
def test_the_loss_of_hidden_words_is_berts(model, bert, words, gate):
    prediction, hidden = model.reconstruct(words, SCORES, gate)
    found = (model.patch_losses(words, prediction) * hidden).sum() / hidden.sum()
    tokens = F.pad(words.masked_fill(hidden == 1, MASK), (1, 0), value=CLASS)
    labels = F.pad(words.masked_fill(hidden == 0, -100), (1, 0), value=-100)
    expected = bert(input_ids=tokens, attention_mask=(tokens != PADDING).long(), labels=labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_words_with_the_largest_scores_are_hidden_and_padding_never(model):
    _, hidden = model.reconstruct(SHORT, SCORES)
    assert hidden.sum(1).tolist() == [2, 1, 4, 4, 4]  # half of 3, 1, 7, 8 and 8; a single word is hidden
    assert model.hidden_patches == 4
    assert not hidden[SHORT == PADDING].any()
    for row, mask, words in zip(SCORES, hidden, SHORT, strict=True):
        seen = row[(mask == 0) & (words != PADDING)]
        assert not len(seen) or row[mask == 1].min() > seen.max()


def test_padding_changes_no_logit_of_the_masking_network():
    torch.manual_seed(0)
    network = WordMaskingNetwork(words=20, length=8, width=4)
    logits = network(SHORT)[0, :3]
    other = SHORT.clone()
    other[0, 3:] = WORDS[0, 3:]
    shorter = WordMaskingNetwork(words=20, length=3, width=4)
    shorter.load_state_dict({**network.state_dict(), "position": network.position[:3]})
    torch.testing.assert_close(logits, shorter(SHORT[:1, :3])[0], rtol=1e-5, atol=1e-6)
    assert (network(other)[0, :3] != logits).all()  # words there do


def test_the_hypergradient_of_the_masking_network_is_that_of_plain_autograd(model):
    """The direct path with the identity for the inverse Hessian, in float64."""
    model, task = model.double(), ClassificationTask(TaskData(("a", "b", "c"), (2, 2, 1)))
    head, network = task.new_head(16).double(), WordMaskingNetwork(20, 8, 4).double()
    data = [(SHORT, LABELS)]
    graph = Graph(
        MaskedPretrain("pretrain", model, policy=POLICIES["topk"](), data=data, solver=Identity()),
        Finetune("finetune", head, task=task, through_encoder=False, data=data, solver=Identity()),
        MaskLearning("mask", network, task=task, data=data),
    )
    assert graph.reads == {"pretrain": ("mask",), "finetune": (), "mask": ("pretrain", "finetune")}
    found = Engine(graph).hypergradient("mask")

    theta, phi = dict(model.named_parameters()), dict(network.named_parameters())
    view = MaskView.of(SimpleNamespace(pretrain=model, mask=network), SHORT)
    with sdpa_kernel(SDPBackend.MATH):  # it has a second derivative
        prediction, hidden = model.reconstruct(SHORT, POLICIES["topk"]().scores(view).detach())
    weights = functional_call(network, phi, (SHORT,)).sigmoid() * hidden
    weights = weights / weights.sum(1, keepdim=True) / len(SHORT)
    lower = (model.patch_losses(SHORT, prediction) * weights).sum()
    slope = torch.autograd.grad(lower, list(theta.values()), create_graph=True, materialize_grads=True)
    upper = F.cross_entropy(head.linear(model.features(SHORT)), LABELS)
    cotangent = torch.autograd.grad(upper, list(theta.values()), materialize_grads=True)
    inner = sum((one * other).sum() for one, other in zip(slope, cotangent, strict=True))
    expected = torch.autograd.grad(-inner, list(phi.values()))
    for name, value in zip(phi, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12)
