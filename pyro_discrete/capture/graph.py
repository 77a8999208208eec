"""A step as a graph: traced from one real run, and run again without Python's part of it."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from pyro.infer.util import Dice
from pyro.util import get_rng_state
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

from pyro_discrete.capture.grouping import group_alike
from pyro_discrete.capture.rewriting import (
    NotCapturableError,
    changed_tensors,
    declare_writes,
    drop_unused,
    gather_sums,
    lift_constants,
    own_outputs,
    own_targets,
    refuse_dynamic_shapes,
    refuse_overlap,
    refuse_own_generators,
    separate_biases,
    share_repeated,
)
from pyro_discrete.errors import first_line
from pyro_discrete.inspection.provenance import classes_stated
from pyro_discrete.operation_graphs import Graph
from pyro_discrete.operations import LEAVES_TORCH
from pyro_discrete.recording import ValueReadError, Write, record

__all__ = [
    "Capture",
    "capture",
    "why_not",
]


Step = Callable[..., list[Tensor]]


class Capture:
    """The graph of a step.

    Once `group` was called, operations of it that are alike are done together, and once `compile` was, by inductor; the
    graph itself is what `exactly` runs, for comparisons with the program.

    `tensors` are those that the step uses besides its inputs (parameters, state, constants), by reference. The ones
    that it changes are changed in copies; `commit` writes these back, once the result is known to be good.
    """

    def __init__(self, graph: Graph, tensors: list[Tensor], changed: list[int], reads: list[Any]) -> None:
        self.graph: Graph = graph
        self.reads: list[Any] = reads
        self.originals: list[Tensor] = [tensors[i] for i in changed]
        self.shadows: list[Tensor] = [t.detach().clone() for t in self.originals]
        self.tensors: list[Tensor] = list(tensors)
        for index, shadow in zip(changed, self.shadows, strict=True):
            self.tensors[index] = shadow
        self._grouped: Graph | None = None
        self._function: Callable[..., Any] | None = None

    @property
    def operations(self) -> int:
        """How many operations a run has, those that are done together being one."""
        return len(self._grouped or self.graph)

    def __call__(self, inputs: Sequence[Tensor], exactly: bool = False) -> list[Tensor]:
        """Run on inputs shaped like the first ones; `exactly` by the graph, even where it was grouped or compiled."""
        if self._function is None:
            self._function = (self._grouped or self.graph).module().forward
        function = self.graph if exactly else self._function
        with torch.no_grad():
            if self.shadows:
                torch._foreach_copy_(self.shadows, self.originals)
            return function(*inputs, *self.tensors)

    @torch.no_grad()
    def commit(self) -> None:
        """Let the changes of the last run take effect."""
        if self.shadows:
            torch._foreach_copy_(self.originals, self.shadows)

    def first_run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run for the first time. Raises `NotCapturableError` if it writes to tensors that it did not say it would."""
        before = [t.detach().clone() for t in [*inputs, *self.tensors]]
        outputs = self(inputs, exactly=True)
        changed = False
        with torch.no_grad():
            for now, then in zip([*inputs, *self.tensors], before, strict=True):
                if not any(now is shadow for shadow in self.shadows) and not _same(now, then):
                    now.copy_(then)
                    changed = True
        if changed:
            raise NotCapturableError("an operation in it changes a tensor without saying so")
        return outputs

    def agrees(self) -> bool:
        """Whether the program, run on the state from before the last run, has changed it in the same way."""
        return all(_same(a, b) for a, b in zip(self.originals, self.shadows, strict=True))

    def holds(self) -> bool:
        """Whether the tensors whose values Python read have not been written to since."""
        return all(tensor._version == version for tensor, version in self.reads)

    def group(self, inputs: Sequence[Tensor], given: Sequence[Tensor] | None = None) -> None:
        """Have operations that are alike done together, where that is much less work.

        `given`: what the program gave on these inputs, if they and all that it uses are as they were then.

        Raises `GroupingMismatchError` if they give something else on these inputs, or what going about it raises; the
        graph runs as it was then.
        """
        self._grouped = group_alike(self.graph, [*inputs, *self.tensors], given)
        self._function = None

    def compile(self, inputs: Sequence[Tensor]) -> None:
        """Have inductor compile the graph; random numbers still come from torch's own generator.

        In float32 they are those of the graph; Bernoulli draws in float64, and dropout, are others of the same law.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own modules, at their first import
            import torch._inductor.compile_fx
            from torch import _inductor

        with torch.no_grad():
            graph = (self._grouped or self.graph).copied()
            gather_sums(graph)
            separate_biases(graph)
            own_targets(graph)
            compiled = _inductor.compile(graph.module(), [*inputs, *self.tensors], options={"fallback_random": True})
            self._function = cast(Callable[..., Any], compiled)


def capture(
    step: Step, inputs: list[Tensor], tracked: list[Tensor], before_write: Write | None = None
) -> tuple[Capture, list[Tensor]]:
    """Run `step(*inputs)` for real, and trace it. Returns its graph, and what it gave.

    `tracked` are tensors that the step is known to use; Python must not read values of these, nor of the inputs.
    `before_write` is told of operations before they write to tensors.
    Raises `NotCapturableError`, and whatever the step raises.
    """
    with _random_left_alone(), pyro.validation_enabled(False), _InsideTorch():
        recorded = record(lambda *tensors: step(*tensors[: len(inputs)]), [*inputs, *tracked], before_write)
    graph = recorded.graph
    refuse_own_generators(graph)
    tensors = [*tracked, *lift_constants(graph, len(inputs) + len(tracked))]
    declare_writes(graph)
    refuse_dynamic_shapes(graph)
    own_outputs(graph, recorded.outputs)
    graph.drop_dead()
    share_repeated(graph)
    drop_unused(graph, tensors, len(inputs))
    changed = changed_tensors(graph, len(inputs))
    refuse_overlap(tensors, changed)
    return Capture(graph, tensors, changed, recorded.reads), recorded.outputs


class _InsideTorch(TorchFunctionMode):
    """Refuses what takes values out of torch unseen; `one_hot` without a look at the values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _LOOKED_AT:
            if func is one_hot and (number := classes_stated(args, kwargs or {})) > 0:
                classes = torch.arange(number, device=args[0].device)
                return (args[0].unsqueeze(-1) == classes).to(torch.int64)
            if func.__name__ in ("all", "masked_select") and _in_exact_sums():
                # Pyro leaves out terms of probability zero there; here they stay in, as zeros
                return False if func.__name__ == "all" else torch.where(args[1], args[0], 0.0)
            if func.__name__ == "tolist":  # which the dispatcher does not see, as it sees a comparison
                torch.equal(args[0], args[0])
                return func(*args)
            if func.__name__ in LEAVES_TORCH:
                raise NotCapturableError(f"it takes a tensor's values out of torch (`.{func.__name__}()`)")
        return func(*args, **kwargs) if kwargs else func(*args)


_LOOKED_AT = LEAVES_TORCH | {"one_hot", "all", "masked_select"}


def _in_exact_sums() -> bool:
    """Whether Pyro's sums over enumerated sites are what is running."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:  # of other modes
        frame = frame.f_back
    return frame.f_code is Dice.compute_expectation.__code__


@contextmanager
def _random_left_alone() -> Iterator[None]:
    """Refuses steps that draw random numbers from Python or NumPy: a graph would repeat them."""
    before = get_rng_state()
    yield
    after = get_rng_state()
    if any(pickle.dumps(before[key]) != pickle.dumps(after[key]) for key in ("random", "numpy")):
        raise NotCapturableError("it draws random numbers from NumPy or Python's `random`; draw them with torch")


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, 1e-5, 0.0, equal_nan=True))


def why_not(error: Exception) -> str:
    """What an error says about why a step cannot be captured."""
    text = first_line(error).strip()
    if isinstance(error, ValueReadError) or "data-dependent" in text.lower():
        return (
            "it decides in Python by a tensor's value (`if`, `.item()`, `float()`); use tensor operations such as "
            "torch.where instead"
        )
    return text if isinstance(error, NotCapturableError) else f"{type(error).__name__}: {text}"
