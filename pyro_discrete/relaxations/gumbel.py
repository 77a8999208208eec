"""Gumbel and logistic noise, truncated and conditional; draws by the largest of perturbed logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "conditional_gumbel",
    "conditional_logistic",
    "gumbel_like",
    "gumbel_max",
    "logistic_like",
    "truncated_gumbel",
    "uniform_like",
]


def uniform_like(tensor: Tensor) -> Tensor:
    """Uniform on (0, 1), ends excluded: a zero (one in 2^24 draws in float32) becomes half the next number."""
    return torch.rand_like(tensor, requires_grad=False).clamp(min=torch.finfo(tensor.dtype).eps / 4)


def gumbel_like(tensor: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and device of `tensor`."""
    return -(-uniform_like(tensor).log()).log()


def logistic_like(tensor: Tensor) -> Tensor:
    """Standard logistic noise of the shape, dtype and device of `tensor`."""
    u = uniform_like(tensor)
    return u.log() - (-u).log1p()


def truncated_gumbel(location: Tensor, bound: Tensor) -> Tensor:
    r"""A Gumbel draw of this location, given that it is at most `bound`: in the shape of both.

    .. math:: -\log\big(e^{-\mathrm{bound}} + e^{-G}\big), \quad G \sim \mathrm{Gumbel}(\mathrm{location})

    Differentiable in both with the noise held. A location of -inf gives -inf.

    Source: Maddison, Tarlow and Minka (2014), A* sampling, appendix.

    >>> import torch
    >>> bool((truncated_gumbel(torch.zeros(1000), torch.tensor(-0.5)) <= -0.5).all())
    True
    """
    location, bound = torch.broadcast_tensors(location, bound)
    return -torch.logaddexp(-bound, -(location + gumbel_like(location)))


def conditional_gumbel(logits: Tensor, hard: Tensor) -> Tensor:
    """`logits` plus Gumbel noise, given that the largest is where `hard` is one: both `[..., categories]`.

    The largest is a Gumbel draw at the logsumexp of the logits, whichever category it is of; the others are truncated
    there. Differentiable in the logits with the noise (and `hard`) held.

    Source: Maddison, Tarlow and Minka (2014), A* sampling, section 3; Paulus, Maddison and Krause (2021), equation 7.

    >>> import torch
    >>> hard = torch.tensor([0.0, 0.0, 1.0])
    >>> conditional_gumbel(torch.tensor([5.0, 0.0, -5.0]), hard).argmax().item()
    2
    """
    noise = gumbel_like(logits)
    largest = (noise * hard).sum(-1, keepdim=True) + logits.logsumexp(-1, keepdim=True)
    others = -torch.logaddexp(-largest, -(logits + noise))
    return torch.where(hard > 0, largest, others)


def conditional_logistic(logits: Tensor, hard: Tensor, uniform: Tensor) -> Tensor:
    r"""`logits` plus logistic noise, given whether that is positive (`hard`, zero or one): differentiable in `logits`.

    With s = +1 for a one and -1 for a zero it is :math:`s (\log(1 + u e^{s \phi}) - \log(1 - u))`, which is the
    published :math:`\log \frac{p}{1-p} + \log \frac{v'}{1-v'}` without its cancellations.

    >>> import torch
    >>> conditional_logistic(torch.tensor([50.0, -50.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))
    tensor([-0.6931,  0.6931])
    """
    sign = 2 * hard - 1
    return sign * (F.softplus(sign * logits + uniform.log()) - (-uniform).log1p())


def gumbel_max(logits: Tensor) -> Tensor:
    """A draw of the categorical with these logits `[..., categories]` (normalised or not), as an index `[...]`.

    Source: Gumbel (1954); Yellott (1977); Maddison, Tarlow and Minka (2014), A* sampling.

    >>> import torch
    >>> gumbel_max(torch.tensor([0.0, -torch.inf]).expand(5, 2))
    tensor([0, 0, 0, 0, 0])
    """
    return (logits + gumbel_like(logits)).argmax(-1)
