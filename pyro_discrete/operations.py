"""What operations of torch's dispatcher do, as their schemas and tags say, and which tensors they are about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["LEAVES_TORCH", "Kind", "kind_of", "tensors_in", "unseen", "written_tensors"]

SHAPES_ALONE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
SHAPES_ALONE |= {"new_zeros", "new_ones", "new_empty", "new_full"}
"""Operations of whose arguments no value is read."""


LEAVES_TORCH = frozenset(
    ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage", "_typed_storage")
)
"""Functions of tensors that take values out of torch, which its dispatcher does not see."""


def unseen() -> AbstractContextManager[Any]:
    """Within, no mode sees the functions that are called: what asks where a tensor is stored, or how large it is, is no
    part of a program that is looked at.

    Following a chain's draws takes three quarters of the time that it takes otherwise.
    """
    return torch._C.DisableTorchFunction()


class Kind(NamedTuple):
    """What an operation does.

    - `writes`: the arguments that it writes into, their places and names. `pointwise`: whether it keeps entries apart.
    - `reads`, `shapes`: whether Python sees a value by it, or a shape of its results hangs on one. `of_shapes`: whether
      no value is read by it. `random`: whether it draws.
    """

    name: str
    writes: tuple[tuple[int, str], ...]
    pointwise: bool
    reads: bool
    shapes: bool
    of_shapes: bool
    random: bool


_KINDS: dict[int, tuple[Any, Kind]] = {}
"""By the `id` of an operation, which takes long to say its hash."""


def kind_of(func: Any) -> Kind:
    """The kind of an operation.

    >>> import torch
    >>> kind_of(torch.ops.aten.add_.Tensor).writes, kind_of(torch.ops.aten.item.default).name
    (((0, 'self'),), 'item')
    """
    known = _KINDS.get(id(func))
    if known is None:
        known = _KINDS[id(func)] = func, _kind_of(func)
    return known[1]


def _kind_of(func: Any) -> Kind:
    name, arguments = func.overloadpacket.__name__, enumerate(func._schema.arguments)
    return Kind(
        name,
        tuple((at, a.name) for at, a in arguments if a.alias_info is not None and a.alias_info.is_write),
        pointwise=torch.Tag.pointwise in func.tags,
        reads=torch.Tag.data_dependent_output in func.tags,
        shapes=torch.Tag.dynamic_output_shape in func.tags,
        of_shapes=name in SHAPES_ALONE,
        random=torch.Tag.nondeterministic_seeded in func.tags,
    )


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments, or results: as such, or in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _LISTS):
            found += tensors_in(value)
    return found


_LISTS = (list, tuple)


def written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into."""
    writes = kind_of(func).writes
    return tensors_in(args[at] if at < len(args) else kwargs.get(name) for at, name in writes) if writes else []
