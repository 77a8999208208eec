"""Whether an operation keeps the elements of an event apart: where the dim that counts them is in its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_discrete.programs.sites import base_distribution

__all__ = ["axis_after", "element_axis"]

Axis = Callable[[Tensor], "int | None"]
_COPIES = {"clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy"}
_VIEWS = {"view", "reshape", "_unsafe_view", "_reshape_alias"}
_REDUCTIONS = {"sum", "mean", "logsumexp", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all"}


def axis_after(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, moved: Sequence[Tensor], axis: Axis
) -> int | None:
    """The dim (from the right, negative) of `result` whose entry i depends on entry i alone of the `moved` tensors.

    `moved` are the tensors among the arguments that change with the elements, `axis` gives that dim of each. None where
    it is not known for every one of them, or where the operation is none of those that are known to keep entries apart.
    """
    axes = [axis(tensor) for tensor in moved]
    first, tensor = axes[0] if axes else None, moved[0] if moved else None
    if first is None or tensor is None or any(a != first for a in axes) or not isinstance(result, Tensor):
        return None
    if func._schema.is_mutable or len({t.shape[first] for t in moved}) > 1:
        return None
    found = _moved(func, args, kwargs, result, tensor, first, moved)
    kept = found is not None and result.dim() >= -found and result.shape[found] == tensor.shape[first]
    return found if kept else None


def element_axis(fn: Any) -> int | None:
    """The dim of a distribution's value that counts its independent elements, from the right; None if none or more do.

    Elements are those of `.to_event(1)`, of an event that has at least two.
    """
    if not isinstance(fn, Independent) or fn.reinterpreted_batch_ndims != 1:
        return None
    inner = len(fn.base_dist.event_shape)
    alone = base_distribution(fn) is fn.base_dist and fn.event_shape[0] > 1
    return -1 - inner if alone else None


def _moved(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Tensor,
    tensor: Tensor,
    axis: int,
    moved: Sequence[Tensor],
) -> int | None:
    name, place = func.overloadpacket.__name__, tensor.dim() + axis
    if torch.Tag.pointwise in func.tags or name in _COPIES or name in ("expand", "broadcast_to"):
        return axis
    if name == "binary_cross_entropy_with_logits":
        return axis if (args[4] if len(args) > 4 else kwargs.get("reduction", 1)) == 0 else None
    if name in _VIEWS:
        behind = math.prod(tensor.shape[place + 1 :])
        fits = [i for i in range(result.dim()) if math.prod(result.shape[i + 1 :]) == behind]
        return next((i - result.dim() for i in fits if result.shape[i] == tensor.shape[axis]), None)
    if name == "gather":
        return axis if all(t.dim() == result.dim() for t in moved) and args[1] % result.dim() != place else None
    if name == "index":
        return _indexed(args[0], args[1], axis, moved)
    if name == "embedding":
        return axis - 1 if tensor is args[1] and len(moved) == 1 else None
    return _unary(name, args, kwargs, result, tensor, place) if tensor is args[0] and len(moved) == 1 else None


def _unary(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor, tensor: Tensor, place: int
) -> int | None:
    """The same for an operation on the dims of one tensor, whose dim `place` (from the left) is meant."""
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    size = tensor.dim()
    if name == "unsqueeze" and isinstance(dims, int):
        return place + (dims % (size + 1) <= place) - result.dim()
    if name == "squeeze":
        named = range(size) if dims is None else _listed(dims, size)
        gone = [d for d in named if tensor.shape[d] == 1]
        return place - sum(d < place for d in gone) - result.dim()
    if name == "permute" and isinstance(dims, list | tuple):
        return _listed(dims, size).index(place) - result.dim()
    if name == "transpose":
        swapped = {args[1] % size: args[2] % size, args[2] % size: args[1] % size}
        return swapped.get(place, place) - result.dim()
    if name == "t":
        return size - 1 - place - result.dim()
    if not isinstance(dims, int | list | tuple):
        return None
    named = _listed(dims, size)
    if not named or place in named:
        return None
    if name in ("_log_softmax", "_softmax", "slice") or (name in _REDUCTIONS and result.dim() == size):
        return place - size
    if name in _REDUCTIONS or name == "select":
        return place - sum(d < place for d in named) - result.dim()
    return None


def _indexed(table: Any, indices: Sequence[Any], axis: int, moved: Sequence[Tensor]) -> int | None:
    """`table[i, j, ...]`, a table that does not move, by integers for its first dims."""
    if any(table is t for t in moved) or any(i is None or i.dtype in (torch.bool, torch.uint8) for i in indices):
        return None
    return axis - (table.dim() - len(indices))


def _listed(dims: Any, size: int) -> list[int]:
    return [d % size for d in ([dims] if isinstance(dims, int) else dims)]
