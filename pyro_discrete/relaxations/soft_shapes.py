"""Soft indices moved about: every shape operation acts on the weights, whose last dim stays behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.relaxations.refusal import NUMBER, refusal
from pyro_discrete.relaxations.soft_index import Handler, SoftBit, SoftIndex, first_soft, handles, is_soft, shaped

__all__ = ["as_soft", "front"]


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
