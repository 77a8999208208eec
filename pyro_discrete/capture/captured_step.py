"""A captured step: its arguments taken apart, what it wrote undone, and the graph with what its results are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_discrete.capture.graph import Capture, capture
from pyro_discrete.capture.rewriting import NotCapturableError
from pyro_discrete.capture.watch import keys_of_handlers
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.operations import written_tensors
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.outcome import Outcome, StepGradients

__all__ = [
    "Call",
    "CapturedStep",
    "NotFiniteStepError",
    "Stepper",
    "Writes",
    "capture_step",
]


PLAIN = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device, slice, range)


class Call:
    """A model and a guide with the arguments of a call.

    - `tensors`, `floats`: those among the arguments, in containers as well, in order.
    - `float_dtype`: as what floats are to be given to a graph; None makes their values a part of the key.
    - `register`: whether the estimators' own parameters are made known to Pyro in the step.
    - `key`: what a graph depends on: shapes, dtypes and devices of the tensors, and the values of what is no tensor.
    - `objects`: the model, the guide, and other objects among the arguments, which are told apart by identity.

    Raises `NotCapturableError` for an argument that may change without being seen to.
    """

    def __init__(self, pair: Pair, register: bool, float_dtype: torch.dtype | None) -> None:
        self.pair: Pair = pair
        self.register: bool = register
        self._float_dtype = float_dtype
        self.tensors: list[Tensor] = []
        self.floats: list[float] = []
        self.objects: list[object] = [pair.model, pair.guide]
        self.key: tuple[Any, ...] = (
            self._described(pair.args),
            self._described(dict(pair.kwargs)),
            register,
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            keys_of_handlers(),
        )

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
                raise NotCapturableError(f"an argument is a tensor of type {type(value).__name__} ({value.layout})")
            self.tensors.append(value)
            return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
        if isinstance(value, float):
            if self._float_dtype is None:
                return float, value
            self.floats.append(value)
            return float
        if isinstance(value, list | tuple):
            return type(value), *(self._described(each) for each in value)
        if isinstance(value, dict):
            return dict, *((key, self._described(each)) for key, each in value.items())
        if isinstance(value, PLAIN):
            return type(value), str(value) if isinstance(value, slice) else value
        if type(value).__hash__ is None or type(value).__module__.partition(".")[0] == "numpy":
            raise NotCapturableError(
                f"an argument is of type {type(value).__name__}, whose contents may change unseen; give a tensor"
            )
        self.objects.append(value)
        return id(value)

    def inputs(self) -> list[Tensor]:
        """The tensors, and the floats as tensors."""
        return [*self.tensors, *(torch.tensor(value, dtype=self._float_dtype) for value in self.floats)]

    def stand_ins(self) -> list[Tensor]:
        """Like `inputs`, each an object of its own: what the program has of a tensor elsewhere is no argument."""
        return [t.detach().requires_grad_(t.requires_grad) for t in self.inputs()]

    def with_inputs(self, inputs: Sequence[Tensor]) -> Pair:
        """The pair, called with these in place of its own tensors and, if there are as many, of its floats."""
        remaining = iter(inputs[: len(self.tensors)])
        numbers = iter(inputs[len(self.tensors) :] or self.floats)
        args = self._rebuilt(self.pair.args, remaining, numbers)
        kwargs = self._rebuilt(dict(self.pair.kwargs), remaining, numbers)
        return Pair(self.pair.model, self.pair.guide, args, kwargs)

    def _rebuilt(self, value: Any, tensors: Iterator[Tensor], numbers: Iterator[Any]) -> Any:
        if isinstance(value, Tensor):
            return next(tensors)
        if isinstance(value, float) and self._float_dtype is not None:
            return next(numbers)
        if isinstance(value, list | tuple):
            parts = [self._rebuilt(each, tensors, numbers) for each in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self._rebuilt(each, tensors, numbers) for key, each in value.items()}
        return value


class Writes(TorchDispatchMode):
    """Keeps what tensors held before operations wrote to them, and where generators stood.

    It is told of operations by `note`, or of all while it is entered.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[Any, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[Generator, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def note(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keep what an operation is about to change."""
        written = written_tensors(func, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default:  # whose schema does not say so
            written = [t for t in args[3:5] if t is not None]
        for tensor in written:
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            if key not in self._tensors:
                self._tensors[key] = (tensor.detach(), tensor.detach().clone())
        generator = kwargs.get("generator")
        if generator is not None:
            self._generators.setdefault(id(generator), (generator, generator.get_state()))

    @torch.no_grad()
    def undo(self) -> None:
        """Put all of it back."""
        for tensor, value in reversed(self._tensors.values()):
            tensor.copy_(value)
        for generator, state in self._generators.values():
            generator.set_state(state)


class Stepper(Protocol):
    """What a captured step needs of the ELBO whose step it is."""

    def plan_of(self, pair: Pair) -> Plan | None:
        """The plan, if it is this pair's."""
        ...

    def keeps(self, plan: Plan) -> bool:
        """Whether a plan is in use: the last one, or that of another branch of the program."""
        ...

    def eager(self, pair: Pair, register: bool) -> StepGradients:
        """A step by the program itself."""
        ...

    def traceable(self, plan: Plan, pair: Pair, known: Dependencies) -> Outcome:
        """A step's outcome by tensor operations alone, none of whose values is looked at."""
        ...

    def advance(self) -> None:
        """Bring what follows a schedule to the present step."""
        ...

    def count(self) -> None:
        """Count a step that was made."""
        ...

    def state(self) -> list[Tensor]:
        """The tensors that a step may change, beside the program's own."""
        ...

    def watched(self) -> nn.Module:
        """The modules whose settings a graph holds."""
        ...


class NotFiniteStepError(Exception):
    """The run that was to be captured has a loss or gradient that is not finite, or a sum that goes not far enough."""


class CapturedStep:
    """A graph with what its results are: the loss, whether it stands, and a gradient for each of `targets`.

    A result stands if all is finite, and if all sums over counts go far enough. What does not is left to the program.

    `targets` are parameters, and for arguments that want a gradient their positions among the inputs.
    """

    def __init__(self, graph: Capture, targets: list[Tensor | int]) -> None:
        self.graph: Capture = graph
        self.targets: list[Tensor | int] = targets

    def run(self, call: Call) -> tuple[StepGradients, Tensor]:
        """The step's result, and whether it stands. What estimators learned in it waits for `graph.commit`."""
        outputs = self.graph(call.inputs())
        return self.result(call, outputs), outputs[1]

    def run_exactly(self, call: Call, first: bool) -> StepGradients:
        """The step's result by the graph itself, even where it was compiled."""
        inputs = call.inputs()
        return self.result(call, self.graph.first_run(inputs) if first else self.graph(inputs, exactly=True))

    def result(self, call: Call, outputs: list[Tensor]) -> StepGradients:
        """A run's outputs as a result."""
        result = StepGradients(outputs[0], [], [])
        for target, gradient in zip(self.targets, outputs[2:], strict=True):
            if isinstance(target, int):
                result.inputs.append((call.tensors[target], gradient))
            else:
                result.parameters.append(target)
                result.gradients.append(gradient)
        return result


def capture_step(
    stepper: Stepper, plan: Plan, call: Call, parameters: list[Tensor], writes: Writes
) -> tuple[CapturedStep, list[Tensor]]:
    """Run one step for real and capture it: its graph, and what the program gave, of which `result` makes the step's.

    `parameters` are those that the steps before it used.

    `writes` is told what the step changes, whatever comes of it.

    Raises `NotCapturableError`, or what running raises; `NotFiniteStepError` for a result that is not finite.
    """
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise NotCapturableError("a parameter has a hook on its gradient")
    stand_ins = call.stand_ins()
    targets = [*parameters, *(t for t in stand_ins if t.requires_grad)]
    present: list[int] = []
    with writes:
        known = plan.dependencies(call.pair)

    def step(*tensors: Tensor) -> list[Tensor]:
        outcome = stepper.traceable(plan, call.with_inputs(tensors), known)
        if not {id(leaf) for leaf in outcome.leaves()} <= {id(target) for target in targets}:
            raise NotCapturableError("it makes new parameters as it runs")
        gradients = torch.autograd.grad(torch.as_tensor(outcome.surrogate), targets, allow_unused=True)
        present[:] = [i for i, gradient in enumerate(gradients) if gradient is not None]
        loss = torch.as_tensor(outcome.loss).detach()
        wanted = [gradient for gradient in gradients if gradient is not None]
        finite, settled = _all_finite([loss, *wanted]), plan.counts.settled()
        return [loss, finite if settled is None else finite & settled, *wanted]

    with torch.enable_grad():
        tracked = list({id(t): t for t in [*parameters, *stepper.state()]}.values())
        graph, outputs = capture(step, stand_ins, tracked, writes.note)
    if not outputs[1]:
        raise NotFiniteStepError
    positions = {id(t): i for i, t in enumerate(stand_ins)}
    return CapturedStep(graph, [positions.get(id(targets[i]), targets[i]) for i in present]), outputs


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether the sum of all is: one that is not makes it so. Of an overflow, the plain step finds that it is none."""
    sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([total.double() for total in sums]).sum().isfinite()
