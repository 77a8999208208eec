"""The parameters of a pair of programs: what they are called, and how a run leaves all as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_discrete.probe import on_trial

__all__ = ["modules_of", "parameter_names", "undisturbed"]

Program = Callable[..., Any]


def parameter_names(leaves: Mapping[int, Tensor], programs: Mapping[str, Program]) -> dict[int, str]:
    """Readable names for leaf tensors by their `id`: the param store's, then those of modules and tensors that the
    programs are or close over, else their number and shape."""
    names = {id(value): name for name, value in pyro.get_param_store().named_parameters()}
    for role, program in programs.items():
        owner = _owner(program)
        if isinstance(owner, nn.Module):
            for name, value in owner.named_parameters():
                names.setdefault(id(value), f"{role}.{name}" if owner is program else name)
        for variable, content in _variables(program).items():
            if isinstance(content, nn.Module):
                for name, value in content.named_parameters():
                    names.setdefault(id(value), f"{variable}.{name}")
            elif isinstance(content, Tensor):
                names.setdefault(id(content), variable)
    for number, key in enumerate(leaves):
        names.setdefault(key, f"parameter {number} of shape {tuple(leaves[key].shape)}")
    return names


def modules_of(*programs: Program) -> list[nn.Module]:
    """The modules that programs are, are methods of, or close over."""
    found: dict[int, nn.Module] = {}
    for program in programs:
        for content in (program, _owner(program), *_variables(program).values()):
            if isinstance(content, nn.Module):
                found.setdefault(id(content), content)
    return list(found.values())


@contextmanager
def undisturbed(*programs: Program) -> Iterator[None]:
    """Within, programs may be run at will; afterwards the param store, every random state and the buffers of the
    programs' modules are as they were. Nothing within may change a parameter in place."""
    store = pyro.get_param_store()
    buffers = [b for module in modules_of(*programs) for b in module.buffers()]
    before = [b.detach().clone() for b in buffers]
    try:
        with on_trial(), store.scope(store.get_state()), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _owner(program: Any) -> Any:
    """What a bound method is bound to, else the program itself."""
    return getattr(program, "__self__", program)


def _variables(program: Any) -> dict[str, Any]:
    """The variables that a function closes over or reads from its module, through wrappers such as effect handlers."""
    while isinstance(program, partial) or hasattr(program, "__wrapped__"):
        program = getattr(program, "__wrapped__", None) or program.func
    if not isinstance(program, FunctionType):
        return {}
    cells = program.__closure__ or ()
    variables = dict(zip(program.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    known = program.__globals__
    return variables | {name: known[name] for name in program.__code__.co_names if name in known}
