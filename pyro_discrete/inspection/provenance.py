"""Follows draws through torch's operations: what is computed from which, and where an event's elements stay apart."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributions import Independent
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_discrete.errors import LIBRARIES, innermost_line
from pyro_discrete.operations import LEAVES_TORCH, Kind, kind_of, tensors_in, unseen, written_tensors
from pyro_discrete.programs.sites import base_distribution

__all__ = [
    "ARGUMENTS",
    "FLOATS",
    "HELD",
    "NOTHING",
    "DispatchMode",
    "Names",
    "Provenance",
    "Reads",
    "axis_after",
    "classes_stated",
    "element_axis",
    "files_called_from",
    "in_a_structure",
    "keeps_shape",
    "read_by_the_program",
]


Axis = Callable[[Tensor], "int | None"]


_COPIES = {"clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy"}


_VIEWS = {"view", "reshape", "_unsafe_view", "_reshape_alias"}


_REDUCTIONS = {"sum", "mean", "prod", "logsumexp", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all"}


def axis_after(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, moved: Sequence[Tensor], axis: Axis
) -> int | None:
    """The dim (from the right, negative) of `result` whose entry i depends on entry i alone of the `moved` tensors.

    `moved` are the tensors among the arguments that change with the elements, `axis` gives that dim of each. None where
    it is not known for every one of them, or where the operation is none of those that are known to keep entries apart.
    """
    kind, tensor = kind_of(func), moved[0] if moved else None
    first = None if tensor is None else axis(tensor)
    if first is None or tensor is None or kind.writes or not isinstance(result, Tensor):
        return None
    size = tensor.shape[first]
    if len(moved) > 1 and any(axis(t) != first or t.shape[first] != size for t in moved):
        return None
    found = _moved(kind, args, kwargs, result, tensor, first, moved)
    kept = found is not None and result.dim() >= -found and result.shape[found] == size
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
    kind: Kind,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    result: Tensor,
    tensor: Tensor,
    axis: int,
    moved: Sequence[Tensor],
) -> int | None:
    name, place = kind.name, tensor.dim() + axis
    if kind.pointwise or name in _COPIES or name in ("expand", "broadcast_to"):
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


Names = frozenset[str]


NOTHING: Names = frozenset()


ARGUMENTS = "the arguments"
"""What stands for tensors among a program's arguments, beside the names of draws."""

FLOATS = "the floats among the arguments"
"""What stands for these, where they are looked at as tensors."""

HELD = "what it holds"
"""What stands for tensors that are neither marked nor made of such: parameters, buffers, data that it closes over."""


_WATCHED = LEAVES_TORCH | {"__reduce_ex__", "grad", "backward", "one_hot", "__getitem__"}
"""The names of all functions that are looked at as the program calls them."""


_READS = {"_local_scalar_dense": ".item(), if or an index", "is_nonzero": "if", "equal": "torch.equal"}
"""What in a program makes torch read a value, by the operation that its dispatcher sees."""


class Provenance:
    """Follows what is computed from marked tensors, while it is entered.

    Every operation that reaches torch's dispatcher is seen: also those inside custom autograd functions, scripted or
    vmapped functions, and writes in place, through views too, as what is known of a tensor belongs to its storage. What
    cannot be followed is noted in `escape` (empty as long as all is known), with the place in the program:

    - a value that Python reads: `.item()`, `bool(...)`, `.tolist()`, NumPy, a branch; of whatever tensor, for a program
      that branches on its data may be wired otherwise in another call;
    - a shape that depends on values (`x[mask]`, `nonzero`);
    - a write into memory that was there before, which NumPy or another thread may hold as well;
    - an operation that fails, tensors without storage, and gradients taken inside the program.

    Of draws with elements (`mark(..., axis=)`) it knows as well in which results these are kept apart, by `axis_of`.

    >>> import torch
    >>> with Provenance() as provenance:
    ...     z = torch.ones(2)
    ...     provenance.mark(z, ["z"])
    ...     buffer = torch.zeros(3)
    ...     buffer[:2] = z
    >>> sorted(provenance.of(buffer + 1)), sorted(provenance.of(buffer)), provenance.escape
    ([], ['z'], '')
    """

    def __init__(self) -> None:
        self.escape: str = ""
        self.seen_by_python: Names = NOTHING
        self._origin: dict[int, tuple[StorageWeakRef, Names]] = {}
        self._elements: Names = NOTHING
        self._axes: dict[int, tuple[Tensor, int]] = {}
        self._constants: dict[int, Tensor] = {}
        self._modes: Sequence[_Operations | _Exits] | None = None
        self.reading_allowed: bool = False
        self.looking_up: bool = False

    def __enter__(self) -> Provenance:
        self._modes = (_Operations(self), _Exits(self))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes or ()):
            mode.__exit__(kind, error, trace)
        self._modes = None

    def of(self, *values: Any) -> Names:
        """Names of the draws that these tensors were computed from; whatever is not a tensor has none."""
        return self._names_at([self._key(value) for value in values])

    def _names_at(self, keys: Iterable[int | None]) -> Names:
        """Names of the draws that are in these storages."""
        found, origin = NOTHING, self._origin
        for key in keys:
            held = origin.get(key)  # type: ignore[arg-type]
            if held is not None and held[1] and held[1] is not found:
                found = found | held[1] if found else held[1]
        return found

    def mark(self, tensor: Tensor, names: Iterable[str], axis: int | None = None) -> None:
        """From here on the tensor, and whatever shares its memory, comes from these draws as well.

        `axis`: the dim, from the right, that counts the draw's elements, if it has such.
        """
        key, names = self._key(tensor), frozenset(names)
        if key is None:
            self.escaped("a tensor without storage")
            return
        with unseen():
            self._add(key, tensor, names)
        if axis is not None:
            self._elements |= names
            self._axes[id(tensor)] = (tensor, axis)

    def mark_constant(self, tensor: Tensor) -> None:
        """Python may read the tensor, and what shares its memory: it holds the same values in every run."""
        key = self._key(tensor)
        if key is not None:
            self._constants[key] = tensor

    def axis_of(self, tensor: Tensor) -> int | None:
        """The dim, from the right, whose entry i comes from the elements i alone; None if that is not known."""
        found = self._axes.get(id(tensor))
        return None if found is None else found[1]

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What runs inside is not followed, and what it makes comes from nothing."""
        modes, self._modes = self._modes, None
        for mode in reversed(modes or ()):
            mode.__exit__(None, None, None)
        try:
            yield
        finally:
            for mode in modes or ():
                mode.__enter__()
            self._modes = modes

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within, torch may read values: it decides nothing by them."""
        before, self.reading_allowed = self.reading_allowed, True
        try:
            yield
        finally:
            self.reading_allowed = before

    def escaped(self, how: str) -> None:
        """Note the first way in which dependence may be lost, and where."""
        if not self.escape:
            self.escape = how + innermost_line(traceback.extract_stack())

    def _key(self, value: Any) -> int | None:
        """What tells a tensor's storage from others."""
        if not isinstance(value, Tensor):
            return None
        with unseen():
            return self._key_unseen(value)

    def _key_unseen(self, tensor: Tensor) -> int | None:
        try:
            return tensor.untyped_storage()._cdata
        except NotImplementedError:
            self.escaped(f"a tensor without storage ({type(tensor).__name__}, {tensor.layout})")
            return None

    def _keys(self, tensors: Collection[Tensor]) -> list[int | None]:
        """The same of several, `unseen`."""
        try:
            return [tensor.untyped_storage()._cdata for tensor in tensors]
        except NotImplementedError:
            return [*map(self._key_unseen, tensors)]

    def _add(self, key: int, tensor: Tensor, names: Names) -> None:
        """Note that a tensor with this key comes from these draws, `unseen`."""
        known = self._origin.get(key)
        if known is not None:
            if names and known[1] is not names:
                self._origin[key] = (known[0], known[1] | names)
            return
        # a weak reference keeps the address from being given to another storage, and the memory free
        self._origin[key] = (StorageWeakRef(tensor.untyped_storage()), names)

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one operation of the dispatcher and note what its results come from."""
        read = tensors_in((*args, *kwargs.values()) if kwargs else args)
        with unseen():
            keys = self._keys(read)
            names = self._names_at(keys)
        return self._run(func, kind_of(func), args, kwargs, read, keys, names)[0]

    def _run(
        self,
        func: Any,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        read: Sequence[Tensor],
        keys: Sequence[int | None],
        names: Names,
    ) -> tuple[Any, Sequence[Tensor], list[int | None]]:
        """Run an operation that reads these tensors, of these draws: its result, and the tensors in that, with the keys
        of both."""
        if kind.of_shapes:
            names = NOTHING
        if kind.reads and not self._may_be_read(read) and not _reads_to_check():
            self.escaped(f"Python reads a tensor's value ({_READS.get(kind.name, kind.name)})")
            if not self.looking_up:
                self.seen_by_python |= names or ({HELD} if read_by_the_program() else NOTHING)
        if kind.shapes and not keeps_shape(func, args):
            self.escaped(f"a shape depends on values ({kind.name})")
            self.seen_by_python |= names
        try:
            result = func(*args, **kwargs)
        except Exception:
            self.escaped(f"an operation fails ({kind.name})")
            raise
        with unseen():
            if kind.writes:
                self._written(written_tensors(func, args, kwargs), names)
            made = (result,) if type(result) is Tensor else tensors_in((result,))
            made_keys = self._keys(made)
            for tensor, key in zip(made, made_keys, strict=True):
                if key is not None and (names or key not in keys):
                    self._add(key, tensor, names)
            if self._elements and names & self._elements:
                moved = [tensor for tensor in read if self.of(tensor) & self._elements]
                for tensor in made:
                    axis = axis_after(func, args, kwargs, tensor, moved, self.axis_of)
                    if axis is not None:
                        self._axes[id(tensor)] = (tensor, axis)
        return result, made, made_keys

    def _written(self, written: Sequence[Tensor], names: Names) -> None:
        """Note that what comes from these draws was written into tensors."""
        for tensor, key in zip(written, self._keys(written), strict=True):
            self._constants.pop(key or 0, None)
            if key is not None and key not in self._origin and names:
                self.escaped("a value is written in place into a tensor that was there before")
            if key is not None and (names or key in self._origin):
                self._add(key, tensor, names)
            self._axes = {i: held for i, held in self._axes.items() if self._key(held[0]) != key}

    def left(self, args: Sequence[Any], how: str) -> None:
        """Note that these leave torch."""
        self.escaped(how)
        names = self.of(*(v for v in tree_leaves(list(args)) if isinstance(v, Tensor)))
        self.seen_by_python |= names or ({HELD} if read_by_the_program() else NOTHING)

    def one_hot(self, index: Tensor, result: Tensor) -> None:
        """Note what `one_hot` made of integers."""

    def called(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note what a function of torch's gave, as the program calls it: many operations of the dispatcher, or none."""

    def _may_be_read(self, read: Sequence[Tensor]) -> bool:
        return self.reading_allowed or (bool(read) and all(self._key(t) in self._constants for t in read))


class DispatchMode(TorchDispatchMode):
    """A mode of torch's dispatcher that `torch.compile` lets alone, without loading that where nobody uses it.

    Torch has every mode do so by a wrapper that imports `torch._dynamo`, and that runs at every operation.
    """

    _let_alone: ClassVar[bool] = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Any:
        cls = type(self)
        if "torch._dynamo" in sys.modules and not vars(cls).get("_let_alone"):
            cls._let_alone = True
            cls.__torch_dispatch__ = cast(Any, torch._dynamo.disable(cls.__torch_dispatch__))
        return super().__enter__()


class Reads(Provenance):
    """Sees whether a value is read at all, of whatever tensor: nothing is followed, which takes a fraction of the time.

    While it is entered, it sees what leaves torch, and is to be told of every operation of the dispatcher by `saw`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.any: bool = False

    def __enter__(self) -> Reads:
        self._modes = (_Exits(self),)
        self._modes[0].__enter__()
        return self

    def saw(self, func: Any, args: tuple[Any, ...]) -> None:
        """Take in an operation that is about to be run."""
        kind = kind_of(func)
        if (kind.reads or kind.shapes) and not (
            keeps_shape(func, args) or self.reading_allowed or self.looking_up or _reads_to_check()
        ):
            self.any = True

    def left(self, args: Sequence[Any], how: str) -> None:
        """Something leaves torch."""
        self.any = True


class _Operations(DispatchMode):
    """What reaches the dispatcher."""

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.provenance.operation(func, args, kwargs or {})


class _Exits(TorchFunctionMode):
    """What leaves torch before the dispatcher sees it.

    `told`: whether the provenance notes what functions give. Where it does not, most go by at the least cost.
    """

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance
        self.told: bool = type(provenance).called is not Provenance.called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _WATCHED and not self.told:
            return func(*args, **kwargs) if kwargs else func(*args)
        provenance, kwargs = self.provenance, kwargs or {}
        if name in LEAVES_TORCH or name == "__reduce_ex__":
            provenance.left(args, f"a tensor leaves torch (.{name})")
        elif func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            if not in_a_structure():
                provenance.left(tree_leaves((args, kwargs)), "the program takes gradients itself")
        elif func is torch.nn.functional.one_hot and classes_stated(args, kwargs) >= 0:
            return self._reading(func, args, kwargs)  # it compares the indices with their number, and no more
        provenance.looking_up = func is Tensor.__getitem__ and _are_places(args[1])
        try:
            result = func(*args, **kwargs)
        finally:
            provenance.looking_up = False
        if self.told:
            provenance.called(func, args, kwargs, result)
        return result

    def _reading(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.provenance.reading():
            result = func(*args, **kwargs)
        self.provenance.one_hot(args[0] if args else kwargs["input"], result)
        return result


def _are_places(index: Any) -> bool:
    """Whether an index, such as the single `z` of `table[z]`, says where alone, and not how much: torch reads it, and
    the program does the same for any."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        part is None
        or part is Ellipsis
        or type(part) is int
        or (isinstance(part, Tensor) and part.dtype not in (torch.bool, torch.uint8))
        or (isinstance(part, slice) and not any(torch.is_tensor(v) for v in (part.start, part.stop, part.step)))
        for part in parts
    )


def _reads_to_check() -> bool:
    """Whether a distribution looks at a value to sum by it or to refuse it, which changes nothing in what it gives."""
    return in_a_structure() or _validates()


_CHECKS = ("_validate_sample", "__init__")
"""Where a distribution of torch's looks at a value, or at its parameters: it raises, or goes on as if it had not."""


def _validates() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == torch.distributions.distribution.__file__:
            return frame.f_code.co_name in _CHECKS
        frame = frame.f_back if file.startswith((_HERE, LIBRARIES[0])) else None
    return False


def classes_stated(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The number of classes that a call of `one_hot` states; -1 where it is to be looked up in the values."""
    return args[1] if len(args) > 1 else kwargs.get("num_classes", -1)


def keeps_shape(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an indexing takes integers alone, so that its result's shape is that of the indices."""
    if func.overloadpacket is not torch.ops.aten.index:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


_HERE = str(Path(__file__).parent)
_STRUCTURES = str(Path(__file__).parents[1] / "distributions")


def files_called_from() -> Iterator[str]:
    """The files of the code that led here, from the innermost on, without those of this folder."""
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HERE):
            yield frame.f_code.co_filename
        frame = frame.f_back


def in_a_structure() -> bool:
    """Whether a distribution of this package looks at its numbers: they say how it sums, and not what the sum is."""
    return next((f for f in files_called_from() if not f.startswith(LIBRARIES[0])), "").startswith(_STRUCTURES)


_PASSAGES = tuple(
    str(Path(torch.__file__).parent / part)
    for part in ("_tensor.py", "overrides.py", "_ops.py", "utils", "_compile.py", "_dynamo")
)
"""Where a read of a tensor passes through on its way from a program."""


def read_by_the_program() -> bool:
    """Whether a read comes from the program's own code, and not from that of torch, Pyro or this package: these look at
    numbers to check them, or to choose between ways of computing the same."""
    return not next((f for f in files_called_from() if not f.startswith(_PASSAGES)), LIBRARIES[0]).startswith(LIBRARIES)
