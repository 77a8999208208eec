"""Running mean and spread of a learning signal, and the second moment of a gradient, to be trained down."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = [
    "RunningMoments",
    "second_moment",
]


class RunningMoments(nn.Module):
    """Exponential averages of a signal's mean and variance, corrected for their start at zero.

    They are scalars, so a batch of another size does not disturb them. Read them before `update`: an average that has
    seen the current draw is not independent of it, and shrinks the gradient (by `decay` for one Bernoulli).

    >>> import torch
    >>> moments = RunningMoments(decay=0.9)
    >>> moments.update(torch.tensor([1.0, 3.0]))
    >>> moments.mean.item(), moments.deviation.item()
    (2.0, 1.0)
    """

    sums: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        # weight, weighted mean, weighted variance
        self.register_buffer("sums", torch.zeros(3))

    @property
    def mean(self) -> Tensor:
        """Scalar; zero before the first update."""
        weight, mean, _ = self.sums.clone()
        return torch.where(weight > 0, mean / weight.clamp(min=1e-12), mean)

    @property
    def deviation(self) -> Tensor:
        """Scalar standard deviation about the running mean; zero before the first update."""
        weight, _, variance = self.sums.clone()
        return torch.where(weight > 0, variance / weight.clamp(min=1e-12), variance).sqrt()

    @torch.no_grad()
    def update(self, signal: Tensor) -> None:
        """Take in a signal of any shape."""
        signal = signal.detach().to(self.sums)
        centre = torch.where(self.sums[0] > 0, self.mean, signal.mean())
        new = torch.stack([torch.ones_like(centre), signal.mean(), (signal - centre).square().mean()])
        self.sums.mul_(self.decay).add_((1 - self.decay) * new)


def second_moment(estimate: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """A scalar whose gradient is that of the sum of squares of `estimate`, on `parameters` alone.

    An unbiased estimate has a mean that no control variate changes, so this gradient is that of its variance. None if
    it depends on no parameter that is to be trained. The graph of `estimate` may reach other
    parameters; the scalar's does not.

    >>> import torch
    >>> weight, other = torch.nn.Parameter(torch.tensor(2.0)), torch.tensor(3.0, requires_grad=True)
    >>> second_moment(weight * other, [weight]).backward()
    >>> weight.grad, other.grad
    (tensor(36.), None)
    """
    own = [parameter for parameter in parameters if parameter.requires_grad]
    if not own or not estimate.requires_grad:
        return None
    gradients = torch.autograd.grad(estimate.square().sum(), own, retain_graph=True, allow_unused=True)
    pairs = [(g, p) for g, p in zip(gradients, own, strict=True) if g is not None]
    return (
        torch.stack([(gradient.detach() * parameter).sum() for gradient, parameter in pairs]).sum() if pairs else None
    )
