"""The engine behind every objective: plan, run, costs, surrogate, one backward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_discrete.capture.captures import Captures
from pyro_discrete.elbos.failures import check_gradients, explained, fresh_traces, loss_not_finite, surrogate_not_finite
from pyro_discrete.errors import SettingError, is_whole
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.baseline_inputs import Contexts
from pyro_discrete.planning.make_plan import make_plan, plan_site
from pyro_discrete.planning.plan import Plan
from pyro_discrete.planning.select import Selection, Spec
from pyro_discrete.planning.site_estimators import SiteEstimators
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair, on_trial
from pyro_discrete.programs.parameters import KnownLeaves
from pyro_discrete.programs.sites import Site, latent_sites
from pyro_discrete.relaxations.handler import refuse_handler_around
from pyro_discrete.steps.enumerated.parallel import enumerated_loss, settle_enumeration
from pyro_discrete.steps.hard_loss import run_hard
from pyro_discrete.steps.outcome import Outcome, StepGradients
from pyro_discrete.steps.run import StructureChangedError
from pyro_discrete.steps.step import run_step

__all__ = [
    "DiscreteELBO",
    "Program",
]


Program = Callable[..., Any]


class DiscreteELBO(nn.Module, ELBO):
    """What all objectives share: arguments, planning, the loss and its gradient, retries, errors, state.

    A subclass says what is maximised, in its `objective`; see `TraceELBO` for the arguments.
    """

    objective: Objective
    step: Tensor

    def __init__(
        self,
        estimator: Spec = "auto",
        *,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        compile: bool | Literal["graph"] = False,
        row_chunk: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if not is_whole(num_particles):
            raise SettingError(f"num_particles={num_particles!r} given, a positive whole number expected.")
        if max_plate_nesting != math.inf and (max_plate_nesting < 0 or int(max_plate_nesting) != max_plate_nesting):
            raise SettingError(f"max_plate_nesting={max_plate_nesting} given, a whole number >= 0 expected.")
        if row_chunk is not None and (not is_whole(row_chunk) or compile is not False):
            raise SettingError(f"row_chunk={row_chunk!r}, compile={compile!r} given; a number >= 1 without compile.")
        self.row_chunk = row_chunk
        ELBO.__init__(
            self,
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            retain_graph=retain_graph,
        )
        self.max_plate_nesting = max_plate_nesting
        self.selection = Selection(estimator, self.objective, self.objective.repetitions(num_particles))
        self.estimators = SiteEstimators()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._plan: Plan | None = None
        self._pair: tuple[Program, Program] | None = None
        self._replans = self._calls = 0
        self._leaves = KnownLeaves()
        self.captures = Captures(compile) if compile is not False else None

    # ELBO.__call__, not nn.Module's: elbo(model, guide) is a module
    __call__ = ELBO.__call__

    @property
    def plan(self) -> Plan:
        """What each site got, and how many rows a step has; known once a pair has been run."""
        if self._plan is None:
            raise SettingError(
                "The plan is made at the first call: call loss(model, guide, ...) or step once, then look."
            )
        return self._plan

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The discrete objective with hard draws (exact sums under "enumerate"), whatever the estimator."""
        pair = Pair(model, guide, args, kwargs)
        with self._errors(pair), torch.no_grad():
            if self._planned(pair).path == "enumerated":
                outcome = self._enumerated(pair, training=False)
            else:
                outcome = self._retried(lambda: run_hard(self._planned(pair), pair, self.objective), pair)
            value = float(outcome.loss)
            if math.isnan(value):
                raise loss_not_finite(value, outcome.traces() or fresh_traces(pair), int(self.step))
            return value

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss that was optimised, after one backward that adds its gradient to every parameter's `.grad`."""
        pair = Pair(model, guide, args, kwargs)
        with self._errors(pair):
            if self.captures is not None and torch.is_grad_enabled():
                return self.captures.step(self, pair, register=True).accumulate()
            outcome, surrogate = self._step(pair, register=True)
            if surrogate.requires_grad:
                surrogate.backward(retain_graph=self.retain_graph)
                leaves = self._leaves.of(outcome.leaves)
                check_gradients([p.grad for p in leaves if p.grad is not None], pair, self.step, leaves)
            return float(outcome.loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar whose value is the loss and whose gradient is the estimate (and trains the estimators' parts)."""
        pair = Pair(model, guide, args, kwargs)
        with self._errors(pair):
            if self.captures is not None and torch.is_grad_enabled():
                return self.captures.step(self, pair, register=am_i_wrapped()).differentiable()
            outcome, surrogate = self._step(pair, register=am_i_wrapped())
            return surrogate - surrogate.detach() + outcome.loss

    def gradients(self, model: Program, guide: Program, *args: Any, check: bool = True, **kwargs: Any) -> StepGradients:
        """One training step's loss and gradient as tensors; no `.grad` is written.

        `check=False` leaves out the look at a captured step's result that makes the processor wait for it.
        """
        pair = Pair(model, guide, args, kwargs)
        with self._errors(pair):
            if self.captures is not None:
                return self.captures.step(self, pair, True, check)
            return self._eager_gradients(pair, register=True)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Part of Pyro's interface: one guide trace with hard draws and the model replayed against it."""
        pair = Pair(model, guide, args, kwargs)
        (evaluation,) = run_hard(self._planned(pair).single(), pair, self.objective).evaluations
        return evaluation.model_trace, evaluation.guide_trace

    def _step(self, pair: Pair, register: bool) -> tuple[Outcome, Tensor]:
        """One training step's outcome, with its loss and its surrogate, and the surrogate as a tensor.

        What depends on a value is decided here, outside: `run_step` and `Outcome.combine` are tensor operations alone.
        """
        self._advance()
        plan = self._planned(pair)
        if register:
            self.estimators.register()
        if plan.path == "enumerated":
            outcome = self._enumerated(pair, training=True)
        else:
            more = (self.objective, self._adopt, None, self.row_chunk)
            outcome = self._retried(lambda: run_step(self._planned(pair), pair, *more), pair)
        value = float(outcome.loss)
        if not math.isfinite(value):
            raise loss_not_finite(value, outcome.traces() or fresh_traces(pair), int(self.step))
        if not torch.is_grad_enabled():
            return outcome, torch.as_tensor(outcome.loss)  # nothing is learned from a run without gradients
        outcome.combine(self.plan.particles)
        surrogate = torch.as_tensor(outcome.surrogate)
        if not math.isfinite(surrogate.item()):
            raise surrogate_not_finite(int(self.step))
        self._count_step()
        return outcome, surrogate

    def _count_step(self) -> None:
        self._calls += 1
        self.step.add_(1)
        self.estimators.warn_if_idle(self._calls)

    def _eager_gradients(self, pair: Pair, register: bool) -> StepGradients:
        """A step's loss and gradient, by the program itself."""
        outcome, surrogate = self._step(pair, register)
        loss = torch.as_tensor(outcome.loss)
        if not surrogate.requires_grad:
            return StepGradients(loss, [], [])
        leaves = outcome.leaves()
        gradients = torch.autograd.grad(surrogate, leaves, allow_unused=True, retain_graph=self.retain_graph)
        check_gradients([g for g in gradients if g is not None], pair, self.step)
        return StepGradients.of(loss, leaves, gradients, {})

    def _traceable_step(self, pair: Pair, dependencies: Dependencies) -> Outcome:
        """A step's outcome, by tensor operations alone, for what is planned already."""
        if self.plan.path == "enumerated":
            outcome = self._enumerated(pair, training=True, known=dependencies)
        else:
            outcome = run_step(self.plan, pair, self.objective, self._adopt, dependencies)
            outcome.combine(self.plan.particles)
        return outcome

    def _advance(self) -> None:
        """Bring what follows a schedule to the present step."""

    def _enumerated(self, pair: Pair, training: bool, known: Dependencies | None = None) -> Outcome:
        """The exact loss, which is its own surrogate."""
        loss = enumerated_loss(self.plan, self.objective.around(pair, training), known or self.plan.dependencies(pair))
        return Outcome(loss.detach(), loss, [])

    def _planned(self, pair: Pair) -> Plan:
        """The plan of this pair, made when the pair is new."""
        if self._plan is None or self._pair != (pair.model, pair.guide):
            self._make_plan(pair, self.vectorize_particles)
        return self.plan

    def _make_plan(self, pair: Pair, vectorise: bool, reason: str = "") -> None:
        with on_trial():
            plan, trial = make_plan(pair, self.selection, self.objective, vectorise, self.max_plate_nesting)
            if plan.path == "enumerated" and not settle_enumeration(
                plan, self.objective.around(pair, training=False), trial, plan.dependencies(pair)
            ):
                plan, trial = make_plan(
                    pair, self.selection, self.objective, vectorise, self.max_plate_nesting, may_enumerate=False
                )
            plan.reason = reason or plan.reason
            if reason:
                plan.forget_dependencies()
            for name, estimator in plan.estimators.items():
                if estimator is not None:
                    plan.estimators[name] = self.estimators.keep(name, estimator)
            contexts = Contexts(trial.model_trace, plan.observed, plan.batch_dims, pair.args, pair.kwargs)
            for name, estimator in plan.estimators.items():
                if estimator is not None:
                    self._prepare(name, estimator, contexts, trial)
        self._plan, self._pair, self._leaves = plan, (pair.model, pair.guide), KnownLeaves()

    def _prepare(self, name: str, estimator: Estimator, contexts: Contexts, trial: Trial) -> None:
        msg = latent_sites(trial.guide_trace)[name]
        context = contexts.of(name, estimator, plates_of(msg))
        like = msg["value"] if msg["value"].is_floating_point() else torch.empty((), device=msg["value"].device)
        estimator.prepare(0 if context is None else context.shape[-1], like.detach())

    def _adopt(self, site: Site) -> Estimator:
        """The estimator of a site met in a run; a site that the plan does not know is taken in if it can be."""
        site.step = self.step
        known, given = self.plan.estimators.get(site.name), site.message["infer"].get("estimator")
        if known is not None:
            if isinstance(given, Estimator) and type(given) is type(known) and not given.state_dict():
                return given  # the site's own choice, whose settings may change from step to step
            return known
        if self.plan.path == "vectorised":
            raise StructureChangedError(f"site {site.name!r} is new")
        self.plan.sites.append(plan_site(site, self.selection, self.plan))
        chosen = self.plan.estimators[site.name]
        if chosen is None:
            raise RuntimeError(f"site {site.name!r} was taken for a discrete one")
        kept = self.plan.estimators[site.name] = self.estimators.keep(site.name, chosen)
        kept.prepare(0, site.distribution.sample())
        return kept

    def _retried(self, run: Callable[[], Outcome], pair: Pair) -> Outcome:
        """Run, and again with a new plan if the program's structure has changed; row by row if it often does."""
        for attempt in range(4):
            try:
                return run()
            except StructureChangedError as change:
                if change.batch_dims is not None:
                    self.plan.batch_dims = change.batch_dims
                    continue
                self._replans += 1
                if attempt == 0 and self._replans <= 3:
                    self._make_plan(pair, self.vectorize_particles)
                    continue
                reason = f"its structure changes from run to run: {change}"
                warnings.warn(f"This program is run row by row, more slowly, as {reason}.", stacklevel=4)
                self._make_plan(pair, vectorise=False, reason=reason)
        return run()

    def _errors(self, pair: Pair) -> AbstractContextManager[None]:
        """Errors as a user needs to see them."""
        refuse_handler_around(type(self).__name__)
        return explained(pair, lambda: int(self.step))

    def get_extra_state(self) -> dict[str, Any]:
        """Which estimator each site has, for "auto" to choose the same after a reload."""
        plan = self._plan
        return {"chosen": dict(self.selection.remembered) if plan is None else plan.chosen()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up saved choices."""
        self.selection.remembered = dict(state["chosen"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_pair": None, "_leaves": KnownLeaves()}
