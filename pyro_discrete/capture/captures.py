"""Captured steps of an ELBO: a graph for each kind of call, when it is used, and how it is held to the program."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pyro.util
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_discrete.capture.captured_step import Call, CapturedStep, NotFiniteStepError, Stepper, Writes, capture_step
from pyro_discrete.capture.graph import Capture, why_not
from pyro_discrete.capture.rewriting import NotCapturableError
from pyro_discrete.capture.watch import Run, Watch, foreign_handlers, observed_run
from pyro_discrete.errors import DiscreteInferenceError, SettingError, shown
from pyro_discrete.planning.plan import Exact, Plan, StructureChangedError
from pyro_discrete.programs.pair import Pair, set_torch_random_state, torch_random_state
from pyro_discrete.steps.outcome import StepGradients
from pyro_discrete.sums.enumerated_sites import SharedDimError
from pyro_discrete.sums.packed_terms import CoupledElementsError

__all__ = [
    "Captures",
]


MOST_CAPTURES = 16
"""So many graphs an ELBO holds at most: kinds of call beyond these run eagerly."""

MOST_KINDS = 64
"""So many kinds of call are remembered at most, those that were not captured included."""

MOST_MISMATCHES = 3

LEAST_OPERATIONS = 800

_SETTINGS = ("mode", "check_every", "least_operations", "most_operations")


@dataclass
class _Kind:
    """One kind of call: what its eager run was seen to use, and its step once it was captured."""

    plan: Plan
    run: Run
    watch: Watch
    parameters: list[Tensor]
    step: CapturedStep | None = None
    uses: int = 0

    def holds(self) -> bool:
        return self.watch.holds() and (self.step is None or self.step.graph.holds())


class Captures:
    """The captured steps of one ELBO. `print(elbo.captures)` says how many there are, or why there are none.

    A call whose arguments have new shapes, dtypes, devices or settings, or that finds another module, parameter, mode
    or number where the program reads it in Python, runs eagerly once. The next one of its kind is captured while it
    runs, and from then on its graph runs. At the uses 1, 2, 4, 8 ... of a graph, and at each `check_every`-th one, the
    program runs as well, under the same random numbers, and has to give the same: a change that could not be seen
    before is found there.

    - `count`: the graphs there are. `made`: how many have been made. `reason`: why steps run eagerly, if they do.
    - `least_operations`: of graphs with so many at least, operations that are alike and independent are done together,
      such as those of the steps of a loop, and all counts are of what is left. Sums are rounded otherwise then, and
      draws made together have the same law; their stream is the same where their order is, on the processor, but for
      normal ones. Smaller graphs give bit for bit what the program gives.
    - `mode`: "graph", or "inductor" for graphs that are compiled, if they have no more than `most_operations`: inductor
      takes a minute for 4,000.
    """

    def __init__(self, compile: bool | str) -> None:
        if compile is not True and compile != "graph":
            raise SettingError(f'compile={shown(compile)} given; False, True or "graph" expected.')
        self.mode = "graph" if compile == "graph" else "inductor"
        self.check_every: int = 1024
        self.least_operations: int = LEAST_OPERATIONS
        self.most_operations: int = 5000
        self._begin()

    def _begin(self) -> None:
        self.made: int = 0
        self.reason: str = ""
        self._kinds: dict[Any, list[_Kind]] = {}
        self._float_dtypes = [torch.float64, torch.float32, None]  # how floats are given to graphs, best first
        self._mismatches = 0
        self._told: set[str] = set()

    @property
    def count(self) -> int:
        """How many graphs are held."""
        return sum(kind.step is not None for kinds in self._kinds.values() for kind in kinds)

    def __str__(self) -> str:
        if self.reason:
            return f"steps run eagerly: {self.reason}"
        return f"{self.count} captured step(s), {self.made} made so far, run by {self.mode}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.least_operations = LEAST_OPERATIONS  # which an older state has not
        self.__dict__.update(state)
        self._begin()

    def step(self, stepper: Stepper, pair: Pair, register: bool, check: bool = True) -> StepGradients:
        """One step, by its graph where there is one. Without `check`, a loss that is not finite goes unnoticed."""
        handlers = foreign_handlers()
        if self.reason or handlers:
            if handlers:
                self._tell("handlers", f"an effect handler is around the step ({', '.join(handlers)})")
            return stepper.eager(pair, register)
        try:
            call = Call(pair, register, self._float_dtypes[0])
        except NotCapturableError as error:
            self._give_up(str(error))
            return stepper.eager(pair, register)
        kind = self._known(stepper, call)
        if kind is None:
            return self._first(stepper, call)
        if kind.step is not None:
            return self._again(stepper, call, kind, kind.step, check)
        if self.count >= MOST_CAPTURES:
            self._tell("full", f"{MOST_CAPTURES} steps of other shapes or settings have been captured already")
            return _eagerly(stepper, call)
        return self._captured(stepper, call, kind)

    def _known(self, stepper: Stepper, call: Call) -> _Kind | None:
        if stepper.plan_of(call.pair) is None:
            self._kinds.clear()
        for kind in self._kinds.get(call.key, ()):
            if stepper.keeps(kind.plan) and kind.holds():
                return kind
        return None

    def _first(self, stepper: Stepper, call: Call) -> StepGradients:
        """The eager run of a new kind of call: it validates, plans, and shows what a step uses."""
        with observed_run() as run:
            result = _eagerly(stepper, call)
        if sum(len(kinds) for kinds in self._kinds.values()) >= MOST_KINDS:
            self._tell(
                "kinds",
                f"the last {MOST_KINDS} calls differ in shapes, in arguments that are no tensors, or in what the "
                "program reads from outside; pass a number that changes as a float or a tensor argument",
            )
            self._kinds = {key: kinds for key, kinds in self._kinds.items() if any(kind.step for kind in kinds)}
        kinds = self._kinds.setdefault(call.key, [])
        plan = stepper.plan_of(call.pair)
        assert plan is not None, "a step was run without a plan"
        kinds[:] = [kind for kind in kinds if stepper.keeps(kind.plan)][-3:]
        watch = Watch([*call.objects, *run.modules.values(), stepper.watched()], run.params)
        if watch.unknown:
            self._give_up(f"{watch.unknown}; pass what may change as an argument")
            return result
        kinds.append(_Kind(plan, run, watch, [*result.parameters, *result.idle]))
        return result

    def _captured(self, stepper: Stepper, call: Call, kind: _Kind) -> StepGradients:
        """Run the step, and capture it on the way; a terminal shows how far that is."""
        stepper.advance()
        writes, random_state = Writes(), pyro.util.get_rng_state()
        stages = 3 if self.mode == "inductor" else 2
        try:
            line = tqdm(total=stages, desc="compile: tracing a step", unit="stage", leave=False, disable=None)
            with line:
                kind.step, outputs = capture_step(stepper, kind.plan, call, kind.parameters, writes)
                _next_stage(line, f"compile: looking through {kind.step.graph.operations:,} operations")
                self._group(kind.step.graph, call.inputs(), outputs)
                if self.mode == "inductor":
                    _next_stage(line, f"compile: inductor compiles {kind.step.graph.operations:,} operations")
                    self._compile(kind.step.graph, call.inputs())
                line.update()
            self.made += 1
            kind.watch.renew()
            kind.run.emit()
            stepper.count()
            return kind.step.result(call, outputs)
        except Exception as error:
            again = isinstance(error, CoupledElementsError | SharedDimError)
            if isinstance(error, DiscreteInferenceError) and not again:
                raise
            writes.undo()
            pyro.util.set_rng_state(random_state)
            if isinstance(error, SharedDimError):
                kind.plan.met.keep_apart(error.together)  # for the next time that it is captured
            elif isinstance(error, NotFiniteStepError) or again:
                pass  # the eager step says where, or plans anew
            elif isinstance(error, StructureChangedError):
                self._give_up(f"its structure changes from run to run ({error})")
            elif call.floats:
                self._take_floats_otherwise()
            else:
                exact = "exact enumeration: " if isinstance(kind.plan.way, Exact) else ""
                self._give_up(exact + why_not(error))
        return _eagerly(stepper, call)

    def _group(self, graph: Capture, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if graph.operations < self.least_operations:
            return
        try:
            graph.group(inputs, outputs)
        except Exception as error:
            self._tell(
                "grouping",
                f"operations that are alike could not be done together ({why_not(error)}); the step's graph is run "
                "as it was traced",
                eager=False,
            )

    def _compile(self, graph: Capture, inputs: list[Tensor]) -> None:
        operations = graph.operations
        if operations > self.most_operations:
            self._tell(
                "size",
                f"the step has {operations} operations, which would take inductor long; its graph is run without it. "
                "Set elbo.captures.most_operations higher to have it compiled",
                eager=False,
            )
            return
        try:
            graph.compile(inputs)
        except Exception as error:
            self.mode = "graph"
            self._tell(
                "inductor", f"inductor failed ({why_not(error)}); captured graphs are run without it", eager=False
            )

    def _again(self, stepper: Stepper, call: Call, kind: _Kind, step: CapturedStep, check: bool) -> StepGradients:
        """Run the graph; and the program as well when a comparison is due, or when the result is not finite."""
        stepper.advance()
        random_state = torch_random_state()
        kind.uses += 1
        if kind.uses & (kind.uses - 1) == 0 or kind.uses % self.check_every == 0:
            return self._compared(stepper, call, kind, step)
        result, stands = step.run(call)
        if (check or kind.plan.counts.tops) and not stands:  # the program says where, or sums further
            set_torch_random_state(random_state)
            return _eagerly(stepper, call)
        step.graph.commit()
        kind.run.emit()
        stepper.count()
        return result

    def _compared(self, stepper: Stepper, call: Call, kind: _Kind, step: CapturedStep) -> StepGradients:
        """Run the program, and the graph under the same random numbers."""
        random_state = torch_random_state()
        try:
            result = step.run_exactly(call, first=kind.uses == 1)
        except NotCapturableError as error:
            self._give_up(str(error))
            result = None
        set_torch_random_state(random_state)
        with observed_run() as run:
            eager = _eagerly(stepper, call)
        if result is not None:
            same = run.params.keys() == kind.run.params.keys() and eager.agrees_with(result) and step.graph.agrees()
            if not same:
                self._mismatch(call)
        kind.watch.renew()
        return eager

    def _take_floats_otherwise(self) -> None:
        """Perhaps the program does something with a float that it does not do with such a tensor."""
        del self._float_dtypes[0]
        self._kinds.clear()

    def _mismatch(self, call: Call) -> None:
        """The program gives something else than its graph: capture anew, and not at all if that goes on."""
        self._kinds.clear()
        if call.floats:
            self._take_floats_otherwise()
            return
        self._mismatches += 1
        why = (
            "the program no longer gives what its captured step gives, as something that it reads in Python has "
            "changed unseen; pass what changes as an argument"
        )
        if self._mismatches < MOST_MISMATCHES:
            self._tell("mismatch", why + ". The step is captured anew", eager=False)
        else:
            self._give_up(why)

    def _tell(self, key: str, what: str, eager: bool = True) -> None:
        """Warn once of each kind."""
        if key not in self._told:
            self._told.add(key)
            warnings.warn(f"compile: {what}." + (" Such steps run eagerly." if eager else ""), stacklevel=6)

    def _give_up(self, why: str) -> None:
        self.reason = why
        self._kinds.clear()
        warnings.warn(f"compile: this step cannot be captured, so it runs eagerly: {why}.", stacklevel=6)


def _next_stage(line: tqdm, name: str) -> None:
    line.update()
    line.set_description(name)


def _eagerly(stepper: Stepper, call: Call) -> StepGradients:
    """The step as the program says it; arguments that want a gradient get it as well."""
    if not any(t.requires_grad for t in call.tensors):
        return stepper.eager(call.pair, call.register)
    stand_ins = [t.detach().requires_grad_(t.requires_grad) for t in call.tensors]
    result = stepper.eager(call.with_inputs(stand_ins), call.register)
    arguments = {id(s): t for s, t in zip(stand_ins, call.tensors, strict=True)}
    return StepGradients.of(
        result.loss, [*result.parameters, *result.idle], [*result.gradients, *(None for _ in result.idle)], arguments
    )
