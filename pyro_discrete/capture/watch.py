"""What a captured step took from Python, which its graph cannot see change: objects, numbers, modes, parameters."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = [
    "Run",
    "Watch",
    "foreign_handlers",
    "observed_run",
]


MOST_WATCHED = 2000


SCALARS = (bool, int, float, complex, str, bytes, type(None))


_MISSING = object()


_LIBRARIES = frozenset(("torch", "pyro", "pyro_discrete", "numpy", "scipy", "builtins", "typing", "functools"))


@dataclass
class Run:
    """What one run of a step was seen to use: `params` are the `pyro.param` sites, `modules` those that were called."""

    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    modules: dict[int, nn.Module] = field(default_factory=dict)

    def emit(self) -> None:
        """Tell the traces around (SVI's, which collects parameters) of the param sites, as the program would."""
        traces = [handler.trace for handler in _PYRO_STACK if isinstance(handler, TraceMessenger)]
        store = pyro.get_param_store()
        for trace in traces:
            for name, msg in self.params.items():
                if name not in trace.nodes:
                    trace.add_node(name, **{**msg, "value": store[name]})


@contextmanager
def observed_run() -> Iterator[Run]:
    """Notes the params and the modules that are used inside."""
    run = Run()

    def note(module: nn.Module, _: Any) -> None:
        run.modules[id(module)] = module

    hook = register_module_forward_pre_hook(note)
    messenger = TraceMessenger(param_only=True)
    try:
        with messenger:
            yield run
    finally:
        hook.remove()
    for name, msg in messenger.trace.nodes.items():
        run.params[name] = {key: value for key, value in msg.items() if key not in ("value", "args", "kwargs", "fn")}


def foreign_handlers() -> list[str]:
    """Names of the effect handlers in force that change or watch more than parameters."""
    return [
        type(handler).__name__
        for handler in _PYRO_STACK
        if not (isinstance(handler, TraceMessenger) and handler.param_only)
    ]


class Watch:
    """Everything that some objects lead to in Python, as far as it is found, and whether it is still the same.

    Followed are functions (with what they close over and the globals that they name), methods, modules, lists, dicts
    and those attributes of objects that a followed function names. Numbers and strings are compared by value, all else
    (tensors, parameters) by identity.
    """

    def __init__(self, roots: Iterable[object], params: Iterable[str]) -> None:
        self._roots, self._params = list(roots), list(params)
        self.renew()

    def renew(self) -> None:
        """Take what is there now as the state to compare with."""
        names: set[str] = set()
        while True:  # until no function is found that names more attributes
            before = len(names)
            self._collect(names)
            if len(names) == before:
                return

    def holds(self) -> bool:
        """Whether nothing has changed."""
        stored = pyro.get_param_store()._params
        if any(stored.get(name, _MISSING) is not value for name, value in self._stored):
            return False
        for container, key, value in self._entries:
            now = container.get(key, _MISSING)
            if now is not value and not _equal(now, value):
                return False
        for cell, value in self._cells:
            now = _contents(cell)
            if now is not value and not _equal(now, value):
                return False
        for now, then in self._lists:
            if len(now) != len(then) or not all(a is b or _equal(a, b) for a, b in zip(now, then, strict=True)):
                return False
        return True

    def _collect(self, names: set[str]) -> None:
        stored = pyro.get_param_store()._params
        self._stored = [(name, stored.get(name, _MISSING)) for name in self._params]
        self._entries: list[tuple[Mapping[Any, Any], Any, object]] = []
        self._cells: list[tuple[types.CellType, object]] = []
        self._lists: list[tuple[list[Any], tuple[Any, ...]]] = []
        pending, seen = list(self._roots), set()
        while pending and len(self._entries) < MOST_WATCHED:
            found = pending.pop()
            if id(found) not in seen and not isinstance(found, (*SCALARS, Tensor, type, types.ModuleType)):
                seen.add(id(found))
                self._follow(found, names, pending)

    def _follow(self, found: Any, names: set[str], pending: list[object]) -> None:
        if isinstance(found, types.FunctionType):
            self._function(found, names, pending)
        elif isinstance(found, types.MethodType):
            pending += [found.__func__, found.__self__]
        elif isinstance(found, functools.partial):
            pending += [found.func, *found.args, *found.keywords.values()]
        elif isinstance(found, nn.Module):
            own = vars(found)
            for part in ("_parameters", "_buffers", "_modules"):
                self._note(own[part], own[part], pending)
            self._note(own, [k for k in own if _is_read(found, k, names)], pending)
        elif isinstance(found, dict):
            self._note(found, list(found), pending)
        elif isinstance(found, list | tuple | set | frozenset):
            pending += found
            if isinstance(found, list):
                self._lists.append((found, tuple(found)))
        elif _of_user(found) and isinstance(getattr(found, "__dict__", None), dict):
            self._note(vars(found), [k for k in vars(found) if k in names], pending)
        if _of_user(found) and not isinstance(found, types.FunctionType | types.MethodType):
            of_class = [getattr(type(found), name, None) for name in (*names, "__call__", "forward")]
            pending += [each for each in of_class if isinstance(each, types.FunctionType) and _of_user(each)]

    def _note(self, container: Mapping[Any, Any], keys: Iterable[Any], pending: list[object]) -> None:
        for key in list(keys)[:MOST_WATCHED]:
            self._entries.append((container, key, container[key]))
            pending.append(container[key])

    def _function(self, function: types.FunctionType, names: set[str], pending: list[object]) -> None:
        pending.append(getattr(function, "__wrapped__", None))
        for cell in function.__closure__ or ():
            self._cells.append((cell, _contents(cell)))
            pending.append(_contents(cell))
        pending += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if _of_user(function):
            own = _names(function.__code__)
            names |= own
            self._note(function.__globals__, [n for n in own if n in function.__globals__], pending)


def _is_read(module: nn.Module, key: str, names: set[str]) -> bool:
    """Whether a module's attribute may matter to a step: its mode, its settings, what a program's code names."""
    return key == "training" or (not key.startswith("_") and (key in names or not _of_user(module)))


def _equal(now: object, then: object) -> bool:
    """Whether two scalars are the same; nothing else is, unless it is one object."""
    return type(now) is type(then) and isinstance(then, SCALARS) and now == then


def _contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _names(code: types.CodeType) -> set[str]:
    """The global names that a function uses, those of functions inside it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _of_user(found: object) -> bool:
    """Whether something is of the program and not of a library that it uses."""
    module = getattr(found, "__module__", None) or type(found).__module__
    return (module or "").partition(".")[0] not in _LIBRARIES
