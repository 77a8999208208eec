"""How a sum over joint values is shared out among them: probabilities, one draw, or the highest alone, by a gradient.

The gradient of a log-sum with respect to the log-probability of a value is its probability. With sums whose backward
pass draws one value, or with maxima, it is one at the value drawn, or at the highest, and zero elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_discrete.components import Component, Names, contract, symbol_of, unpacked
from pyro_discrete.elimination import Elimination, Reduce, log_sum_exp
from pyro_discrete.enumerated_sites import Marginalise

__all__ = ["highest", "random_value", "shares"]


def highest(table: Tensor, dim: int) -> Tensor:
    """The largest value along a dim."""
    return table.max(dim).values


class _RandomValue(torch.autograd.Function):
    """A log-sum whose backward pass goes to one value, drawn by its share."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, dim: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table)
        ctx.dim = dim
        return log_sum_exp(table, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (table,) = ctx.saved_tensors
        noise = torch.empty_like(table).exponential_().log().neg()  # Gumbel
        chosen = (table + noise).argmax(ctx.dim, keepdim=True)
        return torch.zeros_like(table).scatter(ctx.dim, chosen, gradient.unsqueeze(ctx.dim)), None


def random_value(table: Tensor, dim: int) -> Tensor:
    """The log-sum along a dim; its gradient is one at a value drawn by its share, and zero at the others."""
    return _RandomValue.apply(table, dim)  # type: ignore[return-value]


def shares(component: Component, names: Names, enumerated: Marginalise, reduce: Reduce) -> dict[str, Tensor]:
    """For each enumerated site of a component, its values' shares: `[(rows,) *batch, values]`, in float64."""
    for factor in component.factors:
        dims = factor.value._pyro_dims  # type: ignore[attr-defined]
        factor.value = factor.value.detach().double().requires_grad_(factor.name in enumerated.own)
        factor.value._pyro_dims = dims  # type: ignore[attr-defined]
    own = [f for f in component.factors if f.name in enumerated.own]
    with torch.enable_grad():
        total = contract(component, Elimination(reduce)).sum()
        gradients = torch.autograd.grad(total, [f.value for f in own])
    found = {}
    for factor, gradient in zip(own, gradients, strict=True):
        dims: str = factor.value._pyro_dims  # type: ignore[attr-defined]
        symbol = symbol_of(enumerated.own[factor.name])
        summed = [i for i, d in enumerate(dims) if d in factor.symbols and d != symbol]
        share = gradient.sum(summed) if summed else gradient
        kept = "".join(d for d in dims if d not in factor.symbols or d == symbol)
        if symbol in kept:
            share = share.movedim(kept.index(symbol), -1)
            kept = kept.replace(symbol, "")
        else:
            share = share.unsqueeze(-1)  # a support of one value
        found[factor.name] = unpacked(share, kept, names)
    return found
