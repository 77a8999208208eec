"""A function's tensor operations as a graph, recorded while it runs for real."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx._symbolic_trace as symbolic_trace
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_discrete.operations import kind_of, tensors_in

__all__ = ["Draft", "Recorded", "is_recorded", "record"]


class ValueReadError(RuntimeError):
    """Python asks for a value that a recorded operation gave, or an input: another run has others."""


class Draft(fx.GraphModule):
    """A graph that is rewritten before it is run: no code is made for it."""

    def recompile(self) -> Any:
        """Nothing."""


@dataclass(frozen=True)
class Recorded:
    """What a run was.

    - `graph`: its operations; what each gives is in the node's `meta["val"]`, a tensor without contents. Tensors that
      are neither inputs nor made in the run are its attributes.
    - `outputs`: what the function gave.
    - `reads`: those of the other tensors whose values Python read, with their versions then.
    """

    graph: Draft
    outputs: list[Tensor]
    reads: list[tuple[Tensor, int]]


def is_recorded() -> bool:
    """Whether what runs is made a graph, here or by `make_fx`, so that values are not to be read."""
    modes = _get_current_dispatch_mode_stack()
    return any(isinstance(mode, _Recorder | ProxyTorchDispatchMode) for mode in modes)


def record(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """Run a function on these very tensors, and record it.

    It is what `make_fx` does with real tensors, at a fifth of its time an operation: that asks of each one whether it
    is to be decomposed, and of its arguments and results whether they have symbols for sizes. Raises `ValueReadError`,
    and `TypeError` for an operation on what a graph cannot hold.

    >>> import torch
    >>> recorded = record(lambda x: [x.exp() + 1], [torch.zeros(2)])
    >>> [node.name for node in recorded.graph.graph.nodes]
    ['input_0', 'exp', 'add', 'output']
    """
    recorder = _Recorder(inputs)
    with _seen_by_compilers(), recorder:
        outputs = function(*inputs)
    return recorder.finished(outputs)


@contextmanager
def _seen_by_compilers() -> Iterator[None]:
    """Has functions that torch compiles refuse to run inside: their operations would be seen by no mode."""
    before = symbolic_trace._is_fx_tracing_flag
    symbolic_trace._is_fx_tracing_flag = True
    try:
        yield
    finally:
        symbolic_trace._is_fx_tracing_flag = before


_PLAIN: Any = Tensor

_HELD_AS_THEY_ARE = (
    *(type(None), bool, int, float, complex, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


class _Recorder(TorchDispatchMode):
    """Makes a node for each operation, and runs it.

    Literals of one element (`torch.tensor(2.0)`), and what is computed of them alone, may be read by Python.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._held: dict[int, fx.Node] = {}
        self._literals = WeakTensorKeyDictionary()
        self._shapes = FakeTensorMode(allow_fallback_kernels=True)
        self._described: dict[Any, Tensor] = {}
        self.reads: list[tuple[Tensor, int]] = []
        for number, tensor in enumerate(inputs):
            self._nodes[tensor] = node = self._graph.placeholder(f"input_{number}")
            node.meta["val"] = self._description(tensor)

    def finished(self, outputs: list[Tensor]) -> Recorded:
        """The run as a whole."""
        self._graph.output(self._argument(outputs))
        return Recorded(Draft(self._root, self._graph), outputs, self.reads)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(each.__torch_dispatch__ is not _PLAIN.__torch_dispatch__ for each in types):
            return NotImplemented  # other tensors say first what their operations are
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # says where time goes, of no tensor
            return func(*args, **kwargs)
        kind = kind_of(func)
        literal = self._of_literals(args, kwargs) if self._literals or kind.reads else None
        if kind.reads:
            return self._read(func, args, kwargs, literal)
        if func is torch.ops.aten.lift_fresh.default:  # whose tensor is to stay as it is
            func = torch.ops.aten.lift_fresh_copy.default
        given = self._argument(args), self._argument(kwargs)
        node = self._graph.create_node("call_function", func, name=kind.name)
        node.args, node.kwargs = given  # not at once, which would look for symbols in each
        if kind.writes and self._literals and literal is None and self._touches_literals(args, kwargs):
            self._literals.clear()  # views of what is written to are not known
        result = func(*args, **kwargs)
        self._follow(result, node)
        if func is torch.ops.aten.lift_fresh_copy.default:
            if result.numel() <= 1:
                self._literals[result] = args[0].clone()
        elif literal is not None and isinstance(result, Tensor) and result.numel() <= 1 and not kind.random:
            self._literals[result] = func(*literal[0], **literal[1])
        return result

    def _read(self, func: Any, args: Any, kwargs: Any, literal: Any) -> Any:
        if literal is not None:
            return func(*literal[0], **literal[1])
        tensors = tensors_in((*args, *kwargs.values()))
        if any(t in self._nodes for t in tensors):
            raise ValueReadError(f"the value of a recorded tensor is asked for ({func})")
        self.reads += [(t, t._version) for t in tensors]
        return func(*args, **kwargs)

    def _of_literals(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """The arguments by copies of the literals among them; None if there are none, or other recorded tensors."""
        found = False

        def replaced(value: Any) -> Any:
            nonlocal found
            if isinstance(value, Tensor):
                literal = self._literals.get(value)
                if literal is None:
                    if value in self._nodes:
                        raise _NotOfLiteralsError
                    return value
                found = True
                return literal
            if isinstance(value, list | tuple):
                return [replaced(each) for each in value]
            return value

        try:
            made = replaced(args), {key: replaced(value) for key, value in kwargs.items()}
        except _NotOfLiteralsError:
            return None
        return made if found else None

    def _touches_literals(self, args: Any, kwargs: Any) -> bool:
        return any(t in self._literals for t in tensors_in((*args, *kwargs.values())))

    def _argument(self, value: Any) -> Any:
        """An argument as a node has it."""
        if isinstance(value, Tensor):
            node = self._nodes.get(value)
            return self._attribute(value) if node is None else node
        if isinstance(value, tuple):
            return tuple([self._argument(each) for each in value])
        if isinstance(value, list):
            return [self._argument(each) for each in value]
        if isinstance(value, dict):
            return {key: self._argument(each) for key, each in value.items()}
        if isinstance(value, torch.Generator):
            return self._attribute(value)
        if not isinstance(value, _HELD_AS_THEY_ARE):
            raise TypeError(f"an operation has an argument of type {type(value).__name__}, which no graph holds")
        return value

    def _attribute(self, value: Tensor | torch.Generator) -> fx.Node:
        """The node of what is neither an input nor made in the run, and is held by the graph."""
        if id(value) not in self._held:
            name = f"_held_{len(self._held)}"
            setattr(self._root, name, value)
            self._held[id(value)] = node = self._graph.get_attr(name)
            if isinstance(value, Tensor):
                node.meta["val"] = self._description(value)
        return self._held[id(value)]

    def _follow(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._nodes[result] = node
            node.meta["val"] = self._description(result)
        elif isinstance(result, list | tuple):
            node.meta["val"] = [self._description(each) if isinstance(each, Tensor) else each for each in result]
            for place, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._follow(each, self._graph.call_function(operator.getitem, (node, place)))

    def _description(self, value: Tensor) -> Tensor:
        if value.layout is not torch.strided:
            with _disable_current_modes():
                return self._shapes.from_tensor(value, static_shapes=True)
        key = value.shape, value.stride(), value.dtype, value.device
        known = self._described.get(key)
        if known is None:
            shape, stride, dtype, device = key
            with _disable_current_modes(), self._shapes:
                known = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            self._described[key] = known
        return known


class _NotOfLiteralsError(Exception):
    pass
