"""How soft values are scored: means of draws and under weights, densities of relaxed draws, the point of scoring."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Point",
    "bounded",
    "expectation",
    "log_density",
    "log_left",
    "mean",
]


def bounded(tensor: Tensor) -> Tensor:
    """The tensor with infinities made large finite numbers, so that a weight of zero makes a zero term of them.

    Multiples of these, such as a slope times a learning signal, are finite too.
    """
    if not tensor.is_floating_point():
        return tensor
    largest = torch.finfo(tensor.dtype).max ** 0.8
    return tensor.clamp(-largest, largest)


def expectation(weights: Tensor, values: Tensor) -> Tensor:
    """`sum_k w_k v_k` over the last dim; the dtype of `values` if that is floating, else of `weights`."""
    total = (weights * bounded(values)).sum(-1)
    return total.to(values.dtype) if values.is_floating_point() else total


def mean(logits: Tensor, *, one_hot: bool) -> Tensor:
    """The mean of a discrete draw, in the shape of its logits: of a one-hot vector `[..., categories]`, or of bits.

    >>> mean(torch.zeros(2), one_hot=False), mean(torch.zeros(2), one_hot=True)
    (tensor([0.5000, 0.5000]), tensor([0.5000, 0.5000]))
    """
    return logits.softmax(-1) if one_hot else logits.sigmoid()


@dataclass(frozen=True)
class Point:
    """What a relaxed site is scored at, in the guide and in the model.

    - `tensor`, in the shape of the site's logits. Without a temperature: weights at which the log-mass is taken, in
      place of the site's own; at the guide's probabilities the difference of guide and model is the analytic KL. With
      one: the draw before it was squashed, at which the density of the relaxed distribution is taken.
    - `temperature`, `prior_temperature`: of that density in the guide, and in the model.
    - `vertex`: of a structure, the soft vertex that the program's value stands for, which may say more than the value.
    """

    tensor: Tensor
    temperature: Tensor | float | None = None
    prior_temperature: Tensor | float | None = None
    vertex: Tensor | None = None

    @property
    def in_model(self) -> Point:
        """The point as the model's site has it."""
        return Point(self.tensor, self.prior_temperature, vertex=self.vertex)

    @property
    def at_value(self) -> Point | None:
        """The point if the site is scored at its value: None, or a structure's vertex."""
        return None if self.vertex is None else Point(self.vertex, vertex=self.vertex)


def log_density(unsquashed: Tensor, logits: Tensor, temperature: Tensor | float, *, one_hot: bool) -> Tensor:
    r"""Log-density of a relaxed draw before it is squashed: `[...]`, of `[..., categories]` or of bits `[...]`.

    Of the logit of a relaxed bit; and of the log-weights of a relaxed one-hot vector (shifted by whatever is common to
    them, as `unsquashed` may be), with noise :math:`l = \mathrm{logits} - t\, y`:

    .. math:: \log t - l_1 - 2 \log(1 + e^{-l_1}), \; l_1 = t\, y - \mathrm{logit}; \qquad
              \log (n - 1)! + (n - 1) \log t + \sum_k l_k - n \log \sum_k e^{l_k}

    Unlike the density of the weights themselves it neither under- nor overflows at low temperatures. Categories
    without probability are left out.

    Source: Maddison, Mnih and Teh (2017), The Concrete distribution, appendix B and C (ExpConcrete, equation 24).

    >>> import torch
    >>> from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
    >>> y, phi = torch.tensor(1.3), torch.tensor(-0.4)
    >>> reference = LogitRelaxedBernoulli(torch.tensor(0.5), logits=phi).log_prob(y)
    >>> bool((log_density(y, phi, 0.5, one_hot=False) - reference).abs() < 1e-6)
    True
    """
    log_t = torch.as_tensor(temperature, dtype=unsquashed.dtype, device=logits.device).log()
    if not one_hot:
        noise = temperature * bounded(unsquashed) - bounded(logits)
        return log_t - noise - 2 * F.softplus(-noise)
    possible = (unsquashed > -math.inf) & (logits > -math.inf)
    noise = torch.where(possible, logits - temperature * torch.where(possible, unsquashed, 0.0), -math.inf)
    number = possible.sum(-1).to(unsquashed.dtype)
    total = torch.where(possible, noise, 0.0).sum(-1) - number * noise.logsumexp(-1)
    return number.lgamma() + (number - 1) * log_t + total


def log_left(left: Tensor, logits: Tensor) -> Tensor:
    """`log sum_j left_j exp(logit_j)` `[...]`, of shares `left` `[..., items]` of which one at least is positive.

    What is gone (a share of zero) weighs nothing however large its logit is, and still has the slope that it would
    have if something of it were left: that slope is held below overflow.

    >>> log_left(torch.tensor([0.0, 0.5]), torch.tensor([1000.0, 0.0]))
    tensor(-0.6931)
    """
    top = torch.where(left > 0, logits, -math.inf).detach().amax(-1, keepdim=True)
    most = math.log(torch.finfo(logits.dtype).max) / 2
    return (left * (logits - top).clamp(max=most).exp()).sum(-1).log() + top.squeeze(-1)
