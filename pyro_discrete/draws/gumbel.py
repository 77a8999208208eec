"""Gumbel and logistic noise, truncated and conditional; draws with and without replacement by perturbed logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.errors import SettingError

__all__ = [
    "GumbelTopK",
    "conditional_gumbel",
    "conditional_logistic",
    "gumbel_like",
    "gumbel_max",
    "gumbel_top_k",
    "log_completion",
    "log_prob_ordered",
    "log_prob_unordered",
    "logistic_like",
    "truncated",
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
    return truncated(location + gumbel_like(location), bound)


def truncated(z: Tensor, bound: Tensor) -> Tensor:
    r"""A Gumbel draw cut down to less than `bound`, :math:`-\log(e^{-\mathrm{bound}} + e^{-z})`, with slopes of slopes.

    Far below its bound a draw stays as it is: torch's slope of that slope is no number there.

    >>> truncated(torch.tensor([-1e4, 0.0, -torch.inf]), torch.tensor(0.0))
    tensor([-1.0000e+04, -6.9315e-01,        -inf])
    """
    far = bound - z > math.log(torch.finfo(z.dtype).max) / 2
    return torch.where(far, z, -torch.logaddexp(-bound, -torch.where(far, bound.detach(), z)))


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
    return torch.where(hard > 0, largest, truncated(logits + noise, largest))


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


LARGEST_SET = 16
"""2^k subsets are summed over for the probability of a set."""


class GumbelTopK(NamedTuple):
    """k draws without replacement.

    - `indices` `[..., k]`: in the order in which they are drawn.
    - `perturbed` `[..., k]`: their Gumbel-perturbed logits, falling; the log-probabilities of the draws' inclusion
      follow from the last one (Kool et al. 2019, section 4).
    """

    indices: Tensor
    perturbed: Tensor


def _check(k: int, categories: int, largest: int | None = None) -> None:
    most = categories if largest is None else min(categories, largest)
    if not 1 <= k <= most:
        raise SettingError(f"k={k} draws without replacement of {categories} categories given, 1 to {most} expected.")


def gumbel_top_k(logits: Tensor, k: int) -> GumbelTopK:
    """k draws without replacement from the categorical with these logits `[..., categories]`, normalised or not.

    One after the other: each from what is left, in proportion to its probability. Categories of logit -inf come last.
    Raises `SettingError` unless k is 1 to the number of categories.

    Source: Vieira (2014), Gumbel-max trick and weighted reservoir sampling; Kool, van Hoof and Welling (2019),
    Stochastic beams and where to find them.

    >>> import torch
    >>> gumbel_top_k(torch.tensor([9.0, 0.0, 9.0, -torch.inf]), 3).indices[2].item()
    1
    """
    _check(k, logits.shape[-1])
    top = (logits + gumbel_like(logits)).topk(k, -1)
    return GumbelTopK(top.indices, top.values)


def _chosen_and_outside(logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the chosen `[..., k]`, and the logsumexp of the rest `[...]`."""
    shape = torch.broadcast_shapes(logits.shape[:-1], indices.shape[:-1])
    logits, indices = logits.expand(*shape, logits.shape[-1]), indices.expand(*shape, indices.shape[-1])
    taken = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, indices, True)
    outside = logits.masked_fill(taken, torch.finfo(logits.dtype).min).logsumexp(-1)
    return logits.gather(-1, indices), outside


def log_prob_ordered(logits: Tensor, indices: Tensor) -> Tensor:
    r"""Log-probability `[...]` that draws without replacement are `indices` `[..., k]`, in this order.

    .. math:: \sum_i \Big(\mathrm{logit}_{b_i} - \log \sum_{j \notin b_1 \ldots b_{i-1}} e^{\mathrm{logit}_j}\Big)

    Differentiable in `logits` `[..., categories]`; what is left is summed, not one minus what is gone.

    Source: Plackett (1975), Luce (1959); Kool, van Hoof and Welling (2019), equation 3.

    >>> import torch
    >>> log_prob_ordered(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([1, 0])).exp()  # 0.3 * 0.5 / 0.7
    tensor(0.2143)
    """
    _check(indices.shape[-1], logits.shape[-1])
    chosen, outside = _chosen_and_outside(logits, indices)
    left = torch.logaddexp(chosen.flip(-1).logcumsumexp(-1).flip(-1), outside.unsqueeze(-1))
    return (chosen - left).sum(-1)


def log_prob_unordered(logits: Tensor, indices: Tensor) -> Tensor:
    """Log-probability `[...]` that draws without replacement are the set `indices` `[..., k]`, in whatever order.

    Differentiable in `logits` `[..., categories]`. A sum over 2^k subsets (not k! orders): k is at most 16, or
    `SettingError` is raised.

    Source: Kool, van Hoof and Welling (2020), Estimating gradients for discrete random variables by sampling without
    replacement, appendix B.

    >>> import torch
    >>> log_prob_unordered(torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([1, 0])).exp()
    tensor(0.5143)
    """
    _check(indices.shape[-1], logits.shape[-1], LARGEST_SET)
    chosen, outside = _chosen_and_outside(logits.log_softmax(-1), indices)
    return log_completion(chosen.movedim(-1, 0), outside)[0]


def log_completion(log_p: Tensor, log_outside: Tensor) -> Tensor:
    r"""How likely it is that draws without replacement, after a subset C of S is gone, are the rest of S.

    With B(S) = 1 and .. math:: B(C) = \sum_{t \in S \setminus C} \frac{q(t)}{1 - q(C)} B(C \cup t)

    p(S) is B of the empty set, and :math:`p^{\setminus C}(S \setminus C)` is B(C).

    - `log_p` `[k, ...]`: log-masses of the elements of S. `log_outside` `[...]`: log of the mass outside of S.

    Returns log B `[2^k, ...]`, a subset's number having the bits of its elements.

    >>> q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    >>> log_completion(q[:2], q[2]).exp()[0].item()  # 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7
    0.5142857142857142
    """
    k = len(log_p)
    element = torch.arange(k, device=log_p.device)
    subset = torch.arange(2**k, device=log_p.device)
    missing = (subset.unsqueeze(1) >> element) & 1 == 0  # [2^k, k]
    out = torch.zeros((2**k, *log_p.shape[1:]), dtype=log_p.dtype, device=log_p.device)
    by_size = (~missing).sum(1).argsort(stable=True).split([math.comb(k, size) for size in range(k + 1)])
    for of_size in by_size[-2::-1]:  # a subset's value needs those of the subsets with one element more
        lacks = missing[of_size].reshape((len(of_size), k) + (1,) * log_outside.dim())
        mass = torch.where(lacks, log_p, float("-inf"))  # [subsets, k, ...]
        larger = out[of_size.unsqueeze(1) | 2**element]
        remaining = torch.logaddexp(mass.logsumexp(1), log_outside)  # log (1 - q(C)), without subtracting
        out[of_size] = (mass + larger).logsumexp(1) - remaining
    return out
