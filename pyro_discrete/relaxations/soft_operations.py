"""What torch's operations make of soft indices: shapes, arithmetic, comparisons, casts, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.draws.soft_scores import expectation
from pyro_discrete.relaxations.soft_index import (
    NUMBER,
    Handler,
    SoftBit,
    SoftIndex,
    first_soft,
    functions,
    handles,
    is_soft,
    refusal,
    shaped,
)

__all__ = [
    "as_soft",
    "cast",
    "front",
]


def front(dim: int, dims: int) -> int:
    """A dim counted from the front, where it stays when weights follow behind."""
    return dim + dims if dim < 0 else dim


def moves(*functions: Any) -> Callable[[Handler], Handler]:
    """`handles` for what acts on its first argument: its sizes, dims and counts are no place for a soft index."""

    def register(handler: Handler) -> Handler:
        @handles(*functions)
        @wraps(handler)
        def checked(func: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_soft(z):
                raise refusal(first_soft(args, kwargs), func.__name__, NUMBER)
            return handler(func, z, *args, **kwargs)

        return handler

    return register


def _sizes(given: Sequence[Any]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` alike."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else tuple(given)


def _count(z: SoftIndex) -> int:
    return z.weights.shape[-1]


@moves(Tensor.unsqueeze, torch.unsqueeze)
def _unsqueeze(func: Any, z: SoftIndex, dim: int) -> SoftIndex:
    return shaped(z, lambda w: w.unsqueeze(front(dim, z.dim() + 1)))


@moves(Tensor.squeeze, torch.squeeze)
def _squeeze(func: Any, z: SoftIndex, dim: int | tuple[int, ...] | None = None) -> SoftIndex:
    given = range(z.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = {front(d, z.dim()) for d in given}
    sizes = [n for d, n in enumerate(z.shape) if n != 1 or d not in gone]
    return shaped(z, lambda w: w.reshape((*sizes, w.shape[-1])))


@moves(Tensor.reshape, torch.reshape, Tensor.view)
def _reshape(func: Any, z: SoftIndex, *sizes: Any, shape: Any = None) -> SoftIndex:
    new = _sizes(sizes) if shape is None else tuple(shape)
    if new and isinstance(new[0], torch.dtype):
        raise refusal(z, "view(dtype)")
    known = -torch.Size(new).numel() if -1 in new else 0
    if -1 in new and known:  # with no elements at all torch could not tell the size either
        new = tuple(z.numel() // known if n == -1 else n for n in new)
    return z if new == tuple(z.shape) else shaped(z, lambda w: w.reshape((*new, w.shape[-1])))


@moves(Tensor.reshape_as, Tensor.view_as)
def _reshape_as(func: Any, z: SoftIndex, other: Tensor) -> Tensor:
    return z.reshape(other.shape)


@moves(Tensor.expand, torch.broadcast_to, Tensor.broadcast_to)
def _expand(func: Any, z: SoftIndex, *sizes: Any, size: Any = None) -> SoftIndex:
    new = _sizes(sizes) if size is None else tuple(size)
    return z if new == tuple(z.shape) else shaped(z, lambda w: w.expand((*new, w.shape[-1])))


@handles(Tensor.expand_as)
def _expand_as(func: Any, z: Tensor, other: Tensor) -> Tensor:
    return z.expand(other.shape)


@handles(torch.broadcast_tensors)
def _broadcast(func: Any, *tensors: Any) -> list[Tensor]:
    each = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    shape = torch.broadcast_shapes(*(tuple(t.shape) for t in each))
    return [t.expand(shape) for t in each]


@handles(torch.broadcast_shapes)
def _shapes(func: Any, *shapes: Any) -> Any:
    return func(*shapes)


@moves(Tensor.repeat, torch.tile, Tensor.tile)
def _repeat(func: Any, z: SoftIndex, *sizes: Any) -> SoftIndex:
    return shaped(z, lambda w: w.repeat((*_sizes(sizes), 1)))


@moves(Tensor.repeat_interleave, torch.repeat_interleave)
def _interleave(func: Any, z: SoftIndex, repeats: Any, dim: int | None = None, **kwargs: Any) -> Tensor:
    if dim is None:
        return func(z.flatten(), repeats, 0, **kwargs)
    return shaped(z, lambda w: func(w, repeats, front(dim, z.dim()), **kwargs))


@moves(Tensor.permute, torch.permute)
def _permute(func: Any, z: SoftIndex, *dims: Any) -> SoftIndex:
    order = [front(d, z.dim()) for d in _sizes(dims)]
    return shaped(z, lambda w: w.permute(*order, len(order)))


@moves(Tensor.transpose, torch.transpose, Tensor.movedim, torch.movedim)
def _two_dims(func: Any, z: SoftIndex, first: Any, second: Any) -> SoftIndex:
    def counted(dim: Any) -> Any:
        return front(dim, z.dim()) if isinstance(dim, int) else tuple(front(d, z.dim()) for d in dim)

    return shaped(z, lambda w: func(w, counted(first), counted(second)))


@moves(Tensor.t, torch.t, Tensor.T.__get__, Tensor.mT.__get__)  # type: ignore[attr-defined]
def _transposed(func: Any, z: SoftIndex) -> Tensor:
    return z if z.dim() < 2 else z.transpose(-2, -1)


@moves(Tensor.flatten, torch.flatten)
def _flatten(func: Any, z: SoftIndex, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    if z.dim() == 0:
        return z.reshape(1)
    return shaped(z, lambda w: w.flatten(front(start_dim, z.dim()), front(end_dim, z.dim())))


@moves(Tensor.unbind, torch.unbind)
def _unbind(func: Any, z: SoftIndex, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(z.select(dim, i) for i in range(z.shape[dim]))


@moves(Tensor.__iter__)
def _iterate(func: Any, z: SoftIndex) -> Any:
    return iter(z.unbind(0))


@moves(Tensor.select, torch.select, Tensor.narrow, torch.narrow)
def _select(func: Any, z: SoftIndex, dim: int, *which: int) -> SoftIndex:
    return shaped(z, lambda w: func(w, front(dim, z.dim()), *which))


@moves(Tensor.flip, torch.flip)
def _flip(func: Any, z: SoftIndex, *dims: Any) -> SoftIndex:
    return shaped(z, lambda w: w.flip([front(d, z.dim()) for d in _sizes(dims)]))


@moves(Tensor.roll, torch.roll)
def _roll(func: Any, z: SoftIndex, shifts: Any, dims: Any = None) -> Tensor:
    if dims is None:
        return z.flatten().roll(shifts, 0).reshape(z.shape)
    counted = front(dims, z.dim()) if isinstance(dims, int) else tuple(front(d, z.dim()) for d in dims)
    return shaped(z, lambda w: w.roll(shifts, counted))


@moves(Tensor.split, torch.split, Tensor.chunk, torch.chunk)
def _split(func: Any, z: SoftIndex, parts: Any, dim: int = 0) -> tuple[Tensor, ...]:
    sizes = [len(each) for each in func(torch.arange(z.shape[dim]), parts)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(z.narrow(dim, end - size, size) for end, size in zip(ends, sizes, strict=True))


@moves(Tensor.clone, torch.clone, Tensor.contiguous, Tensor.cpu, Tensor.cuda)
def _copied(func: Any, z: SoftIndex, *args: Any, **kwargs: Any) -> SoftIndex:
    return shaped(z, lambda w: func(w, *args, **kwargs))


@moves(Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
def _detach(func: Any, z: SoftIndex) -> SoftIndex:
    return shaped(z, Tensor.detach)


def as_soft(value: Any, like: SoftIndex) -> SoftIndex:
    """An integer tensor as weights of one over the values of `like`."""
    if isinstance(value, SoftIndex):
        return value
    if like.values.dim() > 1:
        raise refusal(like, "mixing with integers", "Its values differ from element to element")
    value = torch.as_tensor(value, device=like.weights.device)
    weights = (value.unsqueeze(-1) == like.values).to(like.weights.dtype)
    return like.like(weights, None if like.counts_up else like.values)


@handles(torch.stack, torch.cat, torch.concat, torch.concatenate)
def _join(func: Any, tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Tensor:
    softs = [t for t in tensors if is_soft(t)]
    if all(isinstance(t, SoftBit) for t in tensors):
        return SoftBit(func([t.expectation() for t in tensors], dim, **kwargs), softs[0].site)
    if any(t.is_floating_point() for t in tensors):
        return func([t.expectation() if is_soft(t) else t for t in tensors], dim, **kwargs)
    widest: SoftIndex = max(softs, key=_count)
    each = [as_soft(t, widest) for t in tensors]
    place = front(dim, each[0].dim() + (func is torch.stack))
    if all(t.counts_up for t in each):
        return widest.like(func([_padded(t.weights, _count(widest)) for t in each], place))
    values = [t.values for t in each]
    if all(v is values[0] for v in values) and values[0].dim() == 1:
        return widest.like(func([t.weights for t in each], place), values[0])
    if any(_count(t) != _count(widest) for t in each):
        raise refusal(widest, func.__name__, "Their supports differ in size: take .float() of each")
    spread = [v.expand(t.weights.shape) for v, t in zip(values, each, strict=True)]
    return widest.like(func([t.weights for t in each], place), func(spread, place))


def _padded(weights: Tensor, count: int) -> Tensor:
    """Weights of so many values, those added being zero."""
    missing = count - weights.shape[-1]
    return weights if missing == 0 else torch.nn.functional.pad(weights, (0, missing))


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
