"""A model with its discrete sites summed out, for any inference of Pyro's."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger, block_messengers
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.errors import (
    DiscreteInferenceError,
    EnumerationError,
    SettingError,
    in_a_line,
    refuses_unknown_keywords,
    shown,
)
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.decisions import WhatDecides, decided_at_once, decided_by, decisions, draws_among
from pyro_discrete.inspection.trial import check_batch_dims, check_data, plain_trial
from pyro_discrete.planning.plan_display import FILLS, alike_lines
from pyro_discrete.programs.dims import subsampling_scale
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import KeepSubsamples, Pair, Program, Substitute, on_trial
from pyro_discrete.programs.sites import (
    family_of,
    is_deterministic,
    is_latent,
    joint_support,
    sample_sites,
    weighed_log_prob,
)
from pyro_discrete.sums.components import SumCost
from pyro_discrete.sums.counts import Counts, MoreTermsError
from pyro_discrete.sums.enumerated_sites import BUDGET, IN_GUIDE, NOT_IN_GUIDE, Marginalise, PairsError
from pyro_discrete.sums.marginalisation import (
    collapsed,
    joint_traces,
    settle,
    summed_one_by_one,
    why_not_at_once_here,
)
from pyro_discrete.tables.alike_names import pattern_of
from pyro_discrete.tables.html_table import html_table

__all__ = [
    "Collapsed",
    "CollapsedPlan",
    "collapse",
]


GIVING = (ConditionMessenger, UnconditionMessenger, ReplayMessenger, Substitute)
"""Handlers that say which values sites have, and whether they are observed."""

SUMMED_OUT = "summed out"

HEARD = (*GIVING, BlockMessenger, MaskMessenger, ScaleMessenger, IndepMessenger)
"""Handlers around a collapsed model that have a say in what its sites are; all others only look at what it shows."""


@refuses_unknown_keywords
def collapse(model: Program, *, max_elements: int = 2**27, max_operations: int = 2**34) -> Collapsed:
    r"""The model with its discrete latent sites summed out exactly, so that any inference of Pyro's runs on it.

    .. math:: p(x, c) = \sum_z p(z, c, x)

    with :math:`z` the discrete sites, :math:`c` the continuous ones and :math:`x` the data. What it shows to handlers
    around it (NUTS, an `AutoGuide`, `poutine.trace`) are the continuous sites, the data under their names, at
    log-probability zero, and one factor; no discrete latent site, and no deterministic one that is a function of these.
    The total of the terms, `log_prob_sum()`, is log p(x, c). Sums go by elimination, along chains (`pyro.markov`) in
    logarithmic depth, as in `TraceELBO`; joint values of `.to_event` sites, plates, plates beside each other and counts
    without an end are included, and no annotation is needed.

    - Where nothing is observed, at whatever draws, or where `pyro.poutine.get_mask()` is False (under `Predictive`),
      the program is drawn as it stands.
    - `poutine.condition` around it goes for continuous, observed and discrete sites: a discrete site that is
      conditioned, or replayed, is observed and not summed. `block`, `scale`, `mask` and plates around it do what they
      do around the model itself; a scale goes outside of the logarithm.
    - A continuous site whose prior depends on a discrete one is drawn from the mean of that prior over the discrete
      values, each as likely, which is its term, too; the factor makes up for the difference.
    - Structures (rankings, subsets, matchings, chains, trees) are summed over the list of their values, of up to 2^20.
      Larger ones whose law is linear in their parts (`KSubset`, `GibbsMatching`, `LinearChain`, the trees) go by their
      partition function, if each term that reads one adds up over the places of its value: of a single place
      (`z[..., i]`), place by place (`Normal(table[z], 1.0).to_event(1)`), or a sum
      (`pyro.factor("f", (weights * z).sum(-1))`, also differences, multiples and matrix products). Of a `LinearChain` a
      place and the next one may be read together (`table[z[..., :-1], z[..., 1:]]`). That is followed through every
      run, operation by operation; what is not known to add up so is refused.
    - A program that cannot be given all values at once (that reads a discrete draw by `.item()`, or branches on it) is
      run for one joint value after another; `plan`, after the first call, says so.

    `max_elements`, `max_operations`: what the sums may cost, as in `Enumerate`.

    Raises `EnumerationError`, with the width or the reason, for sums beyond these, for structures of more values than
    are listed whose terms do not add up over their places, for elements of a plate that hang together, and for a
    count's sum that does not settle.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import MCMC, NUTS
    >>> def mixture(x):
    ...     locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    ...         pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)
    >>> pyro.set_rng_seed(0)
    >>> mcmc = MCMC(NUTS(collapse(mixture)), num_samples=5, warmup_steps=5, disable_progbar=True)
    >>> mcmc.run(torch.tensor([-2.0, 1.9, 2.2]))
    >>> mcmc.get_samples()["locs"].shape
    torch.Size([5, 2])
    """
    if not callable(model):
        raise SettingError(f"collapse: the model is {shown(model)}; a function that is a Pyro program is expected.")
    return Collapsed(model, Enumerate(max_elements=max_elements, max_operations=max_operations))


@dataclass(frozen=True)
class CollapsedPlan:
    """How a collapsed model is run for calls of one kind. It prints as words, and is a table in a notebook.

    - `sites`: the discrete sites that are summed out; none where the program is drawn as it stands, for a `reason`.
    - `one_by_one`: why there is a run for each joint value, if there is.
    - `cost`: of the sums. `batch_dims`: how many dims of plates there are. `given`: sites that are not summed over.
      `computed`: deterministic sites with the shapes that they have at single values. `counts`: how far sums over
      counts go. `by_parts`: the structures that are summed by their partition function, with the number of consecutive
      places that terms read together.
      `decided_by`: the draws that Python sees, so that other ones may take another branch: sums at once are tried anew
      in every run then. `of_one`: plates of one element, of which nothing is known of several.
    """

    sites: tuple[str, ...] = ()
    reason: str = ""
    one_by_one: str = ""
    cost: SumCost = field(default_factory=SumCost)
    batch_dims: int = 0
    given: frozenset[str] = frozenset()
    computed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    by_parts: Mapping[str, int] = field(default_factory=dict)
    decided_by: frozenset[str] = frozenset()
    of_one: frozenset[str] = frozenset()

    def __str__(self) -> str:
        if not self.sites:
            return f"drawn as it stands: {self.reason}"
        listed = ", ".join(self.sites[:6]) + (", ..." if len(self.sites) > 6 else "")
        singly = f"; one joint value after another ({self.one_by_one})" if self.one_by_one else ""
        tops = {n: top for n, top in self.counts.tops.items() if n in self.sites}
        ends = "".join(f"; {n} up to {top}" for n, top in tops.items())
        by_parts = [f"{n} (of pairs of places)" if w > 1 else n for n, w in sorted(self.by_parts.items())]
        parts = f"; {', '.join(by_parts)} by the partition function" if by_parts else ""
        return f"{len(self.sites)} site(s) summed out ({listed}): {self.cost}{singly}{ends}{parts}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header = ("site", "what becomes of it", "how")
        if not self.sites:
            return html_table(header, [], notes=[str(self)])
        others = sorted(self.given, key=lambda name: (pattern_of(name), len(name), name))
        summed = alike_lines([(name, SUMMED_OUT, self._way_of(name)) for name in self.sites])
        kept = alike_lines([(name, "as it stands", "") for name in others])
        notes = [f"exact sums: {self.cost}"]
        if self.one_by_one:
            notes.append(f"one joint value after another ({self.one_by_one})")
        elif self.decided_by:
            draws = ", ".join(sorted(self.decided_by))
            notes.append(f"the program decides by its draws of {draws}: every run looks whether all values go at once")
        return html_table(header, [*summed, *kept], notes=notes, colours=[FILLS[SUMMED_OUT][1]] * len(summed))

    def _way_of(self, name: str) -> str:
        if name in self.by_parts:
            return "by its partition function" + (", places in pairs" if self.by_parts[name] > 1 else "")
        top = self.counts.tops.get(name)
        return "over its values" if top is None else f"over its values up to {top}"


class Collapsed:
    """What `collapse` returns: a Pyro program."""

    def __init__(self, model: Program, settings: Enumerate) -> None:
        functools.update_wrapper(self, model, updated=())
        self.model: Program = model
        self.settings: Enumerate = settings
        self._plans: dict[Any, CollapsedPlan] = {}
        self._decides: dict[Any, WhatDecides] = {}
        self._branch_of: dict[Any, Any] = {}
        self._last: CollapsedPlan | None = None

    def __repr__(self) -> str:
        return f"collapse({getattr(self.model, '__qualname__', None) or type(self.model).__name__})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_decides": {}, "_branch_of": {}, "_last": None}

    @property
    def uncollapsed(self) -> Program:
        """The model itself."""
        return self.model

    @property
    def plan(self) -> CollapsedPlan:
        """How the last call went."""
        if self._last is None:
            raise SettingError("The plan is made at the first call: run the collapsed model once, then look.")
        return self._last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program with its discrete sites summed out; returns what it returns, for all of their values."""
        if poutine.get_mask() is False:
            return self.model(*args, **kwargs)
        with _worded():
            return self._summed_out(args, kwargs)

    def _summed_out(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        kind = _kind(args, kwargs), _given()
        key = kind, self._branch(kind, args, kwargs)
        plan = self._plans.get(key)
        if plan is None or not plan.sites:  # whether anything is observed may have changed
            plan = self._planned(key, args, kwargs)
        self._last = plan
        if not plan.sites:
            return self.model(*args, **kwargs)
        if torch._C._get_tracing_state() is not None:
            _refuse_traced(plan)
        shown_run = _Run(plan, self.settings)
        try:
            result = shown_run.of(self.model, args, kwargs)
        except DiscreteInferenceError:
            raise
        except Exception as error:
            if plan.one_by_one or not plan.decided_by:
                raise
            raise EnumerationError(
                f"The program decides by its draws of {', '.join(sorted(plan.decided_by))}, and with these it does not "
                f"run over all values of {', '.join(plan.sites)} beside each other ({in_a_line(error)}). Index from "
                "the right so that dims on the left broadcast."
            ) from error
        run: _Run | None = shown_run
        # what is shown does not hang on the way of the sum
        if shown_run.own.keys() != {*plan.sites} or shown_run.has_grown:
            plan, run = self._planned(key, args, kwargs), None
        elif plan.decided_by and not plan.one_by_one:
            draws, kept = shown_run.values(), shown_run.subsamples
            with _unseen():
                singly = why_not_at_once_here(self._pair(args, kwargs)[0], draws, kept, plan.batch_dims)
            plan = replace(plan, one_by_one=singly)
        self._last = plan
        total = self._total(plan, shown_run, run, args, kwargs)
        with block_messengers(lambda handler: isinstance(handler, MaskMessenger | ScaleMessenger)):  # in it already
            pyro.factor(_label(plan.sites), total)
        return result

    def _branch(self, kind: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The branch that a call of a kind takes; none before its first one, and while it is traced.

        Where that cannot be told by what may decide, a further run, without gradients, tells it.
        """
        decides = self._decides.get(kind)
        if decides is None or torch._C._get_tracing_state() is not None:
            return None
        with _unseen():
            pair = self._pair(args, kwargs)[0]
            given = decides.of(pair)
            if decides.in_draws:
                return given
            if given is None:
                return decisions(pair)
            if (kind, given) not in self._branch_of:
                self._branch_of[kind, given] = decisions(pair)
            return self._branch_of[kind, given]

    def _total(self, plan: CollapsedPlan, shown_run: _Run, run: _Run | None, args: Any, kwargs: Any) -> Tensor:
        """The factor, from the run that was shown, or from others with the same draws."""
        while True:
            try:
                with _unseen():
                    if plan.one_by_one:
                        plan.counts.start()
                        model = poutine.condition(self.model, _conditioned())
                        model = shown_run.subsamples(plan.counts.in_model(model))
                        _, scored, members = summed_one_by_one(model, shown_run.drawn_trace(), args, kwargs, MOST_RUNS)
                    else:
                        if run is None:
                            run = _Run(plan, self.settings)
                            run.of(Substitute(shown_run.values())(shown_run.subsamples(self.model)), args, kwargs)
                        scored, members = collapsed(run.trace, run, plan.batch_dims)
                if plan.counts.noted and torch._C._get_tracing_state() is not None:
                    raise EnumerationError(
                        "How far the sum over a count has to go is judged in every run, which a traced program (as of "
                        'jit_compile=True) cannot do. State its last value, infer={"truncation": 100}, or do without.'
                    )
                plan.counts.judge()
                return _unshown(scored, members, shown_run)
            except MoreTermsError:
                run = None
            except PairsError as error:  # of a branch that the trial has not taken
                if plan.by_parts[error.site] > 1:
                    raise
                run, plan = None, replace(plan, by_parts={**plan.by_parts, error.site: 2})

    def _pair(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Pair, Collection[str]]:
        """The model, and a guide that draws what is not summed out; and the names that handlers around give values."""
        given = _names_in(*_PYRO_STACK)
        model = KeepSubsamples()(poutine.condition(self.model, _conditioned()))

        def is_hidden(msg: Any) -> bool:
            """Whether a site is none that a guide would draw; a plate's size may hang on what is summed out."""
            drawn = is_latent(msg) and (msg["name"] in given or not _is_discrete(msg))
            return msg["type"] == "sample" and not drawn

        return Pair(model, poutine.block(model, hide_fn=is_hidden), args, kwargs), given

    def _planned(self, key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CollapsedPlan:
        """Look at the program: what is observed, what is to be summed out, and in which way it can be."""
        counts = Counts(steady=False)
        with _untraced(), _unseen(), on_trial(), kept_state(self.model), torch.enable_grad():
            pair, given = self._pair(args, kwargs)
            trace = plain_trial(pair).model_trace  # first: a program drawn as it stands takes this very branch
            decides = WhatDecides(pair, decided_by(pair, given), [self.model])  # what counts read of rates is no branch
            seen = decides.seen
            sites = sample_sites(trace)
            discrete = [n for n, m in sites.items() if is_latent(m) and _is_discrete(m) and n not in given]
            if not discrete:
                plan = CollapsedPlan(reason="there is no discrete latent site")
            elif not _observes(sites) and not _may_observe(pair, sites, discrete, draws_among(seen)):
                plan = CollapsedPlan(reason="nothing is observed")
            else:
                counts.drawn = {n for n in sites if n not in discrete}
                pair = replace(pair, model=counts.in_model(pair.model))
                trial = plain_trial(pair)
                check_data(pair, trial)
                check_batch_dims(trial)
                trial = trial.at_generic_numbers(pair, Pair(self.model, self.model, args, kwargs), seen)
                sums = settle(pair, trial, dict.fromkeys(discrete, self.settings), MOST_RUNS)
                draws, own = draws_among(seen), frozenset(discrete)
                if draws and not sums.one_by_one:
                    settings = dict.fromkeys(discrete, self.settings)
                    values = Marginalise(counts.drawn, settings, trial.batch_dims, rows=False, by_parts=sums.by_parts)
                    plain = self._pair(args, kwargs)[0]
                    draws = decided_at_once(plain, values, own, given)
                    decides = WhatDecides(plain, (seen - draws_among(seen)) | draws, [self.model])
                plan = CollapsedPlan(
                    tuple(discrete),
                    one_by_one=sums.one_by_one,
                    cost=sums.cost,
                    batch_dims=trial.batch_dims,
                    given=frozenset(counts.drawn),
                    computed=_shapes_of_computed(trace),
                    counts=counts,
                    by_parts=sums.by_parts,
                    decided_by=draws - own,
                    of_one=trial.plates_of_one,
                )
        if len(self._plans) >= MOST_PLANS or len(self._branch_of) >= MOST_CALLS:
            for known in (self._plans, self._decides, self._branch_of):
                known.clear()
        kind, branch = key
        if kind not in self._decides:
            self._decides[kind] = decides
            branch = self._branch(kind, args, kwargs)
        self._plans[kind, branch] = self._plans[kind, None] = plan
        return plan


def _observes(sites: Mapping[str, Any]) -> bool:
    return any(msg["is_observed"] for msg in sites.values())


def _may_observe(pair: Pair, sites: Mapping[str, Any], discrete: Collection[str], deciding: Collection[str]) -> bool:
    """Whether the program may observe something at other draws: it decides by continuous ones, or by values of discrete
    sites that are too many to be tried, or it does so at some of these."""
    if not deciding:
        return False
    if not {*deciding} <= {*discrete}:
        return True
    draws = {n: m["value"] for n, m in sites.items() if is_latent(m) and n not in discrete}
    model = Substitute(draws)(pair.model)
    try:
        return any(_observes(sample_sites(t)) for t in joint_traces(model, draws, pair.args, pair.kwargs, MOST_RUNS))
    except Exception:  # what the sums are to say
        return True


MOST_PLANS = 64
"""So many kinds of calls, and branches in them, are remembered."""

MOST_CALLS = 4096
"""Of so many contents of calls it is remembered which branch they lead to."""

MOST_RUNS = 2**12
"""So many joint values at most are gone through one after another."""


WORDS = {
    IN_GUIDE: "in a guide (TraceELBO in the place of collapse)",
    NOT_IN_GUIDE: "latent and to be summed out",
    BUDGET: "collapse(..., max_elements=...",
}
"""What is said here in the place of what sums say under an ELBO."""


@contextmanager
def _worded() -> Iterator[None]:
    """Errors within advise what can be done where there is no guide."""
    try:
        yield
    except DiscreteInferenceError as error:
        text = str(error)
        for said, here in WORDS.items():
            text = text.replace(said, here)
        error.args = (text, *error.args[1:])
        raise


def _refuse_traced(plan: CollapsedPlan) -> None:
    """Raise `EnumerationError` for what cannot be had of a traced program, whose operations are those of one run."""
    reason = ""
    if plan.by_parts:
        name = min(plan.by_parts)
        reason = f"Site {name!r} is summed by its partition function, and what reads it is looked at in every run"
    elif plan.decided_by:
        reason = f"The program decides by its draws of {', '.join(sorted(plan.decided_by))}, anew in every run"
    if reason:
        raise EnumerationError(f"{reason}, which a traced program (as of jit_compile=True) cannot do. Do without.")


def _label(sites: Sequence[str]) -> str:
    return f"sum over {', '.join(sites[:3])}{', ...' if len(sites) > 3 else ''}"


def _is_discrete(msg: Any) -> bool:
    return family_of(msg["fn"]) not in (None, Family.CONTINUOUS)


def _shapes_of_computed(trace: Trace) -> dict[str, tuple[int, ...]]:
    """The shapes of the deterministic sites' values."""
    values = {n: m["value"] for n, m in trace.nodes.items() if m["type"] == "sample" and is_deterministic(m)}
    return {n: tuple(v.shape) for n, v in values.items() if torch.is_tensor(v)}


@contextmanager
def _unseen() -> Iterator[None]:
    """Runs within are seen by no handler around, but those that say what sites are."""
    with block_messengers(lambda handler: not isinstance(handler, HEARD)):
        yield


@contextmanager
def _untraced() -> Iterator[None]:
    """What runs inside is in no program that is being traced (as of jit_compile=True)."""
    state = torch._C._get_tracing_state()
    if state is not None:
        torch._C._set_tracing_state(None)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if state is not None:
            torch._C._set_tracing_state(state)  # pyright: ignore[reportAttributeAccessIssue]


def _kind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a plan depends on of the arguments: shapes and kinds of tensors, and the values of what is none."""

    def described(value: Any) -> Any:
        if torch.is_tensor(value):
            return tuple(value.shape), value.dtype, value.device
        if isinstance(value, list | tuple):
            return type(value), *map(described, value)
        if isinstance(value, dict):
            return tuple((key, described(each)) for key, each in value.items())
        if value is None or isinstance(value, bool | int | str):
            return value
        return type(value) if isinstance(value, float) else id(value)

    return described(args), described(dict(kwargs))


def _given() -> tuple[Any, ...]:
    """What the handlers around say of sites: which ones have their values from outside, and in which plates all are."""
    found: list[Any] = []
    for handler in _PYRO_STACK:
        names = _names_in(handler)
        if names:
            found.append(names)
        elif isinstance(handler, IndepMessenger):
            found.append((handler.name, handler.size, handler.dim))
        elif isinstance(handler, UnconditionMessenger | BlockMessenger):
            found.append(type(handler))
    return tuple(found)


def _names_in(*handlers: Messenger) -> frozenset[str]:
    """The sites to which handlers give values."""
    found: set[str] = set()
    for handler in handlers:
        if isinstance(handler, ConditionMessenger):
            found.update(handler.data.nodes if isinstance(handler.data, Trace) else handler.data)
        elif isinstance(handler, ReplayMessenger) and handler.trace is not None:
            found.update(handler.trace.nodes)
        elif isinstance(handler, Substitute):
            found.update(handler.values)
    return frozenset(found)


def _conditioned() -> dict[str, Any]:
    """The values that handlers around give to observed sites, for runs in which they are to be known from within."""
    found: dict[str, Any] = {}
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, ConditionMessenger):
            data = handler.data
            found |= {n: m["value"] for n, m in data.nodes.items()} if isinstance(data, Trace) else dict(data)
    return found


class _Run(Marginalise):
    """A run of the model: discrete sites take all of their values (or the first ones, where joint values are gone
    through one after another), and no handler around sees them.

    The others are shown: data with a term of zero, continuous sites as they are, or spread over the values of the
    discrete ones on which they depend. `trace` has all sites, with the terms that they really have.
    """

    def __init__(self, plan: CollapsedPlan, settings: Enumerate) -> None:
        given = dict.fromkeys(plan.sites, settings)
        super().__init__(set(), given, plan.batch_dims, rows=False, by_parts=plan.by_parts)
        self.plan, self.trace, self.subsamples = plan, Trace(), KeepSubsamples()
        self.shown: dict[str, Any] = {}
        self.outer: frozenset[Any] = frozenset()
        self._really: dict[str, Any] = {}
        self._inside: dict[str, Any] = {}

    def of(self, model: Program, args: Any, kwargs: Any) -> Any:
        """Run the model, and return what it returns."""
        counts = self.plan.counts
        counts.start()
        counts.drawn = {*self.plan.given}
        with self:
            return counts.in_model(model)(*args, **kwargs)

    def __enter__(self) -> Any:
        entered = super().__enter__()
        self._place = _PYRO_STACK.index(self)
        self._in_plates = any(isinstance(handler, IndepMessenger) for handler in _PYRO_STACK[: self._place])
        return entered

    def values(self) -> dict[str, Tensor]:
        """The values that were drawn."""
        return {n: m["value"] for n, m in self.shown.items() if is_latent(m)}

    @property
    def has_grown(self) -> bool:
        """Whether a plate has several elements, where it had one when the plan was made."""
        frames = {f for frames in self._inside.values() for f in frames} if self.plan.of_one else ()
        return any(f.name in self.plan.of_one and f.size > 1 for f in frames)

    def drawn_trace(self) -> Trace:
        """A trace of the sites that were drawn."""
        trace = Trace()
        for name, msg in self.shown.items():
            if is_latent(msg):
                trace.add_node(name, **msg)
        return trace

    def _from_outside(self, msg: Any) -> Any:
        """What the handlers around make of a site, without its being shown to the others."""
        seen: Any = {**msg, "infer": dict(msg["infer"])}
        for handler in reversed(_PYRO_STACK[: self._place]):
            if isinstance(handler, HEARD):
                handler._process_message(seen)
                if seen["stop"]:
                    break
        return seen

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_deterministic(msg):
            _without_scope(msg)
            # of another shape than at single values it is a function of what is summed out
            shape = tuple(getattr(msg["value"], "shape", ()))
            msg["stop"] = msg["stop"] or shape != self.plan.computed.get(name, shape)
            return
        if not isinstance(msg["fn"], TorchDistributionMixin) or site_is_subsample(msg):
            return
        self._inside[name] = msg["cond_indep_stack"]
        discrete = is_latent(msg) and not msg["done"] and _is_discrete(msg)
        seen = self._from_outside(msg) if discrete or self._in_plates else msg
        if discrete and not seen["is_observed"] and seen["value"] is None:
            msg.update({key: seen[key] for key in ("fn", "scale", "mask", "cond_indep_stack")})
            self._take_values(msg)
            msg["stop"] = True
            return
        self.drawn.add(name)  # type: ignore[attr-defined]
        super()._pyro_sample(msg)
        _without_scope(msg)
        fn = self._really[name] = seen["fn"]
        depth = max((-f.dim for f in seen["cond_indep_stack"] if f.dim is not None), default=0)
        if seen["is_observed"] and (msg["is_observed"] or discrete):
            msg["fn"] = _Silent(fn, depth)
        elif any(size > 1 for size in fn.batch_shape[: max(0, len(fn.batch_shape) - depth)]):
            msg["fn"] = _Spread(fn, depth)

    def _take_values(self, msg: Any) -> None:
        """All values of a discrete site, side by side; structured ones are listed, as any."""
        if not self.plan.one_by_one:
            super()._pyro_sample(msg)
            return
        self.own[msg["name"]] = len(self.own)
        msg["value"], msg["done"] = joint_support(msg["fn"])[0].expand(msg["fn"].shape()), True

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.subsamples.keep(msg)
        if name not in self._inside:
            return
        self.outer |= {*msg["cond_indep_stack"]} - {*self._inside[name]}
        if self.parts is not None and is_latent(msg) and name not in self.own and self.parts.of(msg["value"]):
            with self.parts.unwatched():  # drawn from the mean over all values, it is the same at each of them
                msg["value"] = msg["value"].clone()
        if name not in self.own:
            self.shown[name] = dict(msg)
        really = {**msg, "fn": self._really.get(name, msg["fn"])}
        super()._pyro_post_sample(really)
        self.trace.add_node(name, **really)


def _without_scope(msg: Any) -> None:
    """Take out what `pyro.markov` says of sites before this one, which the handlers around have not seen."""
    msg["infer"] = {key: value for key, value in msg["infer"].items() if not key.startswith("_markov")}


def _unshown(scored: Trace, members: Mapping[str, Sequence[str]], run: _Run) -> Tensor:
    """All terms of a run's program, as it is scored, less those that it has shown: over the dims of plates around."""
    dims = {f.dim for f in run.outer if f.vectorized}
    absorbed = {name for names in members.values() for name in names}
    total: Tensor | float = 0.0
    for name, msg in sample_sites(scored).items():
        shown = run.shown.get(name)
        term: Tensor | float = 0.0
        if name in members or (shown is not None and isinstance(shown["fn"], _Silent) and name not in absorbed):
            term = weighed_log_prob(msg)
        elif shown is not None and not isinstance(shown["fn"], _Silent) and name in absorbed:
            term = -weighed_log_prob(shown)
        if torch.is_tensor(term):
            kept = [d for d in range(-term.dim(), 0) if d not in dims]
            total = total + (term.sum(kept, keepdim=True) if kept else term)
    total = torch.as_tensor(total)
    while total.dim() and total.shape[0] == 1:
        total = total.squeeze(0)
    return total / subsampling_scale(run.outer)  # which these plates give to the factor again


class _Silent(TorchDistribution):
    """Data whose term is in the factor: of their distribution's shape without the dims of discrete values."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, batch_dims: int) -> None:
        self.fn, self.batch_dims = fn, batch_dims
        shape = fn.batch_shape
        super().__init__(shape[max(0, len(shape) - batch_dims) :], fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Silent:
        made = copy(self)
        made._batch_shape = torch.Size(batch_shape)
        return made

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError("data that are summed over their causes are not drawn")

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros(self.batch_shape, device=value.device if torch.is_tensor(value) else None)


class _Spread(TorchDistribution):
    """The mean of a continuous site's distributions over the discrete values that it depends on, each as likely."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, batch_dims: int) -> None:
        self.fn, self.batch_dims = fn, batch_dims
        shape = fn.batch_shape
        super().__init__(shape[len(shape) - batch_dims :], fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    @property
    def _values(self) -> int:
        return math.prod(self.fn.batch_shape[: len(self.fn.batch_shape) - self.batch_dims])

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Spread:
        left = self.fn.batch_shape[: len(self.fn.batch_shape) - self.batch_dims]
        batch = torch.Size(batch_shape)
        padded = (1,) * (self.batch_dims - len(batch)) + tuple(batch)
        return _Spread(self.fn.expand(torch.Size((*left, *padded))), self.batch_dims)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            draws = self.fn.sample(shape)
            inner = (*self.batch_shape, *self.event_shape)
            draws = draws.reshape(*shape, self._values, *inner)
            chosen = torch.randint(self._values, (*shape, 1, *self.batch_shape), device=draws.device)
            chosen = chosen.reshape(*chosen.shape, *(1,) * len(self.event_shape)).expand(*shape, 1, *inner)
            return draws.gather(len(shape), chosen).squeeze(len(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        leading = value.shape[: max(0, value.dim() - len(self.batch_shape) - len(self.event_shape))]
        inner = value.shape[len(leading) :]
        left = len(self.fn.batch_shape) - self.batch_dims
        each = self.fn.log_prob(value.reshape(*leading, *(1,) * left, *inner) if leading else value)
        flat = each.reshape(*leading, self._values, *self.batch_shape)
        return flat.logsumexp(len(leading)) - math.log(self._values)
