"""Modules for tests of what a loss may do, with what people's modules have beside ``forward``."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import ViTConfig, ViTModel


def squares(tensors):
    return sum(tensor.square().sum() for tensor in tensors)


class Strength(nn.Module):
    """The upper level: the strength of a penalty, to be read in several ways."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(-1.0))
        self.by_lambda = lambda: self.log.exp()

    @property
    def value(self):
        return self.log.exp()

    def method(self):
        return self.log.exp()

    def forward(self):
        return self.log.exp()


class Network(nn.Module):
    """Two layers, with what models have beside ``forward``."""

    def __init__(self, wrapped=lambda layer: layer):
        super().__init__()
        self.first, self.last = wrapped(nn.Linear(4, 3)), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

    def get_input_embeddings(self):
        return self.first

    def penalty(self):
        return squares(self.parameters())

    @property
    def norm(self):
        return squares(self.parameters()).sqrt()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x))).sum(1, keepdim=True)


class Wrapper(nn.Module):
    """Hands on to its module what it lacks, as PEFT does."""

    def __init__(self, module):
        super().__init__()
        self.base = module

    def forward(self, x):
        return self.base(x)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class Normalized(nn.Module):
    """``weight_norm`` of a linear layer by elementary operations: torch's own second derivative is wrong."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(4, 2)
        self.bias = nn.Parameter(layer.bias.detach())
        self.size = nn.Parameter(layer.weight.detach().norm(dim=1, keepdim=True))
        self.direction = nn.Parameter(layer.weight.detach())

    @property
    def weight(self):
        return self.size * self.direction / self.direction.square().sum(1, keepdim=True).sqrt()

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].sum(1, keepdim=True)


class Softplus(nn.Module):
    def forward(self, value):
        return F.softplus(value)


class Scaled(nn.Linear):
    """A linear layer with a buffer."""

    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, x):
        return super().forward(x) * self.scale


class Centred(nn.Linear):
    """Assigns a buffer anew whenever it is called, as DINO does with its centre."""

    def __init__(self):
        super().__init__(4, 1)
        self.register_buffer("center", torch.zeros(1))

    def forward(self, x):
        out = super().forward(x)
        shifted = out - self.center
        self.center = 0.9 * self.center + 0.1 * out.detach().mean(0)
        return shifted


class Counting(Scaled):
    """Changes its buffer in place whenever it is called."""

    def forward(self, x):
        out = nn.Linear.forward(self, x) * self.scale.clone()
        with torch.no_grad():
            self.scale.mul_(0.9).add_(0.1)
        return out


def linear():
    return nn.Linear(4, 1)


def sequential():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def batch_normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))


def vit():
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = ViTConfig(image_size=2, patch_size=1, num_channels=1, **sizes, **dropout)
    return ViTModel(config, add_pooling_layer=False).to(torch.float64)


def frozen_bias():
    layer = nn.Linear(4, 1)
    layer.bias.requires_grad_(False)
    return layer


def parameters(kind, *values):
    """Makes a container of scalar parameters."""
    return lambda: kind(nn.Parameter(torch.tensor(value)) for value in values)


def strengths():
    """Two strengths in a dictionary."""
    return nn.ParameterDict({"log": nn.Parameter(torch.tensor(-1.0)), "more": nn.Parameter(torch.tensor(0.5))})


def shared_buffer(kind):
    """Makes two levels of which the upper one has the lower one's buffer."""

    def make():
        torch.manual_seed(1)
        modules = {"fit": kind(), "up": Strength()}
        modules["up"].register_buffer("scale", modules["fit"].scale)
        return modules

    return make


def making(fit, up):
    """Makes both levels' modules, the same at every call."""

    def make():
        torch.manual_seed(1)
        return {"fit": fit(), "up": up()}

    return make


class Weight(nn.Sequential):
    """The weight of an example by its loss, as in Meta-Weight-Net."""

    def __init__(self):
        super().__init__(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), nn.Sigmoid())


class Checkpointed(Network):
    """Computes its first layer again in the backward pass."""

    def forward(self, x):
        return self.last(checkpoint(lambda z: torch.tanh(self.first(z)), x, use_reentrant=False))


class Dora(nn.Module):
    """A weight of learned length, whose direction's norm is held constant (Liu et al. 2024)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("base", torch.randn(2, 4))
        self.size, self.a, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((2, 1), (1, 4), (2, 1)))

    def forward(self, x):
        weight = self.base + self.b @ self.a
        return F.linear(x, self.size * weight / weight.norm(dim=1, keepdim=True).detach())


class Rounded(nn.Linear):
    """Rounds its weight, with the derivative of the identity."""

    def __init__(self):
        super().__init__(4, 1)

    def forward(self, x):
        rounded = self.weight + ((4 * self.weight).round() / 4 - self.weight).detach()
        return F.linear(x, rounded, self.bias)


class Student(nn.Module):
    """A network with a frozen teacher of the same kind."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Network(), Network().requires_grad_(False)

    def forward(self, x):
        return self.student(x)


class OnceSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()


class TwiceSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].cos()


class Sine(Network):
    def __init__(self, sine=torch.sin):
        super().__init__()
        self.sine = sine

    def forward(self, x):
        return self.last(self.sine(self.first(x)))
