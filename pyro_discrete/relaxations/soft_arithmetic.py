"""Soft indices computed with: the values are pushed through the function, the weights stay; floats are averaged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_discrete.draws.soft_scores import expectation
from pyro_discrete.relaxations.refusal import refusal
from pyro_discrete.relaxations.soft_index import SoftBit, SoftIndex, functions, handles, is_soft
from pyro_discrete.relaxations.soft_shapes import as_soft

__all__ = ["cast"]

LARGEST_PRODUCT = 4096
"""Up to so many combinations of values, two soft indices are computed with exactly."""


def _both(names: str) -> frozenset[Any]:
    """Functions and methods of these names, and the operators that are methods by them."""
    operators = " ".join(f"__{name}__" for name in names.split())
    return frozenset(functions(names, torch, Tensor) + functions(operators, Tensor))


_LINEAR = _both("add radd sub rsub subtract mul rmul multiply")
_EQUAL = _both("eq ne not_equal isin logical_and logical_or logical_xor logical_not")
_COMPARING = _EQUAL | _both("lt le gt ge less less_equal greater greater_equal")
_OTHERS = _both(
    "div divide true_divide truediv rtruediv rdiv floor_divide floordiv rfloordiv remainder fmod mod rmod pow rpow "
    "float_power neg negative pos abs absolute square sign clamp clip minimum maximum bitwise_and bitwise_or "
    "bitwise_xor bitwise_not and rand or ror xor rxor invert isnan isinf isfinite exp log log1p log2 sqrt lgamma"
)


@handles(*_LINEAR, *_COMPARING, *_OTHERS)
def _elementwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    softs: list[SoftIndex] = [a for a in args if is_soft(a)]
    counts = any(z.is_floating_point() for z in softs)
    floats = counts or any(torch.is_tensor(a) and not is_soft(a) and a.is_floating_point() for a in args)
    soft_here = _EQUAL if any(isinstance(z, SoftBit) for z in softs) else _COMPARING
    if floats and (func in _LINEAR or (counts and func not in soft_here)):
        return func(*[a.expectation() if is_soft(a) else a for a in args], **kwargs)
    if not softs or any(is_soft(v) for v in kwargs.values()):
        softs = softs or [v for v in kwargs.values() if is_soft(v)]
        raise refusal(softs[0], func.__name__, "Give it as a positional argument")
    if all(z.weights is softs[0].weights for z in softs):  # one variable, exactly
        weights = softs[0].weights
        inputs = [a.values if is_soft(a) else _with_values(a) for a in args]
    else:
        weights, inputs = _product(func, softs, args)
    values = func(*inputs, **kwargs)
    return expectation(weights, values) if values.is_floating_point() else softs[0].like(weights, values)


def _with_values(other: Any) -> Any:
    """A plain operand with a last dim for the values."""
    return other.unsqueeze(-1) if torch.is_tensor(other) and other.dim() else other


def _product(func: Any, softs: list[SoftIndex], args: Any) -> tuple[Tensor, list[Any]]:
    """Weights and values of all combinations of two soft indices."""
    if len(softs) > 2:
        raise refusal(softs[0], func.__name__, "Combine two relaxed values at a time")
    one, two = softs
    sizes = one.weights.shape[-1], two.weights.shape[-1]
    if sizes[0] * sizes[1] > LARGEST_PRODUCT:
        raise refusal(
            one,
            func.__name__,
            f"With site {two.site!r} there are {sizes[0]} x {sizes[1]} combinations, more than {LARGEST_PRODUCT}. Look "
            "both up in one table (`table[z1, z2]`), or take z.float() of them",
        )
    weights = (one.weights.unsqueeze(-1) * two.weights.unsqueeze(-2)).flatten(-2)
    first, second = torch.broadcast_tensors(one.values.unsqueeze(-1), two.values.unsqueeze(-2))
    values = iter((first.flatten(-2), second.flatten(-2)))
    return weights, [next(values) if is_soft(a) else _with_values(a) for a in args]


def cast(z: SoftIndex, dtype: torch.dtype) -> Tensor:
    """`z` in another dtype: its expectation in a floating one; a count in its own dtype stays as it is."""
    if dtype == z.dtype:
        return z
    if dtype.is_floating_point:
        mean = z.expectation().to(dtype)
        return SoftBit(mean, z.site) if isinstance(z, SoftBit) else mean
    counts_up = dtype == torch.int64 and (z.counts_up or isinstance(z, SoftBit))
    return z.like(z.weights, None if counts_up else z.values.to(dtype))


@handles(Tensor.to, Tensor.type)
def _to(func: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_soft(z):  # x.to(z)
        return func(z, *(a.dtype if is_soft(a) else a for a in args), **kwargs)
    given = [*args, *kwargs.values()]
    dtypes = [g for g in given if isinstance(g, torch.dtype)] + [g.dtype for g in given if torch.is_tensor(g)]
    return cast(z, dtypes[0]) if dtypes else z


@handles(Tensor.type_as)
def _type_as(func: Any, z: Any, other: Tensor) -> Tensor:
    return cast(z, other.dtype) if is_soft(z) else z.to(other.dtype)


@handles(*functions("long int short bool float double half bfloat16", Tensor))
def _named_dtype(func: Any, z: SoftIndex, **kwargs: Any) -> Tensor:
    return cast(z, func(torch.empty(())).dtype)


@handles(torch.where, Tensor.where)
def _where(func: Any, condition: Any, one: Any, other: Any) -> Tensor:
    if func is Tensor.where:
        condition, one, other = one, condition, other
    soft_choice = is_soft(one) or is_soft(other)
    floats = any(torch.is_tensor(v) and v.is_floating_point() for v in (one, other))
    if soft_choice and not floats:
        like: Any = one if is_soft(one) else other
        first, second = as_soft(one, like), as_soft(other, like)
        if first.values.shape != second.values.shape:
            raise refusal(first, "where", "Its two choices have different supports: take .float() of each")
        share = condition.float().unsqueeze(-1).to(like.weights) if is_soft(condition) else condition.unsqueeze(-1)
        mixed = _mixed(share, first.weights, second.weights)
        return like.like(mixed, None if first.counts_up and second.counts_up else first.values)
    one, other = (v.expectation() if is_soft(v) else v for v in (one, other))
    return _mixed(condition.float() if is_soft(condition) else condition, one, other)


def _mixed(share: Tensor, one: Any, other: Any) -> Tensor:
    """`one` where the share is one, `other` where it is zero."""
    if share.dtype == torch.bool:
        return torch.where(share, one, other)
    dtypes = [v.dtype for v in (one, other) if torch.is_tensor(v) and v.is_floating_point()]
    share = share.to(dtypes[0]) if dtypes else share
    return share * _finite(one) + (1 - share) * _finite(other)


def _finite(value: Any) -> Any:
    return torch.nan_to_num(value, nan=float("nan")) if torch.is_tensor(value) and value.is_floating_point() else value


@handles(Tensor.sum, torch.sum, Tensor.mean, torch.mean, Tensor.cumsum, torch.cumsum)
def _reduced(func: Any, z: SoftIndex, *args: Any, **kwargs: Any) -> Tensor:
    return func(z.expectation(), *args, **kwargs)


@handles(Tensor.all, torch.all, Tensor.any, torch.any)
def _all_or_any(func: Any, z: SoftIndex, *dims: Any, **kwargs: Any) -> SoftIndex:
    """The chance that all (or any) hold, of independent conditions."""
    every = func in (Tensor.all, torch.all)
    holds = expectation(z.weights, (z.values != 0).to(z.weights.dtype))
    chance = holds if every else 1 - holds
    product = chance.prod(*dims, **kwargs) if dims or kwargs else chance.flatten().prod(0)
    chance = product if every else 1 - product
    return z.like(torch.stack([1 - chance, chance], -1), torch.tensor([False, True], device=chance.device))


@handles(torch._is_all_true)
def _is_all_true(func: Any, z: SoftIndex) -> Tensor:
    """What argument validation asks: whether a condition holds at every value that has a weight."""
    return (z.values.bool() | (z.weights == 0)).all()
