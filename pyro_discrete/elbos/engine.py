"""The engine behind every objective: plan, run, costs, surrogate, one backward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_discrete.capture.captures import Captures
from pyro_discrete.elbos.failures import Explained, check_gradients, fresh_traces, loss_not_finite, surrogate_not_finite
from pyro_discrete.elbos.settling import settled, tried_by_step
from pyro_discrete.errors import DiscreteInferenceError, SettingError, is_number, is_whole, shown
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.garbage import collecting_later
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import Trial, names_of_guide
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.baseline_inputs import Contexts
from pyro_discrete.planning.branches import BranchChangedError, Branches, watching_sizes
from pyro_discrete.planning.make_plan import make_plan
from pyro_discrete.planning.plan import Exact, Plan, StructureChangedError
from pyro_discrete.planning.select import Selection, Spec
from pyro_discrete.planning.site_estimators import LAST_LOOK, SiteEstimators
from pyro_discrete.posterior.methods import PosteriorMethods
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.module_state import Saved, kept_state
from pyro_discrete.programs.pair import (
    Pair,
    Program,
    on_trial,
    random_state,
    set_random_state,
    set_torch_random_state,
    torch_random_state,
)
from pyro_discrete.programs.parameters import KnownLeaves
from pyro_discrete.programs.sites import latent_sites
from pyro_discrete.relaxations.handler import refuse_handler_around
from pyro_discrete.steps.choice import TrainingChoice
from pyro_discrete.steps.outcome import Outcome, StepGradients
from pyro_discrete.steps.plain import NotPlainError
from pyro_discrete.steps.step import evaluate_step, train_step
from pyro_discrete.sums.counts import Counts, MoreTermsError
from pyro_discrete.sums.enumerated_sites import SharedDimError
from pyro_discrete.sums.packed_terms import CoupledElementsError

__all__ = [
    "DiscreteELBO",
]


class DiscreteELBO(nn.Module, PosteriorMethods, ELBO):
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
            raise SettingError(f"num_particles={shown(num_particles)} given, a positive whole number expected.")
        nesting = is_number(max_plate_nesting, least=0) and int(max_plate_nesting) == max_plate_nesting
        if max_plate_nesting is not math.inf and max_plate_nesting != math.inf and not nesting:
            raise SettingError(f"max_plate_nesting={shown(max_plate_nesting)} given, a whole number >= 0 expected.")
        if row_chunk is not None and (not is_whole(row_chunk) or compile is not False):
            raise SettingError(
                f"row_chunk={shown(row_chunk)}, compile={compile!r} given; a number >= 1 without compile."
            )
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
        self.selection: Selection = Selection(estimator, self.objective, self.objective.repetitions(num_particles))
        self.estimators: SiteEstimators = SiteEstimators()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._plan: Plan | None = None
        self._pair: tuple[Program, Program] | None = None
        self._apart: dict[str, dict[str, int]] = {}
        self._coupled, self._singly = "", ""
        self._grown: frozenset[str] = frozenset()
        self._branches: Branches | None = None
        self._replans = self._calls = 0
        self._unknown = ""
        self._untried = False
        self._takes_gradients = False
        self._leaves = KnownLeaves()
        self.captures: Captures | None = Captures(compile) if compile is not False else None

    # ELBO.__call__, not nn.Module's: elbo(model, guide) is a module
    __call__: Callable[..., Any] = ELBO.__call__

    @property
    def plan(self) -> Plan:
        """What each site got, and how many rows a step has; known once a pair has been run."""
        if self._plan is None:
            raise SettingError(
                "The plan is made at the first call: call loss(model, guide, ...) or step once, then look."
            )
        return self._plan

    @contextmanager
    def share_of_particles(self, shares: int) -> Iterator[None]:
        """Within, one of so many equal shares of the repetitions is made in a step (outer samples of a bound).

        Raises `SettingError` if they cannot be shared out equally, `ParticleError` if a share is too small for an
        estimator.
        """
        whole = self.selection.particles
        if whole % shares:
            raise SettingError(
                f"{whole} repetition{'s' * (whole > 1)} a step cannot be split over {shares} processes: give a "
                f"multiple of {shares} as num_particles (of TraceIWELBO: num_outer_samples), or split='data'."
            )
        try:
            self.selection.take_particles(whole // shares)
            self._plan = None
            yield
        finally:
            self.selection.particles, self._plan = whole, None

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The discrete objective with hard draws (exact sums under "enumerate"), whatever the estimator."""
        pair = Pair(model, guide, args, kwargs)

        def evaluate(plan: Plan, watched: Pair) -> Outcome:
            with torch.set_grad_enabled(self._takes_gradients):
                return evaluate_step(plan, pair, self.objective, watched)

        with collecting_later(), self._errors(pair):
            try:
                outcome = self._retried(pair, evaluate)
            except RuntimeError as error:
                if self._takes_gradients or "does not require grad" not in str(error):
                    raise
                self._takes_gradients = True  # the program differentiates something by itself
                outcome = self._retried(pair, evaluate)
            value = float(outcome.loss)
            if math.isnan(value):
                raise self._not_finite(pair, outcome)
            return value

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss that was optimised, after one backward that adds its gradient to every parameter's `.grad`."""
        pair = Pair(model, guide, args, kwargs)
        if not torch.is_grad_enabled():
            warnings.warn(
                "loss_and_grads was called with gradients off (torch.no_grad, inference_mode): no parameter gets one. "
                "Call it outside of these, or loss(...) for the loss alone.",
                stacklevel=2,
            )
        with collecting_later(), self._errors(pair):
            if self.captures is not None and torch.is_grad_enabled():
                return self.captures.step(_Stepper(self), pair, register=True).accumulate()
            outcome, surrogate = self._step(pair, register=True)
            if surrogate.requires_grad:
                surrogate.backward(retain_graph=self.retain_graph)
                leaves = self._leaves.of(outcome.leaves)
                check_gradients([g for p in leaves if (g := p.grad) is not None], pair, self.step, leaves)
            return float(outcome.loss)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar whose value is the loss and whose gradient is the estimate (and trains the estimators' parts)."""
        pair = Pair(model, guide, args, kwargs)
        with collecting_later(), self._errors(pair):
            if self.captures is not None and torch.is_grad_enabled():
                return self.captures.step(_Stepper(self), pair, register=am_i_wrapped()).differentiable()
            outcome, surrogate = self._step(pair, register=am_i_wrapped())
            return surrogate - surrogate.detach() + outcome.loss

    def gradients(self, model: Program, guide: Program, *args: Any, check: bool = True, **kwargs: Any) -> StepGradients:
        """One training step's loss and gradient as tensors; no `.grad` is written.

        `check=False` leaves out the look at a captured step's result that makes the processor wait for it.
        """
        pair = Pair(model, guide, args, kwargs)
        with collecting_later(), self._errors(pair):
            if self.captures is not None:
                return self.captures.step(_Stepper(self), pair, True, check)
            return self._eager_gradients(pair, register=True)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Part of Pyro's interface: one guide trace with hard draws and the model replayed against it."""
        pair = Pair(model, guide, args, kwargs)
        outcome = self._retried(pair, lambda plan, watched: evaluate_step(plan.single(), pair, self.objective, watched))
        (evaluation,) = outcome.evaluations
        return evaluation.model_trace, evaluation.guide_trace

    def _step(self, pair: Pair, register: bool) -> tuple[Outcome, Tensor]:
        """One training step's outcome, and its surrogate as a tensor. Whatever depends on a value is looked at here."""
        self._advance()

        def check(outcome: Outcome) -> None:
            self.plan.counts.judge()
            if not math.isfinite(float(outcome.loss)):
                raise self._not_finite(pair, outcome)

        def train(plan: Plan, watched: Pair) -> Outcome:
            if register:
                self.estimators.register()
            choice = TrainingChoice(plan, self.selection, self.estimators, self.step)
            return train_step(plan, watched, self.objective, choice, plan.dependencies(pair), check)

        outcome = self._retried(pair, train)
        if not torch.is_grad_enabled():
            return outcome, torch.as_tensor(outcome.loss)  # nothing is learned from a run without gradients
        surrogate = torch.as_tensor(outcome.surrogate)
        if not math.isfinite(surrogate.item()):
            raise surrogate_not_finite(int(self.step), outcome.traces())
        self._count_step()
        return outcome, surrogate

    def _not_finite(self, pair: Pair, outcome: Outcome) -> Exception:
        traces = outcome.traces() or fresh_traces(pair)
        return loss_not_finite(float(outcome.loss), traces, int(self.step))

    def _count_step(self) -> None:
        self.step.add_(1)
        if self._calls < LAST_LOOK:
            self._calls += 1
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

    def _advance(self) -> None:
        """Bring what follows a schedule to the present step."""

    def _begin_call(self, pair: Pair) -> None:
        """Have the plan of this call: made when the pair is new, or when its branch is."""
        if self._branches is None or self._plan is None or self._pair != (pair.model, pair.guide):
            self._grown = frozenset()
            counts = Counts(self.selection.may_sum)
            around = partial(self._around, counts)
            self._branches = Branches(pair, around)
            first = {"counts": counts, "first": self._branches.trial, "by_step": True}
            self._make_plan_of_branch(pair, self.vectorize_particles, **first)
            self._branches.begin(pair, self.plan)
        else:
            self._take(self._branches.plan_for(pair, self._plan), pair)
        self.plan.met.looks = self._branches.looks

    def _take(self, known: Plan | None, pair: Pair) -> None:
        """Go on with the plan of another branch, made if there is none yet."""
        assert self._branches is not None
        if known is None:
            self._make_plan_of_branch(pair, self.vectorize_particles, self._unknown)
            self._branches.note(self.plan)
        elif known is not self._plan:
            self._plan, self._leaves = known, KnownLeaves()

    def _around(self, counts: Counts, pair: Pair) -> Pair:
        return self.objective.around(counts.around(pair), training=False)

    def _make_plan_of_branch(self, pair: Pair, vectorise: bool, reason: str = "", **first: Any) -> None:
        self._apart, self._coupled, self._singly = {}, "", ""
        self._make_plan(pair, vectorise, reason, **first)

    def _make_plan(
        self,
        pair: Pair,
        vectorise: bool,
        reason: str = "",
        counts: Counts | None = None,
        first: Trial | None = None,
        by_step: bool = False,
    ) -> None:
        """Plan the steps of a pair; with a `reason`, as if nothing were known of what depends on what.

        `first`: a run of it, with these `counts`. `by_step`: whether exact sums may be tried by the step that follows.
        """
        again = self._plan is not None and self._pair == (pair.model, pair.guide)
        counts = self.plan.counts if again and counts is None else counts
        seen = () if self._branches is None else self._branches.seen
        with on_trial(), kept_state(pair.model, pair.guide) as state:
            given = (pair, self.selection, self.objective, vectorise, self.max_plate_nesting, self.row_chunk)
            met = {"unknown": reason, "apart": self._apart, "coupled": self._coupled, "counts": counts}
            met |= {"singly": self._singly, "seen": seen, "grown": self._grown}
            if self._branches is not None:
                met["unchanged"] = self._branches.unchanged
            plan, trial = make_plan(*given, **met, first=first, by_step=by_step)
            if isinstance(plan.way, Exact):
                had = settled(plan, pair, self.objective, trial, seen, by_step)
                if isinstance(had, Plan):
                    plan = had
                else:
                    plan, trial = make_plan(*given, may_enumerate=False, **met)
                    plan = replace(plan, passed_over=had)
            if reason:
                plan = replace(plan.without_dependencies(), reason=reason)
            kept = {n: None if e is None else self.estimators.keep(n, e) for n, e in plan.given.items()}
            plan = replace(plan, given=kept, state=state, pair=pair)
            contexts = Contexts(trial.model_trace, plan.observed, plan.batch_dims, pair.args, pair.kwargs)
            for name, estimator in kept.items():
                if estimator is not None:
                    self._prepare(name, estimator, contexts, trial)
            self.estimators.warn_of_strangers(latent_sites(trial.guide_trace), lambda: names_of_guide(pair))
        self._plan, self._pair, self._leaves, self._unknown = plan, (pair.model, pair.guide), KnownLeaves(), reason
        if self._branches is not None:
            plan.met.looks = self._branches.looks
        self._untried = plan.marginals.untried or (by_step and isinstance(plan.way, Exact) and tried_by_step(plan))

    def _prepare(self, name: str, estimator: Estimator, contexts: Contexts, trial: Trial) -> None:
        msg = latent_sites(trial.guide_trace)[name]
        context = contexts.of(name, estimator, plates_of(msg))
        like = msg["value"] if msg["value"].is_floating_point() else torch.empty((), device=msg["value"].device)
        estimator.prepare(0 if context is None else context.shape[-1], like.detach())

    def _retried(self, pair: Pair, run: Callable[[Plan, Pair], Outcome]) -> Outcome:
        """Run, and again with a new plan if the program takes another branch, if its structure has changed, or if a sum
        over a count has to go further; row by row if the structure often changes.

        Each run starts from the same modules' and random state: what a run drew that its plan could not take is drawn
        again. A mean over the draws that plans happen to take would be another one.
        """
        vectorise, reason, changes, anew = self.vectorize_particles, "", 0, False
        self._begin_call(pair)
        assert self._branches is not None
        # a first step that tries sums leaves nothing that it drew, as a trial does not; and a branch by a number of
        # Python's or NumPy's, which the program may draw if not all that decides is known, is that of one draw alone
        every = self._untried or not self._branches.known
        start = random_state() if every else torch_random_state()

        def put_back(before: Saved) -> None:
            before.put_back()
            (set_random_state if every else set_torch_random_state)(start)

        while changes < 4:
            plan, before = self.plan, Saved(self.plan.state)
            try:
                outcome = run(plan, watching_sizes(self._branches.watched(pair, plan), plan))
                self._branches.remember()
                self._untried = False
                return outcome
            except BranchChangedError:
                put_back(before)
                self._look(pair)
            except NotPlainError:
                put_back(before)
                plan.met.plain = False
            except SharedDimError as error:
                if not plan.met.keep_apart(error.together):
                    raise
                put_back(before)
            except Exception as error:
                if self._untried:  # the sums themselves may be what raises: how they can be had is found by trying
                    put_back(before)
                    try:
                        self._make_plan(pair, vectorise, reason)
                    except Exception:
                        self._plan = None  # of sums that cannot be had
                        raise
                    continue
                if not self._branches.sure:
                    put_back(before)
                    if self._look(pair):
                        continue
                if isinstance(error, MoreTermsError):
                    put_back(before)
                    self._make_plan(pair, vectorise and not self._unknown, reason or self._unknown)
                elif isinstance(error, CoupledElementsError) and not self._coupled:
                    put_back(before)
                    self._coupled = error.by
                    self._make_plan(pair, vectorise, reason)
                elif isinstance(error, StructureChangedError):
                    put_back(before)
                    if error.apart:  # each time there are more of them, or they are larger
                        self._take_apart(error.apart)
                        self._make_plan(pair, vectorise, reason)
                        continue
                    if {*error.grown} - self._grown:
                        self._grown |= {*error.grown}
                        self._make_plan(pair, vectorise, reason)
                        continue
                    if error.singly and not self._singly:
                        self._singly = error.singly
                        self._make_plan(pair, vectorise, reason)
                        continue
                    changes += 1
                    if error.batch_dims is not None:
                        self._plan = replace(self.plan, batch_dims=error.batch_dims)
                        continue
                    self._replans += 1
                    if changes == 1 and self._replans <= 3:
                        self._make_plan(pair, self.vectorize_particles)
                        continue
                    vectorise, reason = False, f"its structure changes from run to run: {error}"
                    self._singly = self._singly or error.own
                    if not isinstance(self.plan.way, Exact):
                        warnings.warn(f"This program is run row by row, more slowly, as {reason}.", stacklevel=4)
                    self._make_plan(pair, vectorise, reason)
                elif self._branches.by_draws and not anew and not isinstance(error, DiscreteInferenceError):
                    put_back(before)  # of a branch, perhaps, in which the program does not take what the plan gives it
                    anew = True
                    self._make_plan(pair, vectorise, reason)
                else:
                    raise
        return run(self.plan, watching_sizes(pair, self.plan))

    def _look(self, pair: Pair) -> bool:
        """See which branch this call takes, and go on with its plan; whether that is another one."""
        assert self._branches is not None
        before = self.plan
        self._take(self._branches.look(pair, before), pair)
        return self.plan is not before

    def _take_apart(self, sites: Mapping[str, Mapping[str, int]]) -> None:
        """Have the elements of these plates moved one at a time, at these sites."""
        for name, plates in sites.items():
            known = self._apart.setdefault(name, {})
            known.update({plate: max(size, known.get(plate, 0)) for plate, size in plates.items()})

    def _errors(self, pair: Pair) -> Explained:
        """Errors as a user needs to see them."""
        refuse_handler_around(type(self).__name__)
        return Explained(pair, lambda: int(self.step))

    def get_extra_state(self) -> dict[str, Any]:
        """Which estimator each site has, for "auto" to choose the same after a reload."""
        plan = self._plan
        return {"chosen": dict(self.selection.remembered) if plan is None else plan.taken_by_auto()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up saved choices."""
        if not isinstance(state, Mapping) or not isinstance(state.get("chosen"), Mapping):
            raise ValueError(f"_extra_state holds {shown(state)}, where each site's estimator is expected")
        self.selection.remembered = dict(state["chosen"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take up what `state_dict` gave. Raises `SettingError` for what is no state of such an ELBO."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except (RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
            said = " ".join(str(error).split()).rstrip(".")
            raise SettingError(
                f"What was given is no state of {type(self).__name__}: {said[:300]}. Give what state_dict() of such an "
                "ELBO returned, with estimators of the same settings."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_pair": None, "_branches": None, "_leaves": KnownLeaves()}


class _Stepper:
    """What a captured step needs of its ELBO: see `pyro_discrete.capture.captured_step.Stepper`."""

    def __init__(self, elbo: DiscreteELBO) -> None:
        self._elbo = elbo

    def plan_of(self, pair: Pair) -> Plan | None:
        return self._elbo._plan if self._elbo._pair == (pair.model, pair.guide) else None

    def keeps(self, plan: Plan) -> bool:
        elbo = self._elbo
        return plan is elbo._plan or (elbo._branches is not None and elbo._branches.keeps(plan))

    def eager(self, pair: Pair, register: bool) -> StepGradients:
        return self._elbo._eager_gradients(pair, register)

    def traceable(self, plan: Plan, pair: Pair, known: Dependencies) -> Outcome:
        elbo = self._elbo
        choice = TrainingChoice(plan, elbo.selection, elbo.estimators, elbo.step, read=False)
        return train_step(plan, pair, elbo.objective, choice, known, check=lambda outcome: None)

    def advance(self) -> None:
        self._elbo._advance()

    def count(self) -> None:
        self._elbo._count_step()

    def state(self) -> list[Tensor]:
        return [*self._elbo.estimators.state_tensors(), *self._elbo.buffers(recurse=False)]

    def watched(self) -> nn.Module:
        return self._elbo.estimators
