"""The parameters of a pair of programs: what they are called, whose modules hold them, which a loss depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from torch import Tensor, nn

from pyro_discrete.programs.python_state import closed_over

__all__ = [
    "KnownLeaves",
    "leaf_parameters",
    "modules_of",
    "parameter_names",
]


def parameter_names(leaves: Mapping[int, Tensor], programs: Mapping[str, Callable[..., Any]]) -> dict[int, str]:
    """Readable names for leaf tensors by their `id`: the param store's, then those of modules and tensors that the
    programs are or close over, else their number and shape."""
    names = {id(value): name for name, value in pyro.get_param_store().named_parameters()}
    for role, program in programs.items():
        owner = _owner(program)
        if isinstance(owner, nn.Module):
            for name, value in owner.named_parameters():
                names.setdefault(id(value), f"{role}.{name}" if owner is program else name)
        for variable, content in closed_over(program).items():
            if isinstance(content, nn.Module):
                for name, value in content.named_parameters():
                    names.setdefault(id(value), f"{variable}.{name}")
            elif isinstance(content, Tensor):
                names.setdefault(id(content), variable)
    for number, key in enumerate(leaves):
        names.setdefault(key, f"parameter {number} of shape {tuple(leaves[key].shape)}")
    return names


def modules_of(*programs: Callable[..., Any]) -> list[nn.Module]:
    """The modules that programs are, are methods of, or close over."""
    found: dict[int, nn.Module] = {}
    for program in programs:
        for content in (program, _owner(program), *closed_over(program).values()):
            if isinstance(content, nn.Module):
                found.setdefault(id(content), content)
    return list(found.values())


def _owner(program: Any) -> Any:
    """What a bound method is bound to, else the program itself."""
    return getattr(program, "__self__", program)


def leaf_parameters(*losses: Tensor) -> list[Tensor]:
    """All parameters that losses depend on, wherever they live: the leaves of their autograd graphs."""
    leaves = [loss for loss in losses if loss.requires_grad and loss.grad_fn is None]
    stack: list[Any] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen: set[Any] = {None, *stack}
    while stack:
        node = stack.pop()
        following = node.next_functions
        for each, _ in following:
            if each not in seen:
                seen.add(each)
                stack.append(each)
        if not following and hasattr(node, "variable"):
            leaves.append(node.variable)
    return leaves


class KnownLeaves:
    """The leaves of a loss that is computed anew in every step, without a walk through its graph in each.

    They are looked for when one has got no gradient, when Pyro has more or fewer params than before, at each of the
    first steps, and at every 64th: a leaf that Pyro does not know and that a later step brings in is met by then.
    """

    def __init__(self) -> None:
        self._leaves: list[Tensor] = []
        self._uses = self._params = 0

    def of(self, find: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The leaves, after a backward pass; `find()` walks for them."""
        params, uses = len(pyro.get_param_store()), self._uses
        if uses < 4 or uses % 64 == 0 or params != self._params or any(leaf.grad is None for leaf in self._leaves):
            self._leaves = find()
        self._params, self._uses = params, uses + 1
        return self._leaves
