"""What modules keep from run to run of a pair, and how further runs in a step leave it as one run does.

State is what is saved with a module and what it counts by: the buffers of the modules that a pair can reach (it is one,
is a method of one, closes over one, or calls one as it runs), and the whole and floating numbers among their
attributes. A tensor that belongs to no module is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_discrete.programs.pair import Pair, Program, SiteMessenger, on_trial
from pyro_discrete.programs.parameters import modules_of

__all__ = [
    "ModuleState",
    "SameState",
    "Saved",
    "kept_state",
    "undisturbed",
]


Kept = dict[nn.Module, tuple[Mapping[str, Tensor | None], Mapping[str, Any]]]
"""Of each module its buffers, and its numbers."""


class ModuleState:
    """The modules that may keep state, with those inside of them.

    `changed`: whether they held something else when they were last put back.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        self.modules: dict[nn.Module, None] = {}
        self.changed: bool = False
        self._known: set[int] = set()
        for module in modules:
            self.add(module)

    def add(self, module: nn.Module) -> list[nn.Module]:
        """Take in a module; returns those that are new."""
        if id(module) in self._known:
            return []
        found = [m for m in module.modules() if id(m) not in self._known]
        self._known.update(map(id, found))
        keeping = [m for m in found if m._buffers or not type(m).__module__.startswith("torch.")]
        self.modules.update(dict.fromkeys(keeping))
        return keeping

    def present(self, modules: Iterable[nn.Module] | None = None) -> Kept:
        """What they hold: the very tensors."""
        return {
            m: (m._buffers.copy(), {k: v for k, v in vars(m).items() if type(v) is int or type(v) is float})
            for m in (self.modules if modules is None else modules)
        }

    def copied(self, modules: Iterable[nn.Module] | None = None) -> Kept:
        """What they hold, in tensors of their own."""
        return _copies(self.present(modules))


def _copies(kept: Kept) -> Kept:
    return {
        m: ({k: None if b is None else _copy(b) for k, b in buffers.items()}, numbers)
        for m, (buffers, numbers) in kept.items()
    }


def _copy(buffer: Tensor) -> Tensor:
    return (buffer.detach() if buffer.requires_grad else buffer).clone()


def _put(kept: Kept) -> None:
    """Have the modules hold these tensors and numbers."""
    for module, (buffers, numbers) in kept.items():
        module._buffers.update(buffers)
        vars(module).update(numbers)


def _fill(kept: Kept, values: Kept) -> bool:
    """Have the tensors hold what they held; whether any held something else."""
    changed = False
    for module, (buffers, _) in kept.items():
        for name, buffer in buffers.items():
            value = values[module][0][name]
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                buffer.data.copy_(value)  # the graph of a run that is given up may have saved it
                changed = True
    return changed


class Saved:
    """What modules held when they were noted, to be put back."""

    def __init__(self, state: ModuleState) -> None:
        self.state = state
        self._held = state.present()
        self._values = _copies(self._held)

    def note(self, module: nn.Module, *_: Any) -> None:
        """Take in a module that is about to be called."""
        new = self.state.add(module)
        if new:
            held = self.state.present(new)
            self._held |= held
            self._values |= _copies(held)

    def put_back(self) -> None:
        """Have all of it as it was."""
        now = self.state.present(self._held)
        others = any(
            now[m][1] != numbers or any(now[m][0].get(name) is not b for name, b in buffers.items())
            for m, (buffers, numbers) in self._held.items()
        )
        _put(self._held)
        self.state.changed = _fill(self._held, self._values) or others


@contextmanager
def kept_state(*programs: Program) -> Iterator[ModuleState]:
    """Within, programs may be run at will; afterwards their modules are as before. Gives what modules there are."""
    saved = Saved(ModuleState(modules_of(*programs)))
    hook = register_module_forward_pre_hook(saved.note)
    try:
        yield saved.state
    finally:
        hook.remove()
        saved.put_back()


@contextmanager
def undisturbed(*programs: Program) -> Iterator[None]:
    """Within, programs may be run at will; afterwards the param store, every random state and the programs' modules are
    as they were. Nothing within may change a parameter in place."""
    store = pyro.get_param_store()
    with kept_state(*programs), on_trial(), store.scope(store.get_state()), torch.enable_grad():
        yield


class SameState:
    """Has the runs of a step start from the same state, and leave what the first one leaves.

    `runs`: how often the guide and the model were run.

    The first run of either program works on the modules' own tensors. Further ones work on copies of what that one
    started from, so that all of them see the same programs; at the end the modules have their own tensors again.
    """

    def __init__(self, state: ModuleState) -> None:
        self.state = state
        self.runs: dict[str, int] = {"guide": 0, "model": 0}
        self._own: Kept = {}
        self._starts: dict[str, Kept] = {}
        self._running = ""

    @contextmanager
    def around(self, pair: Pair) -> Iterator[Pair]:
        """The pair, to be run at will within."""
        hook = register_module_forward_pre_hook(self._note)
        try:
            yield replace(pair, guide=_Turn(self, "guide")(pair.guide), model=_Turn(self, "model")(pair.model))
        finally:
            hook.remove()
            _put(self._own)

    def begin(self, program: str) -> None:
        """A run of the program begins."""
        self._running = program
        self.runs[program] += 1
        if program in self._starts:
            _put(_copies(self._starts[program]))
        else:
            _put(self._own)
            self._starts[program] = self.state.copied()

    def end(self, program: str) -> None:
        """It has ended."""
        self._running = ""
        if self.runs[program] == 1:
            self._own = self.state.present()

    def _note(self, module: nn.Module, _: Any) -> None:
        if self._running and (new := self.state.add(module)):
            self._starts[self._running] |= self.state.copied(new)


class _Turn(SiteMessenger):
    """Tells of the beginnings and the ends of a program's runs."""

    def __init__(self, same: SameState, program: str) -> None:
        super().__init__()
        self.same, self.program = same, program

    def __enter__(self) -> Messenger:
        self.same.begin(self.program)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self.same.end(self.program)
        return super().__exit__(*error)
