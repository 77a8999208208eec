"""What a captured step took from Python, which its graph cannot see change: objects, numbers, modes, parameters."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_discrete.programs.plate_parts import PlateParts
from pyro_discrete.programs.python_state import PythonState

__all__ = [
    "Run",
    "Watch",
    "foreign_handlers",
    "keys_of_handlers",
    "observed_run",
]


MOST_WATCHED = 5000
"""Programs that lead to more objects than this are not captured."""


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
    """Names of the effect handlers in force that change or watch more than parameters, and say not by a key how."""
    return [
        type(handler).__name__
        for handler in _PYRO_STACK
        if not isinstance(handler, PlateParts) and not (isinstance(handler, TraceMessenger) and handler.param_only)
    ]


def keys_of_handlers() -> tuple[Any, ...]:
    """What a step depends on by the other handlers in force."""
    return tuple([handler.key for handler in _PYRO_STACK if isinstance(handler, PlateParts)])


class Watch:
    """Everything that some objects lead to in Python, and some params, and whether it is still the same.

    Numbers and strings are compared by value, all else (tensors, parameters) as objects. `unknown`: why it cannot be
    told whether it is still the same; empty if it can.
    """

    def __init__(self, roots: Iterable[object], params: Iterable[str]) -> None:
        self._params = list(params)
        self._state = PythonState(roots, exact=True, most=MOST_WATCHED)
        self._stored = self._now()

    @property
    def unknown(self) -> str:
        """Why it cannot be told whether all is still the same."""
        return self._state.unknown

    def renew(self) -> None:
        """Take what is there now as the state to compare with."""
        self._state.renew()
        self._stored = self._now()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return all(map(operator.is_, self._now(), self._stored)) and self._state.holds()

    def _now(self) -> list[object]:
        stored = pyro.get_param_store()._params
        return [stored.get(name) for name in self._params]
