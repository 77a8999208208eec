"""A captured step of an ELBO: guide, model, estimators and backward as one graph, from arguments to gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_discrete.calls import Call
from pyro_discrete.capture import Capture, capture
from pyro_discrete.graph_rewriting import NotCapturableError
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.planning.plan import Plan
from pyro_discrete.planning.site_estimators import SiteEstimators
from pyro_discrete.programs.pair import Pair
from pyro_discrete.steps.outcome import Outcome, StepGradients

__all__ = [
    "CapturedStep",
    "Engine",
    "NotFiniteStepError",
    "capture_step",
]


class Engine(Protocol):
    """What a step is made of; see `DiscreteELBO`."""

    _plan: Plan | None
    _pair: Any

    @property
    def estimators(self) -> SiteEstimators: ...
    def _eager_gradients(self, pair: Pair, register: bool) -> StepGradients: ...
    def _traceable_step(self, pair: Pair, dependencies: Dependencies) -> Outcome: ...
    def _advance(self) -> None: ...
    def buffers(self, recurse: bool = True) -> Iterator[Tensor]: ...
    def _count_step(self) -> None: ...


class NotFiniteStepError(Exception):
    """The run that was to be captured has a loss or a gradient that is not finite."""


class CapturedStep:
    """A graph with what its results are: the loss, whether all is finite, and a gradient for each of `targets`.

    `targets` are parameters, and for arguments that want a gradient their positions among the inputs.
    """

    def __init__(self, graph: Capture, targets: list[Tensor | int]) -> None:
        self.graph, self.targets = graph, targets

    def run(self, call: Call) -> tuple[StepGradients, Tensor]:
        """The step's result, and whether it is finite. What estimators learned in it waits for `graph.commit`."""
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
    engine: Engine, call: Call, parameters: list[Tensor], state: list[Tensor]
) -> tuple[CapturedStep, StepGradients]:
    """Run one step for real and capture it; `parameters` and `state` are the tensors that steps before it used.

    Raises `NotCapturableError`, or what running raises; `NotFiniteStepError` for a result that is not finite.
    """
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise NotCapturableError("a parameter has a hook on its gradient")
    stand_ins = call.stand_ins()
    targets = [*parameters, *(t for t in stand_ins if t.requires_grad)]
    present: list[int] = []
    dependencies = UNKNOWN if engine._plan is None else engine._plan.dependencies(call.pair)

    def step(*tensors: Tensor) -> list[Tensor]:
        outcome = engine._traceable_step(call.with_inputs(tensors), dependencies)
        if not {id(leaf) for leaf in outcome.leaves()} <= {id(target) for target in targets}:
            raise NotCapturableError("it makes new parameters as it runs")
        gradients = torch.autograd.grad(torch.as_tensor(outcome.surrogate), targets, allow_unused=True)
        present[:] = [i for i, gradient in enumerate(gradients) if gradient is not None]
        loss = torch.as_tensor(outcome.loss).detach()
        wanted = [gradient for gradient in gradients if gradient is not None]
        return [loss, _all_finite([loss, *wanted]), *wanted]

    with torch.enable_grad():
        graph, outputs = capture(step, stand_ins, list({id(t): t for t in [*parameters, *state]}.values()))
    if not outputs[1]:
        raise NotFiniteStepError
    positions = {id(t): i for i, t in enumerate(stand_ins)}
    captured = CapturedStep(graph, [positions.get(id(targets[i]), targets[i]) for i in present])
    return captured, captured.result(call, outputs)


def _all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether the sum of all is: one that is not makes it so. Of an overflow, the plain step finds that it is none."""
    sums = [t.sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([total.double() for total in sums]).sum().isfinite()
