"""What could wire a program otherwise in another call: its arguments, and the plain values that its code can see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies, find_dependencies
from pyro_discrete.programs.pair import Pair

__all__ = [
    "Wiring",
    "switches",
]


KNOWN = 8
"""Dependencies are looked for in so many states of a program at most; a program with more of them keeps full costs."""


LARGEST = 400
"""Programs with more objects than this to watch keep full costs."""


LONGEST = 64
"""Containers with more items than this (a vocabulary) are told by their identity and length alone."""


_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None)])


_LIBRARIES = ("torch", "pyro", "pyro_discrete", "numpy", "scipy", "functools", "builtins", "collections", "contextlib")


class Wiring:
    """The dependencies of a pair, looked for again whenever what it is run with, or what it can see, is new.

    Within one state a program whose values Python does not read does the same in every call. A program that changes
    what it sees while it runs (a counter) is in no state for long, and keeps full costs.
    """

    def __init__(self, pair: Pair) -> None:
        self._watched = _watched(pair)
        self._found: dict[Hashable, Dependencies] = {}
        self._given_up = "" if self._watched is not None else f"more than {LARGEST} objects would have to be watched"

    def of(self, pair: Pair) -> Dependencies:
        """What depends on what in this call."""
        if self._given_up or self._watched is None:
            return Dependencies(reason=self._given_up)
        lifted, numbers = _without_floats(pair)
        if numbers:  # an annealed weight, say, which is new in every call
            found = self._of(lifted, numbers)
            if found.known:
                return found
        return self._of(pair, ())

    def _of(self, pair: Pair, numbers: Collection[Tensor]) -> Dependencies:
        if self._watched is None:
            return UNKNOWN
        key = switches(pair, self._watched)
        if key not in self._found:
            if len(self._found) >= KNOWN:
                return Dependencies(reason=f"its arguments or plain values have changed more than {KNOWN} times")
            self._found[key] = UNKNOWN  # for what runs on the way
            self._found[key] = find_dependencies(pair, numbers) if numbers else find_dependencies(pair)
            if switches(pair, self._watched) != key:
                self._given_up = "the program changes plain values that it can see, such as a counter"
                return Dependencies(reason=self._given_up)
        return self._found[key]


def _without_floats(pair: Pair) -> tuple[Pair, list[Tensor]]:
    """The pair with tensors for the floats among its arguments, and these."""
    numbers: list[Tensor] = []
    if all(isinstance(value, Tensor) for value in (*pair.args, *pair.kwargs.values())):
        return pair, numbers

    def lifted(value: Any) -> Any:
        if type(value) is not float:
            return value
        numbers.append(torch.tensor(value, dtype=torch.float64))
        return numbers[-1]

    args, kwargs = tree_map(lifted, (pair.args, dict(pair.kwargs)))
    return Pair(pair.model, pair.guide, args, kwargs), numbers


Watched = list[Callable[[], Hashable]]


def switches(pair: Pair, watched: Watched) -> Hashable:
    """Arguments (tensors by shape and dtype) and the plain values in all that is watched."""
    return (_brief(pair.args, 3), _brief(pair.kwargs, 3), tuple([look() for look in watched]))


def _briefs(values: Iterable[Any], depth: int) -> tuple[Hashable, ...]:
    """What `_brief` says of each; plain values, the most of them, without a call."""
    return tuple([(type(v), v) if type(v) in _PLAIN else _brief(v, depth) for v in values])


def _brief(value: Any, depth: int) -> Hashable:
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is Tensor or kind is nn.Parameter:
        return kind, tuple(value.shape), value.dtype
    if isinstance(value, Tensor) or kind.__module__ == "numpy":
        return kind, tuple(getattr(value, "shape", ())), getattr(value, "dtype", None)
    if isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) > LONGEST:
        return kind, id(value), len(value)
    if depth and isinstance(value, Mapping):
        return kind, _briefs(value, 0), _briefs(value.values(), depth - 1)
    if depth and isinstance(value, list | tuple | set | frozenset):
        return kind, _briefs(value, depth - 1)
    return kind, id(value) if callable(value) else None


def _watched(pair: Pair) -> Watched | None:
    """A look at each object that model, guide and arguments lead to; None if there are too many."""
    watched: Watched = []
    seen: set[int] = set()
    stack: list[Any] = [pair.model, pair.guide, *pair.args, *pair.kwargs.values()]
    while stack:
        value = stack.pop()
        if id(value) in seen or type(value) in _PLAIN or isinstance(value, Tensor | type):
            continue
        seen.add(id(value))
        for look, inside in _looks(value):
            if look is not None:
                watched.append(look)
            stack.extend(inside)
        if len(watched) > LARGEST:
            return None
    return watched


def _looks(value: Any) -> Iterator[tuple[Callable[[], Hashable] | None, list[Any]]]:
    """Ways to see an object's plain values (None: it has none), each with the objects that it leads to."""
    if isinstance(value, MethodType):
        yield None, [value.__self__, value.__func__]
    elif isinstance(value, partial):
        yield (
            (lambda: _briefs((value.args, value.keywords), 1)),
            [
                value.func,
                *value.args,
                *value.keywords.values(),
            ],
        )
    elif isinstance(value, FunctionType):
        yield from _looks_into_function(value)
    elif isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) > LONGEST:
        yield (lambda: (id(value), len(value))), []
    elif isinstance(value, Mapping):
        yield (lambda: _brief(value, 1)), list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield (lambda: _brief(value, 1)), list(value)
    elif isinstance(value, nn.Module):
        own = vars(value)
        keys = [k for k in own if not k.startswith("_")]
        yield (
            (lambda: (len(own), _briefs([own[k] for k in keys if k in own], 1))),
            [
                *value.children(),
                *(own[k] for k in keys),
                *([type(value).forward] if _is_users(type(value)) else []),
            ],
        )
    elif hasattr(value, "__dict__") and not callable(getattr(value, "__torch_function__", None)):
        own = vars(value)
        if _is_users(type(value)) or type(value).__module__.startswith("pyro.poutine"):
            yield (lambda: _brief(own, 1)), list(own.values())


def _looks_into_function(function: FunctionType) -> Iterator[tuple[Callable[[], Hashable] | None, list[Any]]]:
    wrapped = getattr(function, "__wrapped__", None)
    cells = function.__closure__ or ()
    contents = [cell.cell_contents for cell in cells if _filled(cell)]

    def captured() -> Hashable:
        return tuple([_brief(cell.cell_contents, 1) if _filled(cell) else None for cell in cells])

    yield captured if cells else None, [*contents, *([wrapped] if wrapped is not None else [])]
    if function.__defaults__ or function.__kwdefaults__:
        defaults = (function.__defaults__ or ()), (function.__kwdefaults__ or {})
        yield (lambda: _brief(defaults, 2)), [*defaults[0], *defaults[1].values()]
    if _is_users(function):
        known = function.__globals__
        names = [n for n in function.__code__.co_names if n in known and not _is_module(known[n])]
        if names:
            yield (lambda: _briefs(map(known.get, names), 1)), [known[n] for n in names]


def _is_users(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] not in _LIBRARIES


def _is_module(value: Any) -> bool:
    return type(value) is type(sys)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None or True
    except ValueError:
        return False
