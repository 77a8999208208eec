"""Everything that programs can see in Python, found by a walk from them, and whether it is still the same.

What a program does in a call is settled by its code, its arguments, and the values that its code reads elsewhere. The
walk goes from objects to whatever their code refers to (`code_reads`): variables, cells, defaults, attributes, through
every Python function that may be called. What it meets is on one closed list:

- numbers and strings, compared by value; tensors, by shape and dtype (or as objects); containers of them;
- functions, methods, partials, classes, modules, objects of classes written in Python: by identity, and by those of
  their attributes that any code met names;
- functions and objects of torch, Pyro, NumPy and SciPy, and of modules of Python that hold no state.

Of anything else (files, the environment, clocks, random generators, iterators, functions written in C) it cannot be
told whether it has stayed the same: `PythonState.unknown` says what was met.
"""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import enum
import operator
import reprlib
import sys
from collections import deque, namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property, partial
from inspect import Parameter, Signature
from re import Pattern
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, cast
from weakref import ReferenceType, ref

import numpy as np
import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from pyro_discrete.errors import in_a_line
from pyro_discrete.programs.code_reads import code_reads

__all__ = [
    "SCALARS",
    "PythonState",
    "SameObject",
    "UnknownStateError",
    "closed_over",
    "described",
]


SCALARS = frozenset((bool, int, float, complex, str, bytes, type(None)))


MOST_OBJECTS = 1000
"""Programs that lead to more objects than this are not watched."""


MOST_ITEMS = 10_000
"""Containers of more items than this are not watched."""


MOST_BYTES = 1 << 16
"""NumPy arrays that are larger than this are not watched."""


DEEPEST = 8
"""Arguments that are nested more deeply than this are not watched."""


_TRUSTED = frozenset(("torch", "pyro", "pyro_discrete", "numpy", "scipy"))


_PURE = frozenset(
    (
        *("math", "cmath", "_operator", "operator", "functools", "_functools", "itertools", "collections"),
        *("_collections", "_collections_abc", "typing", "types", "enum", "dataclasses", "contextlib", "abc"),
        *("_abc", "copy", "warnings", "_warnings", "numbers", "fractions", "decimal", "_decimal", "string"),
        *("re", "textwrap", "bisect", "_bisect", "heapq", "_heapq", "__future__", "typing_extensions"),
    )
)
"""Modules of Python that hold no state and look at nothing outside."""


_PURE_BUILTINS = frozenset(
    (
        *("abs", "all", "any", "ascii", "bin", "bool", "bytearray", "bytes", "callable", "chr", "classmethod"),
        *("complex", "delattr", "dict", "dir", "divmod", "enumerate", "filter", "float", "format", "frozenset"),
        *("getattr", "hasattr", "hash", "hex", "id", "int", "isinstance", "issubclass", "iter", "len", "list"),
        *("locals", "map", "max", "memoryview", "min", "next", "object", "oct", "ord", "pow", "print"),
        *("property", "range", "repr", "reversed", "round", "set", "setattr", "slice", "sorted"),
        *("staticmethod", "str", "sum", "super", "tuple", "type", "vars", "zip", "Ellipsis", "NotImplemented"),
        *("__debug__", "__name__", "__build_class__"),
    )
)


_UNSETTLED = frozenset(
    (
        *("load", "from_file", "fromfile", "loadtxt", "genfromtxt", "memmap", "open_memmap", "fromregex"),
        *("seed", "initial_seed", "get_num_threads", "default_rng", "RandomState", "load_state_dict_from_url"),
        *("getcontext", "localcontext", "filters", "memory_allocated", "max_memory_allocated"),
    )
)
"""Functions of the libraries whose results are not settled by their arguments."""


_INSIDES = frozenset(
    ("__globals__", "__builtins__", "__closure__", "cell_contents", "f_globals", "f_locals", "__subclasses__")
)


_ASKED: Mapping[str, Callable[[], Any]] = {
    "is_grad_enabled": torch.is_grad_enabled,
    "is_inference_mode_enabled": torch.is_inference_mode_enabled,
    "get_default_dtype": torch.get_default_dtype,
    "get_param_store": lambda: tuple(pyro.get_param_store().keys()),
}
"""What programs may ask the libraries about their state."""


_VALUES = (
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, np.dtype, range, slice, Pattern),
    *(Decimal, Fraction, date, time, timedelta, type(Ellipsis), type(NotImplemented), Signature, Parameter),
)
"""Types whose objects never change, beside `SCALARS`: compared by value."""


_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType, MethodDescriptorType, WrapperDescriptorType)


_CONTAINERS = (dict, list, tuple, set, frozenset, deque, MappingProxyType)


_FOLLOWED = (FunctionType, MethodType, partial, nn.Module, Messenger, list, tuple)
"""What is followed in an object of a library."""


_NAMESPACES = (SimpleNamespace, argparse.Namespace)


_ItemOfNamedTuple = type(vars(namedtuple("_", "item"))["item"])
_Cached = type(cache(int))


_CONSTRUCTORS = frozenset(("__init__", "__new__", "__post_init__"))


_OF_PLATES = ("name", "dim", "size", "subsample_size")
"""What a plate is told by."""


_UNCALLED = frozenset(
    (
        *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__del__"),
        *("__init_subclass__", "__class_getitem__", "__set_name__", "__doc__", "__module__", "__dict__"),
        *("__weakref__", "__annotations__", "__qualname__", "__slots__", "__copy__", "__deepcopy__", "__dir__"),
        *("__sizeof__", "__dataclass_fields__", "__dataclass_params__", "__match_args__"),
        *("__abstractmethods__", "__parameters__", "__orig_bases__", "_abc_impl", "__firstlineno__"),
        *("__static_attributes__", "__replace__"),
    )
)
"""What a class holds that no program calls on its way."""


_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every `nn.Module` that are torch's own."""


_PLAIN_BASES = (object, nn.Module, PyroModule)


_RANDOM = "it draws random numbers from NumPy or Python's `random`"


_MISSING = object()


class UnknownStateError(Exception):
    """Something of which it cannot be told whether it stays the same."""


class PythonState:
    """Everything that the code of some objects can see, as it is now, and whether it is still the same.

    - `unknown`: why that cannot be told; empty if it can.
    - `arguments`: objects that are new in every call. What they hold is followed, but they are not held to stay as they
      are: `described` says what they are.
    - `exact`: tensors are compared as objects, else by their shape and dtype alone.
    - `tensors`: those in variables, attributes and buffers, weakly; not those in containers and arguments, as of what
      others keep, which are `contained`.
    """

    def __init__(
        self, roots: Iterable[object], arguments: Iterable[object] = (), exact: bool = False, most: int = MOST_OBJECTS
    ) -> None:
        self._roots, self._arguments, self._exact, self._most = list(roots), list(arguments), exact, most
        self.renew()

    def renew(self) -> None:
        """Take what is there now as the state to compare with."""
        self.unknown: str = ""
        self._names: set[str] = set()
        self._computed = False
        try:
            while True:  # until no code is found that names more attributes
                before = len(self._names), self._computed
                self._collect()
                if before == (len(self._names), self._computed):
                    return
        except UnknownStateError as error:
            self.unknown = str(error)
        except Exception as error:  # of an object's own code, when it was looked at
            self.unknown = f"it leads to an object that cannot be looked into ({in_a_line(error)})"
        finally:
            self._noted, self._seen, self._pending, self._weak = set(), {}, [], []
            self._columns()

    def holds(self) -> bool:
        """Whether nothing has changed, as far as it is watched."""
        if [*map(len, self._sized)] != self._lengths:
            return False
        now = [get(key) for get, key in self._gets]
        if not all(map(operator.is_, now, self._objects)) and not all(map(self._is_like, now, self._objects)):
            return False
        for mapping, key, then in self._others:
            now = mapping.get(key, _MISSING)
            if now is not then and not (then.fits(now) if type(then) is _Like else _same(now, then)):
                return False
        for cell, then in self._cells:
            now = _contents(cell)
            if now is not then and not _same(now, then):
                return False
        for owner, name, then in self._slots:
            now = getattr(owner, name, _MISSING)
            if now is not then and not _same(now, then):
                return False
        for items, then in self._items:
            if len(items) != len(then):
                return False
            if not all(map(operator.is_, items, then)) and not all(map(self._alike, items, then)):
                return False
        for ask, then in self._answers:
            if ask() != then:
                return False
        return all(array.tobytes() == then for array, then in self._arrays)

    def _columns(self) -> None:
        """What `holds` goes through without loops in Python, as most of what is watched is the same object each time.

        For the modules of a belief network it takes two thirds of the time that they take.
        """
        self._sized: list[Sized] = [sized for sized, _ in self._sizes]
        self._lengths: list[int] = [length for _, length in self._sizes]
        same = [each for each in self._entries if each[2] is not None and type(each[2]) is not _Like]
        self._gets = [(mapping.get, key) for mapping, key, _ in same]
        self._objects = [then for *_, then in same]
        self._others = [each for each in self._entries if each[2] is None or type(each[2]) is _Like]

    @staticmethod
    def _is_like(now: object, then: object) -> bool:
        return now is then or _same(now, then)

    def _alike(self, now: object, then: object) -> bool:
        return now is then or _same(now, self._kept(then))

    def _begin(self) -> None:
        self._entries: list[tuple[Mapping[Any, Any], Any, object]] = []
        self._cells: list[tuple[CellType, object]] = []
        self._sizes: list[tuple[Sized, int]] = []
        self._slots: list[tuple[object, str, object]] = []
        self._items: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], bytes]] = []
        self._answers: list[tuple[Callable[[], Any], Any]] = []
        self._noted: set[tuple[Any, Any]] = set()
        self._seen: dict[int, object] = {}
        self._pending: list[Any] = []
        self._weak: list[ReferenceType[Any]] = []
        self.tensors: list[ReferenceType[Tensor]] = []
        self.contained: list[ReferenceType[Tensor]] = []

    def _collect(self) -> None:
        self._begin()
        self._pending += self._roots
        for argument in self._arguments:
            self._argument(argument, 0)
        while self._pending:
            found = self._pending.pop()
            if type(found) in SCALARS or id(found) in self._seen:
                continue
            self._seen[id(found)] = found
            if len(self._seen) > self._most:
                raise UnknownStateError(f"it leads to more than {self._most} objects that would have to be watched")
            self._follow(found)
        if any(id(each()) not in self._seen for each in self._weak if each() is not None):
            raise UnknownStateError("it reads a weakref to what is not seen to be kept alive otherwise")
        for name, ask in _ASKED.items():
            if name in self._names:
                self._answers.append((ask, ask()))

    def _argument(self, value: Any, depth: int) -> None:
        """Follow what an argument holds, which `described` tells."""
        kind = type(value)
        if isinstance(value, Tensor):
            self.contained.append(ref(value))
        if kind in SCALARS or isinstance(value, (Tensor, np.ndarray, np.generic, *_VALUES)) or depth > DEEPEST:
            return
        if isinstance(value, _CONTAINERS) or _is_plain(value):
            self._class(kind, called=False)
            for each in _parts(value):
                self._argument(each, depth + 1)
            return
        self._pending.append(value)

    # -- what is noted

    def _kept(self, value: object) -> object:
        """What stands for a value in a comparison: a tensor is not kept alive."""
        if isinstance(value, Tensor):
            self.tensors.append(ref(value))
        if self._exact:
            return value
        if isinstance(value, Tensor):
            return _Like(value)
        return _Described(value) if isinstance(value, Distribution | Trace) else value

    def _note(self, mapping: Mapping[Any, Any], keys: Iterable[Any]) -> None:
        for key in keys:
            if (id(mapping), key) not in self._noted:
                self._noted.add((id(mapping), key))
                value = mapping.get(key, _MISSING)
                self._entries.append((mapping, key, self._kept(value)))
                if not isinstance(value, Tensor) or vars(value):
                    self._pending.append(value)

    def _note_attributes(self, owner: object, names: Iterable[str]) -> None:
        for name in names:
            value = getattr(owner, name, _MISSING)
            self._slots.append((owner, name, self._kept(value)))
            self._pending.append(value)

    def _named(self, mapping: Mapping[str, Any]) -> list[str]:
        """The attributes that some code names."""
        if self._computed:
            return [key for key in mapping if not (key.startswith("__") and key.endswith("__"))]
        return [key for key in mapping if key in self._names]

    # -- what is followed

    def _follow(self, found: Any) -> None:
        kind = type(found)
        if found is _MISSING or isinstance(found, _VALUES):
            return
        if isinstance(found, Tensor):
            self._note(vars(found), self._named(vars(found)))
            self._class(kind, called=False)
        elif isinstance(found, np.ndarray | np.generic):
            self._arrays.append((cast("np.ndarray[Any, Any]", found), _bytes_of(found)))
        elif isinstance(found, ModuleType):
            self._module(found, {()})
        elif isinstance(found, type):
            self._class(found, called=True)
        elif isinstance(found, FunctionType):
            self._function(found)
        elif isinstance(found, MethodType):
            self._pending += [found.__func__, found.__self__]
        elif isinstance(found, partial):
            self._pending += [found.func, *found.args, *found.keywords.values()]
        elif isinstance(found, BuiltinFunctionType):
            self._builtin(found)
        elif isinstance(found, property):
            self._pending += [found.fget, found.fset, found.fdel]
        elif isinstance(found, staticmethod | classmethod):
            self._pending.append(found.__func__)
        elif isinstance(found, cached_property):
            self._pending.append(found.func)
        elif isinstance(found, nn.Module):
            self._network(found)
        elif isinstance(found, _CONTAINERS):
            self._container(found)
        elif isinstance(found, _DESCRIPTORS):
            pass  # what is in a slot is looked at in the object
        elif isinstance(found, enum.Enum) or _is_users(kind) or isinstance(found, _NAMESPACES):
            self._object(found)
        else:
            self._foreign(found)

    def _function(self, function: FunctionType) -> None:
        users = _is_users(function)
        root = _root(function)
        if not users and root not in _TRUSTED | _PURE:
            raise UnknownStateError(f"it calls {root}.{function.__name__}, whose results may change unseen")
        self._check_name(function.__module__, function.__name__, root)
        variables = code_reads(function.__code__).variables if users else {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = _contents(cell)
            self._cells.append((cell, self._kept(value)))
            self._refer(value, variables.get(name, {()}))
        self._slots.append((function, "__code__", function.__code__))
        self._note_attributes(function, ("__defaults__", "__kwdefaults__"))
        own = vars(function)
        self._note(own, [key for key in own if key == "__wrapped__" or key in self._named(own)])
        if not users:
            return
        self._sizes.append((own, len(own)))
        reads = code_reads(function.__code__)
        if reads.names & _INSIDES:
            raise UnknownStateError(f"{function.__name__} reads {min(reads.names & _INSIDES)}")
        self._names |= reads.names
        self._computed |= reads.computed
        known = function.__globals__
        for name, paths in reads.variables.items():
            if name in known:
                self._entry(known, name, paths)
            elif name in function.__code__.co_freevars:
                continue
            elif hasattr(builtins, name):
                value = getattr(builtins, name)
                if name not in _PURE_BUILTINS and not (isinstance(value, type) and issubclass(value, BaseException)):
                    raise UnknownStateError(f"{function.__name__} calls {name}, whose results may change unseen")
            elif name not in function.__code__.co_cellvars:
                self._note(known, [name])
        for name, taken in reads.imports.items():
            self._imported(function, name, taken)

    def _entry(self, mapping: Mapping[str, Any], name: str, paths: set[tuple[str, ...]]) -> None:
        """A variable, of which these attributes are read."""
        value = mapping[name]
        if isinstance(value, ModuleType):
            self._entries.append((mapping, name, value))
            self._module(value, paths)
        else:
            self._note(mapping, [name])

    def _refer(self, value: object, paths: set[tuple[str, ...]]) -> None:
        if isinstance(value, ModuleType):
            self._module(value, paths)
        else:
            self._pending.append(value)

    def _imported(self, function: FunctionType, name: str, taken: set[str]) -> None:
        package = function.__globals__.get("__package__") or ""
        module = sys.modules.get(name) or sys.modules.get(f"{package}.{name}")
        if module is None:
            if name.partition(".")[0] not in _TRUSTED | _PURE:
                raise UnknownStateError(f"{function.__name__} imports {name or 'a module'}, which is not loaded yet")
            return
        self._module(module, {(each,) for each in taken} or {()})
        if not taken and "." in name:
            self._module(sys.modules[name.partition(".")[0]], {()})

    def _module(self, module: ModuleType, paths: set[tuple[str, ...]]) -> None:
        root = module.__name__.partition(".")[0]
        if root in _TRUSTED:
            for path in paths:
                for name in path or self._names & _UNSETTLED:
                    self._check_name(module.__name__, name, root)
                if path and type(vars(module).get(path[0])) in SCALARS:
                    self._note(vars(module), path[:1])
            return
        if root in _PURE:
            for path in paths:
                for name in path:
                    self._check_name(module.__name__, name, root)
            return
        if root == "random":
            raise UnknownStateError(_RANDOM)
        if root in sys.stdlib_module_names and root != "__main__":
            raise UnknownStateError(f"it refers to Python's module {root}, whose answers may change unseen")
        own = vars(module)
        for path in paths:
            if path and isinstance(own.get(path[0]), ModuleType):
                self._entries.append((own, path[0], own[path[0]]))
                self._module(own[path[0]], {path[1:]})
            else:
                self._note(own, path[:1] or self._named(own))
        self._pending.append(own.get("__getattr__"))

    def _check_name(self, module: str | None, name: str, root: str) -> None:
        if root == "numpy" and "random" in f"{module}.{name}".split("."):
            raise UnknownStateError(_RANDOM)
        if root in _TRUSTED | _PURE and name in _UNSETTLED:
            raise UnknownStateError(f"it refers to {module}.{name}, whose results may change unseen")

    def _builtin(self, function: BuiltinFunctionType) -> None:
        owner = function.__self__
        if owner is not None and not isinstance(owner, ModuleType):
            self._pending.append(owner)
            return
        root = _root(function)
        if root == "builtins":
            if function.__name__ not in _PURE_BUILTINS:
                raise UnknownStateError(f"it refers to {function.__name__}, whose results may change unseen")
        elif root not in _TRUSTED | _PURE:
            raise UnknownStateError(f"it calls {root}.{function.__name__}, a function that is not written in Python")
        self._check_name(function.__module__, function.__name__, root)

    def _class(self, kind: type, called: bool) -> None:
        """What code that is written in Python a class has; `called`: the class itself is at hand."""
        users = [each for each in kind.__mro__ if _is_users(each)]
        for each in kind.__mro__ if users or called else ():
            root = _root(each)
            if each not in users and root not in _TRUSTED | _PURE | {"builtins"}:
                raise UnknownStateError(f"it refers to {root}.{each.__name__}, whose contents cannot be watched")
            if called and each is kind:
                self._check_name(each.__module__, each.__name__, root)
        libraries = [each for each in kind.__mro__ if each not in users and each is not object]
        for each in users:
            keys = [key for key in each.__dict__ if self._may_use(key, called, libraries)]
            self._class_entries(each, keys)
            if (each, None) not in self._noted:
                self._noted.add((each, None))
                self._sizes.append((each.__dict__, len(each.__dict__)))
        for each in libraries:
            named = self._names & each.__dict__.keys()
            self._class_entries(each, [key for key in named if type(each.__dict__[key]) in SCALARS])
        if _is_users(type(kind)):
            self._class(type(kind), called=False)

    def _class_entries(self, kind: type, keys: Iterable[str]) -> None:
        own = kind.__dict__
        for key in keys:
            if (kind, key) not in self._noted and not _is_generated(own[key]):
                self._noted.add((kind, key))
                self._entries.append((own, key, self._kept(own[key])))
                self._pending.append(own[key])

    def _may_use(self, key: str, called: bool, libraries: Iterable[type]) -> bool:
        """Whether what a class has by this name may be used: by code that names it, by Python, or by libraries."""
        if key in _CONSTRUCTORS:
            return called
        if key in _UNCALLED:
            return False
        by_python = key.startswith("__") and key.endswith("__")
        by_libraries = key.startswith("_pyro_") or any(hasattr(each, key) for each in libraries)
        return self._computed or key in self._names or by_python or by_libraries

    def _container(self, found: Any) -> None:
        if len(found) > MOST_ITEMS:
            raise UnknownStateError(f"it refers to a {type(found).__name__} of {len(found)} items, too long to watch")
        items: Iterable[Any] = found
        values = found.values() if isinstance(found, dict | MappingProxyType) else found
        self.contained += [ref(each) for each in values if isinstance(each, Tensor)]
        if isinstance(found, dict | MappingProxyType):
            self._items.append((found.keys(), tuple(found)))
            self._items.append((found.values(), tuple(found.values())))
            items = found.values()
            self._pending.append(getattr(found, "default_factory", None))
        elif not isinstance(found, tuple | frozenset):
            self._items.append((found, tuple(found)))
        self._pending += [each for each in items if type(each) not in SCALARS and type(each) is not Tensor]
        if _is_users(type(found)):
            self._object(found)

    def _network(self, module: nn.Module) -> None:
        own, kind = vars(module), type(module)
        self._slots.append((module, "__class__", kind))
        named = [k for k in self._named(own) if k not in _OF_MODULES]
        self._note(own, dict.fromkeys(["training", *named, *_read_by_libraries(kind, own)]))
        self._sizes.append((own, len(own)))
        for part in ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks"):
            self._sizes.append((own[part], len(own[part])))
            self._note(own[part], list(own[part]))
        for part in ("_pyro_samples", "_pyro_params"):
            self._pending += [each for each in own.get(part, {}).values() if not isinstance(each, Tensor)]
        self._class(kind, called=False)

    def _object(self, found: Any) -> None:
        """An object of a class that is written in Python."""
        self._class(type(found), called=False)
        self._slots.append((found, "__class__", type(found)))
        own = getattr(found, "__dict__", None)
        if isinstance(own, dict):
            shown = own if dataclasses.is_dataclass(found) else ()  # by its `__repr__`, and in comparisons
            self._note(own, dict.fromkeys([*self._named(own), *shown, *_read_by_libraries(type(found), own)]))
            self._sizes.append((own, len(own)))
        slots = [
            n for n in _slots(type(found)) if self._computed or n in self._names or dataclasses.is_dataclass(found)
        ]
        self._note_attributes(found, slots)

    def _foreign(self, found: Any) -> None:
        """An object of a library."""
        kind = type(found)
        root, name = _root(kind), kind.__name__
        if root in ("operator", "_operator"):
            self._computed |= name in ("attrgetter", "methodcaller")
            return
        stateful = hasattr(kind, "__next__") or "random" in kind.__module__.split(".")
        if root in ("typing", "types", "dataclasses", "abc") and not stateful:
            return
        if kind is _ItemOfNamedTuple:
            return
        if kind is ReferenceType:
            self._weak.append(found)
            return
        if kind is _Cached:  # gives what its function gave, until it is called anew
            calls = _Calls(found)
            self._slots.append((calls, "made", calls.made))
            self._pending.append(found.__wrapped__)
            return
        if root not in _TRUSTED or stateful:
            raise UnknownStateError(f"it reads an object of type {kind.__module__}.{name}, which cannot be watched")
        own = getattr(found, "__dict__", None)
        if isinstance(own, dict) and not isinstance(found, type(pyro.get_param_store())):
            if isinstance(found, Messenger):
                self._note(own, own)
            self._note(own, [key for key in self._named(own) if isinstance(own[key], (*SCALARS, *_CONTAINERS))])
            self._pending += [each for each in own.values() if _is_followed(each)]


class _Like:
    """A tensor's shape and dtype."""

    __slots__ = ("dtype", "kind", "shape")

    def __init__(self, tensor: Tensor) -> None:
        self.kind, self.shape, self.dtype = type(tensor), tensor.shape, tensor.dtype

    def fits(self, now: object) -> bool:
        return type(now) is self.kind and now.shape == self.shape and now.dtype == self.dtype  # type: ignore[attr-defined]


class _Described:
    """A distribution, by its parameters, or a trace, by its sites."""

    __slots__ = ("description",)

    def __init__(self, value: Distribution | Trace) -> None:
        self.description = self._of(value)

    def fits(self, now: object) -> bool:
        return isinstance(now, Distribution | Trace) and self._of(now) == self.description

    @staticmethod
    def _of(value: Distribution | Trace) -> object:
        if isinstance(value, Trace):
            return type(value), [*value.nodes]
        kind = type(value)
        own = [name for name in vars(value) if not isinstance(getattr(kind, name, None), lazy_property)]
        try:
            return kind, [(name, described(vars(value)[name], 1)) for name in own]
        except UnknownStateError:
            return SameObject(value)


class SameObject:
    """Equal to the same object alone."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value: object = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameObject) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def described(value: Any, depth: int = 0, measured: bool = True) -> Any:
    """What an argument is, to be compared by `==`: numbers and strings by value, tensors by shape and dtype, containers
    and objects of plain classes by what they hold, all else by identity.

    `measured=False` leaves out the shapes of tensors.
    Raises `UnknownStateError` for what is too large or too deep.
    """
    kind = type(value)
    if kind in SCALARS:
        return kind, value
    if isinstance(value, Tensor):
        own = vars(value)
        return (
            kind,
            *((value.shape, value.dtype) if measured else ()),
            *([(n, described(v, depth + 1, measured)) for n, v in own.items()] if own else ()),
        )
    if isinstance(value, _VALUES):
        return kind, repr(value) if isinstance(value, slice) else value
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype, value.shape, _bytes_of(value)
    if isinstance(value, Distribution | Trace) and not _is_users(kind):
        return kind, _Described(value).description
    if isinstance(value, _CONTAINERS) or _is_plain(value):
        if depth > DEEPEST:
            raise UnknownStateError(f"an argument is nested more than {DEEPEST} deep")
        if isinstance(value, _CONTAINERS) and len(value) > MOST_ITEMS:
            raise UnknownStateError(f"an argument holds {len(value)} items, too many to watch")
        keys = [*value] if isinstance(value, dict | MappingProxyType) else []
        return kind, keys, [described(each, depth + 1, measured) for each in _parts(value)]
    return kind, SameObject(value)


class _Calls:
    """The calls of a cached function that its cache did not answer, and the answers that it holds."""

    def __init__(self, cached: Any) -> None:
        self._cached = cached

    @property
    def made(self) -> tuple[int, int]:
        info = self._cached.cache_info()
        return info.misses, info.currsize


def closed_over(program: Any) -> dict[str, Any]:
    """The variables that a function closes over or reads from its module, through wrappers such as effect handlers."""
    while isinstance(program, partial) or hasattr(program, "__wrapped__"):
        program = getattr(program, "__wrapped__", None) or program.func
    if not isinstance(program, FunctionType):
        return {}
    cells = zip(program.__code__.co_freevars, program.__closure__ or (), strict=True)
    known, names = program.__globals__, code_reads(program.__code__).variables
    variables = {name: _contents(cell) for name, cell in cells}
    found = variables | {name: known[name] for name in names if name in known}
    return {name: value for name, value in found.items() if value is not _MISSING}


def _same(now: object, then: Any) -> bool:
    """Whether a value is as it was, where it is another object."""
    kind = type(then)
    if kind is _Like or kind is _Described:
        return then.fits(now)
    if type(now) is not kind:
        return False
    if kind in SCALARS or isinstance(then, _VALUES):
        return now == then
    if isinstance(then, SubsampleMessenger):  # a plate that is made anew in every run, as automatic guides do
        return all(getattr(now, name) == getattr(then, name) for name in _OF_PLATES)
    if kind is dict:
        present = cast("dict[Any, Any]", now)
        return [*present] == [*then] and all(each is then[k] or _same(each, then[k]) for k, each in present.items())
    if isinstance(then, tuple) or kind is list:
        pairs = zip(cast("Iterable[Any]", now), then, strict=False)
        return len(cast("Sized", now)) == len(then) and all(a is b or _same(a, b) for a, b in pairs)
    return isinstance(then, np.generic) and cast("np.generic", now).tobytes() == then.tobytes()


def _parts(value: Any) -> list[Any]:
    """What a container or an object of a plain class holds."""
    parts = []
    if isinstance(value, dict | MappingProxyType):
        parts += value.values()
    elif isinstance(value, _CONTAINERS):
        parts += value
    parts += (getattr(value, "__dict__", None) or {}).values()
    return parts + [getattr(value, name, _MISSING) for name in _slots(type(value))]


def _is_generated(method: object) -> bool:
    """Whether it is the `__repr__` that `dataclass` makes."""
    return isinstance(method, FunctionType) and method.__code__.co_filename in (dataclasses.__file__, reprlib.__file__)


def _is_followed(value: object) -> bool:
    """Whether what an object of a library holds is looked into: what may lead to code or objects of the program."""
    kind = type(value)
    if isinstance(value, _FOLLOWED) or _is_users(kind):
        return True
    opaque = isinstance(value, Tensor | Trace | type(pyro.get_param_store())) or hasattr(kind, "__next__")
    return not opaque and _root(kind) in _TRUSTED and hasattr(value, "__dict__")


def _read_by_libraries(kind: type, own: Iterable[str]) -> list[str]:
    """The attributes that code of a library may read, which a class inherits: all that are not private."""
    plain = all(_is_users(c) or c in _PLAIN_BASES or _root(c) in _PURE | {"builtins"} for c in kind.__mro__)
    return [] if plain else [name for name in own if not name.startswith("_")]


def _slots(kind: type) -> list[str]:
    return [
        name
        for each in kind.__mro__
        if _is_users(each)
        for name, value in each.__dict__.items()
        if isinstance(value, MemberDescriptorType)
    ]


def _is_plain(value: object) -> bool:
    """Whether an object is told by its fields: of a class written in Python that is no network."""
    if isinstance(value, _NAMESPACES):
        return True
    return _is_users(type(value)) and not isinstance(value, nn.Module | type | FunctionType | enum.Enum | Tensor)


def _bytes_of(array: Any) -> bytes:
    if array.nbytes > MOST_BYTES or array.dtype.hasobject:
        raise UnknownStateError(
            f"it reads a NumPy array of {array.nbytes} bytes and dtype {array.dtype}; give a tensor"
        )
    return array.tobytes()


def _root(thing: Any) -> str:
    """The package that something is of; a function that of its code, whatever `functools.wraps` says."""
    if isinstance(thing, FunctionType):
        return (thing.__globals__.get("__name__") or "").partition(".")[0]
    return (getattr(thing, "__module__", None) or type(thing).__module__ or "").partition(".")[0]


def _is_users(thing: Any) -> bool:
    """Whether a function or class is written in Python, and not of a library that is trusted or of Python itself."""
    if isinstance(thing, type) and not thing.__flags__ & (1 << 9):  # a class that is written in C
        return False
    root = _root(thing)
    return root not in _TRUSTED and (root not in sys.stdlib_module_names or root == "__main__")


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING
