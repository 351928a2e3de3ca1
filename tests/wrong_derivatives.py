"""Functions whose derivatives are wrong, missing or cut, each by what is said of it."""

import torch


class Exponential(torch.autograd.Function):
    """exp(x), without a forward derivative; each kind has its own backward pass."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.exp()


class ForwardExponential(torch.autograd.Function):
    """exp(x), as torch.func takes it; each kind has its own ``jvp`` and backward pass."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)
        context.save_for_forward(*inputs)


class StraightThrough(torch.autograd.Function):
    """x rounded to halves, with the derivative of x itself: no derivative of what is computed."""

    @staticmethod
    def forward(context, x):
        return (2 * x).round() / 2

    @staticmethod
    def backward(context, slope):
        return slope


class WrongTwice(Exponential):
    """exp(x): the first derivative is right, the second is 3 exp(x)."""

    @staticmethod
    def backward(context, slope):
        return WrongTwiceBackward.apply(slope, *context.saved_tensors)


class WrongTwiceBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, slope, x):
        context.save_for_backward(slope, x)
        return slope * x.exp()

    @staticmethod
    def backward(context, slope):
        before, x = context.saved_tensors
        return slope * x.exp(), 3 * slope * before * x.exp()


class WrongTwiceForwardToo(ForwardExponential):
    """The same with a forward derivative, which is right."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(context, tangent):
        return tangent * context.saved_tensors[0].exp()

    @staticmethod
    def backward(context, slope):
        return WrongTwiceForwardTooBackward.apply(slope, *context.saved_tensors)


class WrongTwiceForwardTooBackward(torch.autograd.Function):
    @staticmethod
    def forward(slope, x):
        return slope * x.exp()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)
        context.save_for_forward(*inputs)

    @staticmethod
    def jvp(context, slope, x):
        before, point = context.saved_tensors
        return slope * point.exp() + before * point.exp() * x

    @staticmethod
    def backward(context, slope):
        before, x = context.saved_tensors
        return slope * x.exp(), 3 * slope * before * x.exp()


class WrongJvp(ForwardExponential):
    """exp(x) with right reverse derivatives of every order, and a forward derivative of 3 exp(x)."""

    @staticmethod
    def jvp(context, tangent):
        return 3 * tangent * context.saved_tensors[0].exp()

    @staticmethod
    def backward(context, slope):
        return slope * context.saved_tensors[0].exp()


class Once(Exponential):
    """exp(x) with a first derivative alone."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, slope):
        return slope * context.saved_tensors[0].exp()


class Stopped(torch.autograd.Function):
    """x, and no derivative: a stop-gradient that torch does not see."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(context, inputs, output):
        pass

    @staticmethod
    def jvp(context, tangent):
        return torch.zeros_like(tangent)

    @staticmethod
    def backward(context, slope):
        return None


class StoppedInReverse(torch.autograd.Function):
    """The same, without a forward derivative."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, slope):
        return None
