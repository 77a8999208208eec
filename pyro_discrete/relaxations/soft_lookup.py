"""Soft indices looked up: a table's rows mixed by the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.draws.soft_scores import bounded
from pyro_discrete.relaxations.soft_index import SoftIndex, first_soft, handles, is_soft, refusal, shaped
from pyro_discrete.relaxations.soft_operations import front

__all__: list[str] = []


def _weighted(weights: Tensor, table: Tensor) -> Tensor:
    """`[..., K]` times `[K, *rest]`: `[..., *rest]`, in the table's dtype, as an index would give it."""
    with torch.autocast(weights.device.type, enabled=False):  # at a corner a table's row comes out as it is
        return torch.tensordot(weights.to(table.dtype), bounded(table), 1)


@handles(Tensor.__getitem__)
def _getitem(func: Any, x: Any, index: Any) -> Tensor:
    items = index if isinstance(index, tuple) else (index,)
    softs: list[SoftIndex] = [i for i in items if is_soft(i)]
    for z in softs:
        if z.dtype == torch.bool:
            raise refusal(z, "x[condition]", "Elements cannot be picked by a relaxed condition. Use torch.where")
        if is_soft(x):
            raise refusal(z, "z1[z2]", f"The table, too, is relaxed (site {x.site!r}). Give it as F.one_hot(z1, K)[z2]")
        if z.is_floating_point():
            raise refusal(z, "x[z]", "Turn it into an integer first: x[z.long()]")
    if not softs:
        if not is_soft(x):
            raise refusal(first_soft(items, {}), "x[[z]]", "Give it as the index itself: x[z]")
        return _sliced(x, items)
    return _lookup(x, items, softs[0])


def _sliced(z: SoftIndex, items: tuple[Any, ...]) -> SoftIndex:
    """A soft index indexed by what is not soft."""
    if any(i is Ellipsis for i in items):  # the weights' dim stays behind what the ellipsis stands for
        items = (*items, slice(None))
    return shaped(z, lambda w: w[items])


def _lookup(x: Tensor, items: tuple[Any, ...], like: SoftIndex) -> Tensor:
    """A table indexed by soft indices and others: slices and numbers first, as torch has it, then tensors."""
    if not any(i is Ellipsis for i in items):
        items = (*items, Ellipsis)
    named = sum(i is not None and i is not Ellipsis for i in items)
    basic: list[Any] = []
    tensors: list[tuple[int, Tensor]] = []
    single: list[tuple[int, SoftIndex]] = []
    dim = 0
    for i in items:
        if isinstance(i, list | tuple | range):
            i = torch.as_tensor(i, device=x.device)
        if i is Ellipsis:
            basic += [slice(None)] * (x.dim() - named)
            dim += x.dim() - named
        elif torch.is_tensor(i) and (is_soft(i) or i.dim()):
            if i.dtype == torch.bool:
                raise refusal(like, "x[z, condition]", "Index by z first, then pick elements")
            (tensors if i.dim() else single).append((dim, i))  # type: ignore[arg-type]
            basic.append(slice(None))
            dim += 1
        else:
            basic.append(i)
            dim += i is None or isinstance(i, slice)
    x = x[tuple(basic)]
    for place, z in reversed(single):  # without dims of its own, an index takes one away, as a number does
        x = _mix(x, place, z)
        tensors = [(d - (d > place), i) for d, i in tensors]
    if len(tensors) == 1:
        return _mix(x, *tensors[0])
    return _mix_together(x, tensors, like) if tensors else x


def _mix(x: Tensor, dim: int, z: Any) -> Tensor:
    """The table mixed along one dim by one index, whose dims take the place of that dim."""
    if not is_soft(z):
        return x.index_select(dim, z.flatten()).unflatten(dim, z.shape)
    table = x.movedim(dim, 0)
    if z.values.dim() > 1:
        return _mix_together(x, [(dim, z)], z)
    if not (z.counts_up and z.weights.shape[-1] == len(table)):
        table = table[z.values]
    to = tuple(range(dim, dim + z.dim()))
    if not x.is_floating_point():  # a table of integers: the result is soft itself
        values = table.movedim(0, -1)
        weights = z.weights.reshape((1,) * dim + tuple(z.shape) + (1,) * (x.dim() - 1 - dim) + z.weights.shape[-1:])
        values = values.reshape(tuple(values.shape[:dim]) + (1,) * z.dim() + tuple(values.shape[dim:]))
        return z.like(weights, values)
    out = _weighted(z.weights, table)
    return out.movedim(tuple(range(z.dim())), to) if dim and z.dim() else out


def _mix_together(x: Tensor, tensors: Sequence[tuple[int, Tensor]], like: SoftIndex) -> Tensor:
    """Several index tensors: each soft one runs over its values in a leading dim, torch indexes, weights add up."""
    if not x.is_floating_point():
        raise refusal(like, "x[z1, z2] of integers", "Make the table a floating one")
    groups: list[SoftIndex] = []  # indices with the same weights are one variable
    for _, i in tensors:
        if isinstance(i, SoftIndex) and all(i.weights is not g.weights for g in groups):
            groups.append(i)
    broad = max(i.dim() for _, i in tensors)

    def led(tensor: Tensor, group: int) -> Tensor:
        """`[*dims, K]` as `[1, K, 1, *dims]`, K in the group's place."""
        tensor = tensor.movedim(-1, 0)
        lead = [1] * len(groups)
        lead[group] = tensor.shape[0]
        return tensor.reshape((*lead, *(1,) * (broad - tensor.dim() + 1), *tensor.shape[1:]))

    full: list[Any] = [slice(None)] * x.dim()
    total: Any = 1
    for d, i in tensors:
        if isinstance(i, SoftIndex):
            group = next(g for g, z in enumerate(groups) if z.weights is i.weights)
            values = i.values if i.values.dim() > 1 else i.values.reshape((1,) * i.dim() + (-1,))
            full[d] = led(values, group)
        else:
            full[d] = i
    for group, z in enumerate(groups):
        total = total * led(z.weights, group).to(x.dtype)
    dims = [d for d, _ in tensors]
    place = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    out = bounded(x)[tuple(full)]
    after = out.dim() - place - len(groups) - broad
    return (out * total.reshape(total.shape + (1,) * after)).sum(tuple(range(place, place + len(groups))))


@handles(F.embedding, torch.embedding)
def _embedding(func: Any, first: Any, second: Any, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    z, table = (first, second) if func is F.embedding else (second, first)
    if (args and args[0] is not None and func is F.embedding) or kwargs.get("max_norm") is not None:
        raise refusal(z, "embedding(max_norm=...)", "Leave max_norm out")
    if padding_idx is not None and padding_idx != -1:  # a row that gets no gradient
        padding = (torch.arange(len(table), device=table.device) == padding_idx % len(table)).unsqueeze(-1)
        table = torch.where(padding, table.detach(), table)
    return table[z]


@handles(F.one_hot)
def _one_hot(func: Any, z: SoftIndex, num_classes: int = -1) -> Tensor:
    count = z.weights.shape[-1] if num_classes == -1 else num_classes
    if z.counts_up and count == z.weights.shape[-1]:
        return z.weights
    return torch.eye(count, dtype=z.weights.dtype, device=z.weights.device)[z]


@handles(torch.gather, Tensor.gather)
def _gather(func: Any, x: Tensor, dim: int, index: SoftIndex, *, sparse_grad: bool = False) -> Tensor:
    dim = front(dim, x.dim())
    x = x[tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(index.shape))]
    table, weights = x.movedim(dim, -1), index.weights.movedim(dim, -2)
    if not x.is_floating_point() or index.is_floating_point():
        raise refusal(index, "gather", "Gather from a floating table, by integers")
    weights, table = weights.to(table.dtype), bounded(table)
    if index.values.dim() == 1:
        out = (weights * table[..., index.values].unsqueeze(-2)).sum(-1)
    else:
        values = index.values.movedim(dim, -2)
        rows = table.unsqueeze(-2).expand(values.shape[:-1] + table.shape[-1:])
        out = (weights * rows.gather(-1, values)).sum(-1)
    return out.movedim(-1, dim)


@handles(torch.take_along_dim, Tensor.take_along_dim)
def _take_along(func: Any, x: Tensor, indices: SoftIndex, dim: int | None = None) -> Tensor:
    if dim is None:
        return torch.gather(x.flatten(), 0, indices.flatten())
    dim = front(dim, x.dim())
    others = [list(t.shape[:dim]) + [1] + list(t.shape[dim + 1 :]) for t in (x, indices)]
    shape = list(torch.broadcast_shapes(*others))
    spread = [t.expand(shape[:dim] + [t.shape[dim]] + shape[dim + 1 :]) for t in (x, indices)]
    return torch.gather(spread[0], dim, spread[1])


@handles(torch.take, Tensor.take)
def _take(func: Any, x: Tensor, index: SoftIndex) -> Tensor:
    return x.flatten()[index]


@handles(torch.index_select, Tensor.index_select)
def _index_select(func: Any, x: Any, dim: int, index: Any) -> Tensor:
    return x[(slice(None),) * front(dim, x.dim()) + (index,)]
