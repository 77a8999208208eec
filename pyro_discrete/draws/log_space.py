"""Sums and products in log space, right where nothing has mass, with gradients; along chains in logarithmic depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LARGEST",
    "Reduce",
    "log_cumsum_exp",
    "log_product",
    "log_sum_exp",
    "masked_log",
    "near_zero",
    "running",
]


Reduce = Callable[[Tensor, int], Tensor]


LARGEST = 1e4
"""Noise of what cannot be stands at a log-probability of minus this: truncated noise at -inf has no gradient."""


def masked_log(x: Tensor) -> Tensor:
    """`log(x)`, and -inf with a gradient of zero where x is not positive.

    >>> masked_log(torch.tensor([1.0, 0.0]))
    tensor([0., -inf])
    """
    nothing = x <= 0
    return torch.where(nothing, -math.inf, torch.where(nothing, 1.0, x).log())


def log_sum_exp(table: Tensor, dim: int) -> Tensor:
    """`log(sum(exp(table)))` over one dim; -inf where all is, with a gradient that is zero there."""
    limits = torch.finfo(table.dtype)
    shift = table.detach().amax(dim, keepdim=True).clamp(limits.min, limits.max)
    return masked_log((table - shift).exp().sum(dim)) + shift.squeeze(dim)


def near_zero(tables: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Tables less their largest elements over `dims`, and these (kept as dims of 1): long sums keep their digits."""
    largest = tables.detach().amax(dims, keepdim=True).clamp(min=torch.finfo(tables.dtype).min)
    return tables - largest, largest


def log_product(matrices: Tensor, reduce: Reduce = log_sum_exp) -> tuple[Tensor, Tensor]:
    """The product in log space of matrices `[n, S, S, *batch]`, in log2(n) rounds: two neighbours at once.

    Returns it less its largest element, `[S, S, *batch]`, and what was subtracted, `[*batch]`. Another `reduce` gives
    maxima, or draws.

    Source: Särkkä and García-Fernández (2021), Temporal parallelization of Bayesian smoothers.

    >>> matrix, scale = log_product(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [0.0, 1.0]]]).log())
    >>> (matrix + scale).exp().round().tolist()
    [[1.0, 3.0], [3.0, 7.0]]
    """
    matrices, largest = near_zero(matrices, (1, 2))
    taken = largest.sum((0, 1, 2))
    while len(matrices) > 1:
        paired = len(matrices) // 2 * 2
        table = matrices[0:paired:2].unsqueeze(3) + matrices[1:paired:2].unsqueeze(1)
        matrices, largest = near_zero(torch.cat([reduce(table, 2), matrices[paired:]]), (1, 2))
        taken = taken + largest.sum((0, 1, 2))
    return matrices[0], taken


def running(
    start: Tensor,
    maps: Tensor,
    apply: Callable[[Tensor, Tensor], Tensor],
    compose: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """All states of a recursion, `x_0 = start`, `x_{i + 1} = apply(x_i, maps[i])`, in log2(n) rounds: `[n, ...]`.

    Of n maps `[n, ...]` the last is not applied: state i is what map i is given. `compose(first, second)` is the map
    that does both; `apply` and `compose` take any number of states and maps at once, along their first dim.

    Source: Blelloch (1990), Prefix sums and their applications (up-sweep, down-sweep).

    >>> running(torch.tensor(1), torch.tensor([2, 3, 4, 5]), torch.mul, torch.mul)
    tensor([ 1,  2,  6, 24])
    """
    levels = [maps]
    while len(levels[-1]) > 2:
        last = levels[-1]
        paired = len(last) // 2 * 2
        levels.append(torch.cat([compose(last[0:paired:2], last[1:paired:2]), last[paired:]]))
    states = start.unsqueeze(0)
    for level in reversed(levels):
        pairs = len(level) // 2
        after = apply(states[:pairs], level[0 : 2 * pairs : 2])
        states = torch.cat([torch.stack([states[:pairs], after], 1).flatten(0, 1), states[pairs:]])
    return states


def log_cumsum_exp(x: Tensor) -> Tensor:
    """`log(cumsum(exp(x)))` over the last dim, of numbers above -inf, that can be differentiated twice.

    The slope of torch's own goes by the logarithm of the gradient that arrives, whose slope is no number where that is
    zero: as where a control variate starts at zero.

    >>> log_cumsum_exp(torch.tensor([0.0, 0.0])).exp()
    tensor([1., 2.])
    """
    return _LogCumsumExp.apply(x)  # type: ignore[return-value]


class _LogCumsumExp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.logcumsumexp(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Of each x the sum over totals from its own on of gradient times exp(x - total), by a recursion from the end.

        Its factors, exp(total - next total), are at most one, so that nothing overflows.
        """
        x, total = ctx.saved_tensors
        shrunk = (total[..., :-1] - total[..., 1:]).exp()
        shrunk = torch.cat([shrunk, torch.zeros_like(total[..., :1])], -1)  # the last one has none after it
        maps = torch.stack([shrunk, gradient], -1).movedim(-2, 0).flip(0)  # [n, ..., 2]: c = factor * c + gradient
        start = torch.zeros_like(gradient[..., 0])
        before = running(start, maps, _affine, _after_each_other)
        return (x - total).exp() * _affine(before, maps).flip(0).movedim(0, -1)


def _affine(c: Tensor, maps: Tensor) -> Tensor:
    return maps[..., 0] * c + maps[..., 1]


def _after_each_other(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first[..., 0] * second[..., 0], second[..., 0] * first[..., 1] + second[..., 1]], -1)
