"""A function's tensor operations as a graph, recorded while it runs for real."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx._symbolic_trace as symbolic_trace
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

from pyro_discrete.operation_graphs import Graph, Node, mapped
from pyro_discrete.operations import Kind, kind_of, tensors_in

__all__ = ["Recorded", "is_recorded", "record"]

Write = Callable[[Any, Any, Any], None]
"""Is told of an operation and its arguments before it writes to one of these."""


class ValueReadError(RuntimeError):
    """Python asks for a value that a recorded operation gave, or an input: another run has others."""


@dataclass(frozen=True)
class Recorded:
    """What a run was.

    - `graph`: its operations, each with what is known of its value. Tensors that are neither inputs nor made in the run
      are held by it.
    - `outputs`: what the function gave.
    - `reads`: those of the other tensors whose values Python read, with their versions then.
    """

    graph: Graph
    outputs: list[Tensor]
    reads: list[tuple[Tensor, int]]


def is_recorded() -> bool:
    """Whether what runs is made a graph, here or by `make_fx`, so that values are not to be read."""
    modes = _get_current_dispatch_mode_stack()
    return any(isinstance(mode, _Recorder | ProxyTorchDispatchMode) for mode in modes)


def record(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], before_write: Write | None = None
) -> Recorded:
    """Run a function on these very tensors, and record it.

    It is what `make_fx` does with real tensors, at a tenth of its time an operation: that asks of each one whether it
    is to be decomposed, and of its arguments and results whether they have symbols for sizes. `before_write` is called
    with each operation and its arguments that writes to one of these, or draws from a generator of its own. Raises
    `ValueReadError`, and `TypeError` for an operation on what a graph cannot hold.

    >>> import torch
    >>> recorded = record(lambda x: [x.exp() + 1], [torch.zeros(2)])
    >>> [node.op for node in recorded.graph.nodes]
    ['placeholder', 'call_function', 'call_function', 'output']
    """
    recorder = _Recorder(inputs, before_write)
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

_AS_THEY_ARE = {
    *(type(None), bool, int, float, complex, str),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}


class _Recorder(TorchDispatchMode):
    """Makes a node for each operation, and runs it.

    Literals of one element (`torch.tensor(2.0)`), and what is computed of them alone, may be read by Python.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else each operation goes through a wrapper that says so: a tenth of the time

    def __init__(self, inputs: Sequence[Tensor], before_write: Write | None) -> None:
        super().__init__()
        self._graph = Graph()
        self._before_write = before_write
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}  # by id, as long as that tensor lives
        self._held: dict[int, Node] = {}
        self._literals: dict[Node, Tensor] = {}
        self._kinds: dict[int, tuple[Kind, bool, bool]] = {}  # by id, as `kind_of` has them: they take long to hash
        self._shapes = FakeTensorMode(allow_fallback_kernels=True)
        self._described: dict[Any, Tensor] = {}
        self.reads: list[tuple[Tensor, int]] = []
        for tensor in inputs:
            node = self._graph.placeholder(self._description(tensor))
            self._nodes[id(tensor)] = weakref.ref(tensor), node

    def finished(self, outputs: list[Tensor]) -> Recorded:
        """The run as a whole."""
        self._graph.output(self._argument(outputs))
        return Recorded(self._graph, outputs, self.reads)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and any(each.__torch_dispatch__ is not _PLAIN.__torch_dispatch__ for each in types):
            return NotImplemented  # other tensors say first what their operations are
        known = self._kinds.get(id(func))
        if known is None:
            known = self._kinds[id(func)] = _told(func)
        kind, of_none, watched = known
        if of_none:
            return func(*args, **(kwargs or {}))
        if kind.reads:
            return self._read(func, args, kwargs or {})
        if self._before_write is not None and (watched or (kwargs and "generator" in kwargs)):
            self._before_write(func, args, kwargs or {})
        if func is _LIFT:  # whose tensor is to stay as it is
            func = _LIFT_COPY
        given = tuple([each if type(each) in _AS_THEY_ARE else self._argument(each) for each in args])
        if kwargs:
            named = {key: self._argument(each) for key, each in kwargs.items()}
            node = self._graph.add(Node("call_function", func, given, named))
            literal = self._of_literals(kind, node) if self._literals else False
            result = func(*args, **kwargs)
        else:
            named = {}
            node = self._graph.add(Node("call_function", func, given))
            literal = self._of_literals(kind, node) if self._literals else False
            result = func(*args)
        self._follow(result, node)
        if func is _LIFT_COPY:
            if result.numel() <= 1:
                self._literals[node] = args[0].clone()
        elif literal and isinstance(result, Tensor) and result.numel() <= 1:
            self._literals[node] = func(*mapped(given, self._copied), **mapped(named, self._copied))
        return result

    def _of_literals(self, kind: Kind, node: Node) -> bool:
        """Whether all that an operation reads of the run, and something, is literals."""
        if not kind.writes:
            found = False
            for n in node.inputs:
                if n in self._literals:
                    found = True
                elif n.op != "get_attr":
                    return False
            return found and not kind.random
        recorded = [n in self._literals for n in node.inputs if n.op != "get_attr"]
        whole = bool(recorded) and all(recorded) and not kind.random
        if kind.writes and any(recorded) and not (whole and len(recorded) == len(node.inputs)):
            self._literals.clear()  # views of what is written to are not known
            return False
        return whole

    def _copied(self, node: Node) -> Any:
        return node.target if node.op == "get_attr" else self._literals[node]

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = tensors_in((*args, *kwargs.values()))
        nodes = [node for node in map(self._node, tensors) if node is not None]
        if nodes and all(node in self._literals for node in nodes):
            return func(*self._by_copies(args), **{key: self._by_copies(each) for key, each in kwargs.items()})
        if nodes:
            raise ValueReadError(f"the value of a recorded tensor is asked for ({func})")
        self.reads += [(t, t._version) for t in tensors]
        return func(*args, **kwargs)

    def _by_copies(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = self._node(value)
            return value if node is None else self._literals[node]
        return [self._by_copies(each) for each in value] if isinstance(value, list | tuple) else value

    def _node(self, tensor: Tensor) -> Node | None:
        """The node of a tensor that is an input, or was made in the run."""
        known = self._nodes.get(id(tensor))
        return None if known is None or known[0]() is None else known[1]

    def _argument(self, value: Any) -> Any:
        """An argument as a node has it."""
        kind = type(value)
        if kind is Tensor or isinstance(value, Tensor):
            known = self._nodes.get(id(value))
            return self._attribute(value) if known is None or known[0]() is None else known[1]
        if kind in _AS_THEY_ARE:
            return value
        if kind is list:  # most often sizes
            return [each if type(each) in _AS_THEY_ARE else self._argument(each) for each in value]
        if isinstance(value, tuple):
            return tuple([self._argument(each) for each in value])
        if isinstance(value, list):
            return [self._argument(each) for each in value]
        if isinstance(value, dict):
            return {key: self._argument(each) for key, each in value.items()}
        if isinstance(value, torch.Generator):
            return self._attribute(value)
        if isinstance(value, tuple(_AS_THEY_ARE)):
            return value
        raise TypeError(f"an operation has an argument of type {type(value).__name__}, which no graph holds")

    def _attribute(self, value: Tensor | torch.Generator) -> Node:
        """The node of what is neither an input nor made in the run, and is held by the graph."""
        node = self._held.get(id(value))
        if node is None:
            described = self._description(value) if isinstance(value, Tensor) else None
            node = self._held[id(value)] = self._graph.held(value, described)
        return node

    def _follow(self, result: Any, node: Node) -> None:
        if type(result) is Tensor or isinstance(result, Tensor):
            self._nodes[id(result)] = _reference(result), node
            node.value = self._description(result)
        elif isinstance(result, list | tuple):
            node.value = [self._description(each) if isinstance(each, Tensor) else each for each in result]
            for place, each in enumerate(result):
                if isinstance(each, Tensor):
                    self._follow(each, self._graph.call(operator.getitem, (node, place)))

    def _description(self, value: Tensor) -> Tensor:
        if value.layout is not _STRIDED:
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


_HIDDEN_WRITES = (torch.ops.aten.native_batch_norm.default,)
"""Operations that write to arguments though their schemas do not say so."""

_reference, _STRIDED = weakref.ref, torch.strided
_LIFT, _LIFT_COPY = torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default


def _told(func: Any) -> tuple[Kind, bool, bool]:
    """An operation's kind, whether it is about no tensor (it says where time goes), and whether it writes."""
    kind = kind_of(func)
    return kind, func.namespace == "profiler", bool(kind.writes) or func in _HIDDEN_WRITES
