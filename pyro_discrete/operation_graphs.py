"""A graph of tensor operations: light enough for tens of thousands of nodes, as a model's unrolled loop has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx

from pyro_discrete.operations import kind_of

__all__ = ["Graph", "Node", "frozen", "mapped", "nodes_in"]

_NO_KWARGS: Mapping[str, Any] = {}

_LISTS = (list, tuple)

_SIMPLE = frozenset((type(None), bool, int, float, complex, str, torch.dtype, torch.device))
"""Kinds of arguments that no node is in."""


class Node:
    """A step of a graph.

    - `op`: "placeholder" for an input, "get_attr" for what the graph holds (the `target` itself), "call_function" for
      an operation, "output" for the results.
    - `args`, `kwargs`: what the operation is given, nodes among it; `take` replaces them. `inputs`: these nodes, each
      once. `users`: the nodes that are given this one.
    - `value`: what is known of its value: a tensor without contents, or a list of such.
    - `origin`: the node of the graph that this one's graph is a copy of; of a graph that is none, the node itself.
    """

    __slots__ = (
        "_copied_from",
        "args",
        "following",
        "graph",
        "inputs",
        "kwargs",
        "op",
        "previous",
        "target",
        "users",
        "value",
    )

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: Any
    inputs: list[Node]
    users: dict[Node, None]
    graph: Graph
    previous: Node | None
    following: Node

    def __init__(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = _NO_KWARGS,
        value: Any = None,
    ) -> None:
        self.op = op
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.value = value
        self.users = {}
        self.previous = None
        self.following = self
        self._copied_from: Node | None = None  # not the node itself, which only a search for cycles would free then
        self._use(args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.op} {self.target}>"

    @property
    def origin(self) -> Node:
        """See above."""
        return self._copied_from or self

    @origin.setter
    def origin(self, node: Node) -> None:
        self._copied_from = None if node is self else node

    @property
    def erased(self) -> bool:
        """Whether it is no longer in a graph."""
        return self.previous is None

    def take(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """Be given these arguments from now on."""
        for node in self.inputs:
            del node.users[self]
        self.args = args
        if kwargs is not None:
            self.kwargs = kwargs
        self._use(args, self.kwargs)
        self.graph.changed()

    def _use(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given: list[Node] = []
        for each in (*args, *kwargs.values()) if kwargs else args:
            kind = type(each)
            if kind is Node:
                if each not in given:
                    given.append(each)
            elif kind is list or kind is tuple or isinstance(each, _LISTS):
                given = list(dict.fromkeys([*given, *nodes_in(each)]))
        self.inputs = given
        for node in given:
            node.users[self] = None

    def follow(self, instead: Mapping[Node, Node]) -> None:
        """Be given other nodes instead of some. Of many replacements, this is the way that reads each list once."""
        for node in self.inputs:
            if node in instead:
                break
        else:
            return

        def other(node: Node) -> Node:
            return instead.get(node, node)

        self.take(mapped(self.args, other), mapped(self.kwargs, other) if self.kwargs else None)

    def replace(self, other: Node, where: Callable[[Node], bool] | None = None) -> None:
        """Have its users, or those `where` it is to be, be given another node."""
        for user in [u for u in self.users if where is None or where(u)]:

            def instead(node: Node) -> Node:
                return other if node is self else node

            user.take(mapped(user.args, instead), mapped(user.kwargs, instead) if user.kwargs else None)


def nodes_in(value: Any) -> list[Node]:
    """The nodes among arguments, in lists and dicts as well, each as often as it stands there."""
    found: list[Node] = []
    for each in value.values() if isinstance(value, dict) else value:
        if type(each) is Node:
            found.append(each)
        elif isinstance(each, list | tuple | dict):
            found += nodes_in(each)
    return found


def mapped(value: Any, function: Callable[[Node], Any]) -> Any:
    """Arguments with something else in the places of nodes."""
    kind = type(value)
    if kind is Node:
        return function(value)
    if kind is tuple:  # arguments themselves, most often of nodes and numbers
        return tuple(
            [
                function(each) if type(each) is Node else each if type(each) in _SIMPLE else mapped(each, function)
                for each in value
            ]
        )
    if kind in _SIMPLE:
        return value
    if isinstance(value, list):
        return [mapped(each, function) for each in value]
    if isinstance(value, tuple):
        return tuple([mapped(each, function) for each in value])
    if isinstance(value, dict):
        return {key: mapped(each, function) for key, each in value.items()}
    return value


def frozen(value: Any) -> Any:
    """Arguments so that those are equal that are the same: 1 is not 1.0 here, and 0.0 not -0.0."""
    kind = type(value)
    if kind is Node:
        return value
    if kind is tuple or kind is list:
        return tuple([each if type(each) is Node else frozen(each) for each in value])
    if kind is float or kind is complex:
        return kind, repr(value)
    if isinstance(value, dict):
        return tuple([(key, frozen(each)) for key, each in value.items()])
    return kind, value


@cache
def _has_effects(target: Any) -> bool:
    """Whether an operation is needed even if nobody uses what it gives: it writes, draws, or complains."""
    return fx.Graph().call_function(target).is_impure()


class Graph:
    """Operations in an order, which are run on inputs, and rewritten. `module` makes code of them.

    What takes torch's own graphs 20 microseconds a node, to make one or to copy it, takes 2 here.

    >>> import torch
    >>> graph = Graph()
    >>> x = graph.placeholder()
    >>> graph.output([graph.call(torch.ops.aten.exp.default, (x,))])
    >>> [each.item() for each in graph(torch.tensor(0.0))]
    [1.0]
    """

    def __init__(self) -> None:
        self._end = Node("end", None)
        self._end.previous = self._end
        self._at = self._end
        self._nodes: list[Node] | None = None  # in order, while it is known
        self._program: Callable[..., list[Any]] | None = None

    # ------------------------------------------------------------------ reading

    @property
    def nodes(self) -> list[Node]:
        """All nodes, in order."""
        if self._nodes is None:
            self._nodes, node = [], self._end.following
            while node is not self._end:
                self._nodes.append(node)
                node = node.following
        return self._nodes.copy()

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        places = {node: i for i, node in enumerate(self.nodes)}
        return "\n".join(
            f"{i}: {n.op} {n.target} {mapped(n.args, lambda a: f'%{places[a]}')} {dict(n.kwargs)}"
            for n, i in places.items()
        )

    @property
    def places(self) -> list[Node]:
        """The inputs."""
        return [node for node in self.nodes if node.op == "placeholder"]

    @property
    def results(self) -> Node:
        """The node of what it gives."""
        assert self._end.previous is not None
        return self._end.previous

    # ------------------------------------------------------------------ writing

    def placeholder(self, value: Any = None) -> Node:
        """An input more."""
        return self.add(Node("placeholder", "", value=value))

    def held(self, target: Any, value: Any = None) -> Node:
        """What the graph holds: a tensor, or a generator."""
        return self.add(Node("get_attr", target, value=value))

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, value: Any = None
    ) -> Node:
        """An operation more."""
        return self.add(Node("call_function", target, args, kwargs or _NO_KWARGS, value))

    def output(self, results: list[Any]) -> None:
        """What it gives; the last node."""
        self.add(Node("output", "output", (results,)))

    def add(self, node: Node) -> Node:
        """Put a new node to where the graph is written."""
        after, before = self._at, self._at.previous
        assert before is not None
        node.graph, self._nodes, self._program = self, None, None
        node.previous, node.following = before, after
        before.following = after.previous = node
        return node

    @contextmanager
    def before(self, node: Node) -> Iterator[None]:
        """Nodes made inside come before another."""
        kept, self._at = self._at, node
        try:
            yield
        finally:
            self._at = kept

    @contextmanager
    def after(self, node: Node) -> Iterator[None]:
        """Nodes made inside come after another."""
        with self.before(node.following):
            yield

    def erase(self, node: Node) -> None:
        """Take out a node that nobody uses."""
        assert not node.users, "what is used is taken out"
        assert node.previous is not None
        for each in node.inputs:
            del each.users[node]
        node.previous.following, node.following.previous = node.following, node.previous
        node.previous = self._nodes = None
        self.changed()

    def changed(self) -> None:
        """Be told that a node was rewritten."""
        self._program = None

    def discard(self) -> None:
        """Take out all nodes. They refer to each other: that they are no longer needed would take long to find out."""
        for node in self.nodes:
            node.users.clear()
            node.inputs, node.args, node.kwargs = [], (), _NO_KWARGS
            node.previous, node.following = None, self._end
        self._end.previous = self._end.following = self._end
        self._nodes = self._program = None

    def drop_dead(self) -> None:
        """Take out what nobody uses, but for inputs, writes and draws, which move the random stream.

        Nodes may stand in any order.
        """
        waiting = [n for n in self.nodes if not n.users]
        while waiting:
            node = waiting.pop()
            if node.users or node.erased or node.op in ("placeholder", "output"):
                continue
            if node.op == "call_function" and _has_effects(node.target):
                continue
            self.erase(node)
            waiting += [n for n in node.inputs if not n.users]

    # ------------------------------------------------------------------ using

    def copied(self) -> Graph:
        """A graph of new nodes; what it holds is the same."""
        made, known = Graph(), {}
        for node in self.nodes:
            args = mapped(node.args, known.__getitem__)
            kwargs = mapped(node.kwargs, known.__getitem__) if node.kwargs else node.kwargs
            known[node] = each = made.add(Node(node.op, node.target, args, kwargs, node.value))
            each.origin = node
        return made

    def __call__(self, *inputs: Any, instead: Mapping[Node, Any] | None = None) -> list[Any]:
        """Run it, node by node, with what is given `instead` of what some operations that draw would give.

        One that writes what it draws into its first argument has that written instead.
        """
        if self._program is None:
            self._program = _Program(self.nodes)
        return self._program(inputs, instead or {})

    @classmethod
    def of(cls, module: fx.GraphModule) -> Graph:
        """A graph of torch's."""
        made, known = cls(), {}
        for node in module.graph.nodes:
            target = getattr(module, str(node.target)) if node.op == "get_attr" else node.target
            args, kwargs = (fx.map_arg(each, known.__getitem__) for each in (node.args, node.kwargs))
            args, kwargs = _plain(args), _plain(kwargs)
            known[node] = made.add(Node(node.op, target, args, kwargs, node.meta.get("val")))
        return made

    def module(self) -> fx.GraphModule:
        """The same as a graph of torch's, with code that runs it."""
        root, graph, known = torch.nn.Module(), fx.Graph(), {}
        for node in self.nodes:
            if node.op == "placeholder":
                known[node] = graph.placeholder(f"input_{len(known)}")
            elif node.op == "get_attr":
                name = f"_held_{len(known)}"
                setattr(root, name, node.target)
                known[node] = graph.get_attr(name)
            elif node.op == "output":
                known[node] = graph.output(mapped(node.args[0], known.__getitem__))
            else:
                args, kwargs = mapped(node.args, known.__getitem__), mapped(node.kwargs, known.__getitem__)
                known[node] = graph.call_function(node.target, args, kwargs)
            known[node].meta["val"] = node.value
        return fx.GraphModule(root, graph)


def _plain(value: Any) -> Any:
    """Arguments without the kinds of lists and dicts that torch's graphs make of them."""
    if isinstance(value, list | tuple):
        made = [_plain(each) for each in value]
        return tuple(made) if isinstance(value, tuple) else made
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


class _Program:
    """Runs nodes one after another, and keeps what each gives until its last use."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._places = [n for n in nodes if n.op == "placeholder"]
        self._held = {n: n.target for n in nodes if n.op == "get_attr"}
        self._results = nodes[-1].args[0]
        last: dict[Node, Node] = {}
        calls = [n for n in nodes if n.op == "call_function"]
        for node in calls:
            last.update(dict.fromkeys(node.inputs, node))
        kept = {*self._places, *self._held, *nodes[-1].inputs}
        done: dict[Node, list[Node]] = {}
        for node, user in last.items():
            if node not in kept:
                done.setdefault(user, []).append(node)
        self._calls = [(n, n.target, n.args, n.kwargs, _is_flat(n), done.get(n, ())) for n in calls]

    def __call__(self, inputs: Sequence[Any], instead: Mapping[Node, Any]) -> list[Any]:
        values: dict[Node, Any] = dict(zip(self._places, inputs, strict=True))
        values.update(self._held)
        for node, target, args, kwargs, flat, done in self._calls:
            if flat:
                given = [values[a] if type(a) is Node else a for a in args]
                made = target(*given, **kwargs)
            elif node in instead:
                made = instead[node].clone()
                if target._schema.is_mutable:
                    made = values[node.args[0]].copy_(made)
            else:
                made = target(*mapped(args, values.__getitem__), **mapped(kwargs, values.__getitem__))
            values[node] = made
            for each in done:
                del values[each]
        return [values[each] if type(each) is Node else each for each in self._results]


def _is_flat(node: Node) -> bool:
    """Whether nodes stand among its arguments as such alone, and it draws nothing."""
    for each in node.args:
        if type(each) is not Node and isinstance(each, _LISTS) and nodes_in(each):
            return False
    if node.kwargs and nodes_in(node.kwargs):
        return False
    return node.target is operator.getitem or not kind_of(node.target).random
