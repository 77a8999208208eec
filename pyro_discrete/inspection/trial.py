"""Trial runs of a pair: what sites it has, whether it is well formed, and what further runs at other values show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_discrete.errors import (
    EmptyBatchError,
    MissingDataError,
    SettingError,
    SiteMatchError,
    SiteShapeError,
)
from pyro_discrete.families import Family
from pyro_discrete.inspection.apart import Followed, Keeping, Parts, follow
from pyro_discrete.inspection.generic_numbers import GenericNumbers, is_single_number, single_numbers, unlearned
from pyro_discrete.inspection.observations import wrong_observation
from pyro_discrete.inspection.provenance import ARGUMENTS, HELD
from pyro_discrete.programs.alike_sites import scored_together
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair
from pyro_discrete.programs.parameters import leaf_parameters, parameter_names
from pyro_discrete.programs.python_state import PythonState
from pyro_discrete.programs.sites import (
    Site,
    family_of,
    guide_terms,
    hidden_log_prob,
    is_latent,
    is_random_observation,
    joint_values_at,
    latent_sites,
    sample_sites,
    site_log_prob,
)

__all__ = [
    "Run",
    "SiteTerm",
    "Trial",
    "Values",
    "at_its_numbers",
    "check_batch_dims",
    "check_data",
    "check_matched",
    "check_pair",
    "names_of_guide",
    "observed_constants",
    "plain_trial",
    "trial_of",
    "value_of_attempt",
    "values_of_others",
    "warn_of_observations",
]


Values = Mapping[str, Tensor]
"""Of sites, by name."""


class SiteTerm(NamedTuple):
    """A site of a run: its message, its log-probability with its mask's effect and scale (what of a value may reach it,
    reaches it here), and what a mask hides of its law, if it has one (`hidden_log_prob`)."""

    message: Any
    term: Tensor
    hidden: Tensor | None


def _site_term(msg: Any, log_prob: Tensor, hidden: Tensor | None) -> SiteTerm:
    """That of a trace's node."""
    for part in (msg["mask"], msg["scale"]):
        if torch.is_tensor(part):
            log_prob = log_prob * part
    return SiteTerm(msg, log_prob, hidden)


class Run:
    """The traces of one run of guide and model, and its terms, once they are asked for."""

    def __init__(
        self, guide_trace: Trace, model_trace: Trace, parts: Sequence[Mapping[str, Parts]] | None = None
    ) -> None:
        self.traces: tuple[Trace, Trace] = guide_trace, model_trace
        self._parts = parts

    @cached_property
    def terms(self) -> list[dict[str, SiteTerm]]:
        """Those of the guide's sites, and of the model's."""
        found = []
        with torch.no_grad():
            for where, sites in enumerate(map(sample_sites, self.traces)):
                if self._parts is not None:
                    parts = self._parts[where]
                    found.append({n: _site_term(m, *parts[n][:2]) for n, m in sites.items()})
                    continue
                alike = scored_together(sites)
                scores = {n: alike[n] if n in alike else site_log_prob(m) for n, m in sites.items()}
                found.append({n: _site_term(m, scores[n], hidden_log_prob(m)) for n, m in sites.items()})
        return found


MOST_SHARED = 4
"""So many runs of single values are kept with a trial."""


@dataclass
class SharedRuns:
    """Further runs of one pair at the numbers of one trial, for whoever asks for the same ones again.

    `pair`: what is run, and nothing else. `alone`: runs at single values of all latent sites. `over_rows`: those over
    rows of values, by the sites that have them (`inspection.trial_rows`).
    """

    pair: Pair
    alone: list[tuple[Values, Run]]
    over_rows: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Traces of one run without a leading dim, the subsamples it drew, and its number of plate dims.

    `numbers`: what it was run with, if not with the present ones; whatever is compared with it is, too
    (`at_its_numbers`). `alone`: whether it is about these draws alone, and not about others that may come
    (`values_of_others`). `shared`: further runs, where looks share them (`sharing_runs`).
    `given`: the pair without handlers around, where that may be run at other numbers (`elsewhere`). `generic`: a run of
    the same draws at numbers of no special value, if one was made already, with these numbers.
    """

    guide_trace: Trace
    model_trace: Trace
    subsamples: KeepSubsamples
    batch_dims: int
    numbers: GenericNumbers | None = None
    alone: bool = False
    shared: SharedRuns | None = field(default=None, repr=False)
    given: Pair | None = None
    generic: tuple[GenericNumbers, Run] | None = field(default=None, repr=False)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def plates_of_one(self) -> frozenset[str]:
        """The plates that have one element in it, so that it shows nothing of several."""
        nodes = [m for trace in (self.guide_trace, self.model_trace) for m in sample_sites(trace).values()]
        return frozenset(p.name for m in nodes for p in plates_of(m) if p.vectorized and p.size == 1)

    def score(self, msg: Any) -> Tensor:
        """The log-probability of one of its sites, differentiable, as it was found when it was first asked for."""
        if "scores" not in self._known:
            self._known["scores"] = self._alike_scores()
        scores = self._known["scores"]
        if id(msg) not in scores:
            with torch.enable_grad():
                scores[id(msg)] = site_log_prob(msg)
        return scores[id(msg)]

    def _alike_scores(self) -> dict[int, Tensor]:
        """Those of sites that can be scored by one call, by their messages."""
        sites = [sample_sites(trace) for trace in (self.guide_trace, self.model_trace)]
        try:
            with torch.enable_grad():
                return {id(each[name]): score for each in sites for name, score in scored_together(each).items()}
        except Exception:  # of one of them, which says so when it is scored by itself
            return {}

    def followed(self, pair: Pair, draws: Collection[str]) -> Followed:
        """What the operations of a run at the trial's values say of the elements of these draws' plates."""
        key = (id(pair), frozenset(draws))
        if key not in self._known:
            self._known[key] = follow(pair, self.subsamples, self.values, draws)
        return self._known[key]

    def elsewhere(self, pair: Pair) -> GenericNumbers | None:
        """Other values for what the programs are given, or hold, of more numbers than one; None where the pair does not
        run at these. For what operations that nobody knows may do with them."""
        if self.given is None:
            return None
        if "elsewhere" not in self._known:
            state = PythonState((self.given.model, self.given.guide), tree_leaves((pair.args, dict(pair.kwargs))))
            sites = [m for t in (self.guide_trace, self.model_trace) for m in sample_sites(t).values()]
            data = {m["value"].data_ptr() for m in sites if m["is_observed"] and torch.is_tensor(m["value"])}
            free = [t for t in unlearned(state) if t.numel() > 1 and t.data_ptr() not in data and not t.is_inference()]
            found = None
            for moved in (free, [t for t in free if t.is_floating_point() or t.dtype is torch.bool]):
                found = found or (self._at(pair, GenericNumbers(moved)) if moved else None)
            self._known["elsewhere"] = found
        found = self._known["elsewhere"]
        return None if found is None else found.numbers

    def mixing(
        self, pair: Pair, keeping: Keeping, look: Callable[[], str], elsewhere: Callable[[], str], words: str
    ) -> str:
        """What mixes elements, in words; empty if nothing does.

        What operations may mix is mixed, whatever a look by values finds, which is about few of these; of operations
        that nobody knows that look tells, and one `elsewhere`, at other numbers.
        """
        if keeping is Keeping.MIXED:
            return words
        found = look()
        other = self.elsewhere(pair) if keeping is Keeping.UNKNOWN and not found else None
        if other is None:
            return found
        try:
            with other:
                return elsewhere()
        except Exception:  # of numbers that are never there, perhaps
            return ""

    @property
    def long(self) -> bool:
        """Whether it is one of so many sites that it is run less often."""
        return len(self.model_trace.nodes) > 200

    @cached_property
    def latent(self) -> dict[str, Any]:
        """The latent sites of the model and, where it drew them, of the guide."""
        return latent_sites(self.model_trace) | latent_sites(self.guide_trace)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """Those of all latent sites."""
        return {name: msg["value"] for name, msg in self.latent.items()}

    def sharing_runs(self, pair: Pair) -> Trial:
        """The same, as the first of the runs of this pair that looks share: it has to be one of them."""
        return replace(self, shared=SharedRuns(pair, [(self.values, Run(self.guide_trace, self.model_trace))]))

    def shared_with(self, pair: Pair) -> SharedRuns | None:
        """The runs of this pair that are shared; None where each look makes its own."""
        return self.shared if self.shared is not None and self.shared.pair is pair else None

    def at(self, pair: Pair, values: Values, anew: bool = False) -> Run:
        """A run at these values of all latent sites and at the trial's numbers: one that was made before, if there is a
        shared one and it is not to be made `anew`. One that draws anything is shared with none: it has noise."""
        shared = None if anew else self.shared_with(pair)
        for known, run in shared.alone if shared is not None else ():
            if known.keys() == values.keys() and all(_alike(v, known[n]) for n, v in values.items()):
                return run
        before = torch.get_rng_state()
        with self.numbers or nullcontext():
            run = Run(*trace_pair(pair, self.subsamples, values))
        room = shared is not None and len(shared.alone) < (1 if self.long else MOST_SHARED)
        if shared is not None and room and torch.equal(before, torch.get_rng_state()):
            shared.alone.append((values, run))
        return run

    def at_generic_numbers(self, pair: Pair, given: Pair, seen: Collection[str]) -> Trial:
        """The same draws at numbers of no special value (`GenericNumbers`): the parameters that a term depends on, and
        single numbers that the programs are given or hold. Looks at it share their further runs of the pair.

        `given`: the pair without handlers around. `seen`: what Python sees; those by which it may decide stay. This
        trial, where the others have other sites, or the program does not run with them.
        """
        scored, self = self, replace(self, given=given, generic=None)
        if scored.generic is not None and not seen:
            found = self._taken(pair, *scored.generic)
            if found is not None:
                return found
        for numbers in scored.generic_numbers(given, seen):
            found = self._at(pair, numbers)
            if found is not None:
                return found
        return self.sharing_runs(pair)

    def generic_numbers(self, given: Pair, seen: Collection[str]) -> list[GenericNumbers]:
        """The numbers of no special value that the pair may be run at, those that are rather to be had first."""
        if HELD in seen:
            return []
        sites = [m for t in (self.guide_trace, self.model_trace) for m in sample_sites(t).values()]
        with torch.enable_grad(), pyro.validation_enabled(False):
            terms = [self.score(m) for m in sites]
            learned = {id(t): t for t in leaf_parameters(*terms)}
        single = single_numbers(given.model, given.guide)
        if ARGUMENTS not in seen:
            single += [t for t in tree_leaves((given.args, dict(given.kwargs))) if is_single_number(t)]
        data = {m["value"].data_ptr() for m in sites if m["is_observed"] and torch.is_tensor(m["value"])}
        also = {id(t): t for t in single if t.data_ptr() not in data}
        found = (learned | also, learned) if also else (learned,)
        return [GenericNumbers(numbers.values()) for numbers in found if numbers]

    def _at(self, pair: Pair, numbers: GenericNumbers) -> Trial | None:
        """The same draws at these numbers; None where the program has other sites there, or does not take them."""
        with numbers, torch.no_grad():
            run = _scored(pair, self, self.values)
        return None if run is None else self._taken(pair, numbers, run)

    def _taken(self, pair: Pair, numbers: GenericNumbers, run: Run) -> Trial | None:
        """The trial of a run of the same draws at these numbers, if it has the same sites, and terms."""
        with numbers:
            scored = _has_terms(run)
        own = self.guide_trace, self.model_trace
        if not scored or any(a.nodes.keys() != b.nodes.keys() for a, b in zip(own, run.traces, strict=True)):
            return None
        shared = SharedRuns(pair, [(self.values, run)])
        return replace(self, numbers=numbers, guide_trace=run.traces[0], model_trace=run.traces[1], shared=shared)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _scored(pair: Pair, trial: Trial, values: Values) -> Run | None:
    """A run at these values, if it has terms there."""
    try:
        run = Run(*trace_pair(pair, trial.subsamples, values))
    except Exception:
        return None
    return run if _has_terms(run) else None


def _has_terms(run: Run) -> bool:
    """Whether a run has terms: numbers may be out of range, and values may be none that are drawn together."""
    try:
        _ = run.terms
    except Exception:
        return False
    return True


Look = TypeVar("Look", bound=Callable[..., Any])


def at_its_numbers(look: Look) -> Look:
    """Have a look, whose first arguments are a pair and its trial, run the pair with the numbers that the trial had."""

    @wraps(look)
    def at(pair: Pair, trial: Trial, *args: Any, **kwargs: Any) -> Any:
        with trial.numbers or nullcontext():
            return look(pair, trial, *args, **kwargs)

    return cast("Look", at)


def plain_trial(pair: Pair) -> Trial:
    """One run without a leading dim."""
    subsamples = KeepSubsamples()
    try:
        guide_trace, model_trace = trace_pair(pair, subsamples)
    except (ValueError, RuntimeError, IndexError) as error:
        _look_for_mismatch(pair, error)
        raise
    return trial_of(guide_trace, model_trace, subsamples)


def trial_of(guide_trace: Trace, model_trace: Trace, subsamples: KeepSubsamples) -> Trial:
    """That of these traces of a run without a leading dim, which drew these subsamples."""
    dims = [
        f.dim
        for t in (guide_trace, model_trace)
        for m in sample_sites(t).values()
        for f in plates_of(m)
        if f.dim is not None
    ]
    return Trial(guide_trace, model_trace, subsamples, -min(dims, default=0))


def names_of_guide(pair: Pair, runs: int = 16) -> set[str]:
    """Latent sites that the guide has in some of so many runs."""
    names: set[str] = set()
    for _ in range(runs):
        names |= latent_sites(poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)).keys()
    return names


def _look_for_mismatch(pair: Pair, error: Exception) -> None:
    """If guide and model run by themselves but their sites differ in shape, that is the error."""
    try:
        guide_trace = poutine.trace(pair.guide).get_trace(*pair.args, **pair.kwargs)
        model_trace = poutine.trace(pair.model).get_trace(*pair.args, **pair.kwargs)
    except Exception:
        return  # one of them does not run: what it raised is the error
    in_guide, in_model = latent_sites(guide_trace), latent_sites(model_trace)
    for name in in_model.keys() & sample_sites(guide_trace).keys() - in_guide.keys():
        raise SiteMatchError(
            f"Site {name!r} is observed in the guide but latent in the model, where it would have to be drawn. Observe "
            "it in the model too (pyro.condition), or use the data as a plain tensor in the guide."
        ) from error
    for name in in_guide.keys() & in_model.keys():
        try:
            _check_same_shape(name, in_guide[name], in_model[name])
        except SiteShapeError as mismatch:
            raise mismatch from error


def check_matched(guide_trace: Trace, model_trace: Trace) -> None:
    """Raise `SiteMatchError` for a site that this run of the guide has drawn and this run of the model does not have.

    A look at names alone, for every run: which sites there are may change with what was drawn.
    """
    for name, msg in latent_sites(guide_trace).items():
        seen = model_trace.nodes.get(name)
        if (seen is None or not is_latent(seen)) and not msg["infer"].get("is_auxiliary"):
            where = "is observed in the model" if seen is not None else "is not in the model"
            has = sorted(latent_sites(model_trace)) or "no latent sites"
            raise SiteMatchError(
                f"Site {name!r} is drawn in the guide but {where}, which has {has}. "
                'Take it out of the guide, or mark it infer={"is_auxiliary": True} if it is a helper of the guide.'
            )


def check_pair(trial: Trial) -> None:
    """Refuse a guide site that the model does not have, shapes that differ, and batch dims that no plate declares."""
    in_model, in_guide = latent_sites(trial.model_trace), latent_sites(trial.guide_trace)
    check_matched(trial.guide_trace, trial.model_trace)
    check_batch_dims(trial)
    for name in in_guide.keys() & in_model.keys():
        _check_same_shape(name, in_guide[name], in_model[name])
    seen = [n for n, m in sample_sites(trial.guide_trace).items() if is_random_observation(m)]
    if seen and not any(m["is_observed"] for m in sample_sites(trial.model_trace).values()):
        raise SettingError(
            f"The guide has observed sites ({', '.join(map(repr, seen[:4]))}) and the model has none: are the "
            "two swapped? The order is model, guide."
        )


def check_batch_dims(trial: Trial) -> None:
    """Raise `SiteShapeError` for a site with batch dims that no plate declares."""
    for trace, where in ((trial.guide_trace, "guide"), (trial.model_trace, "model")):
        for msg in sample_sites(trace).values():
            _check_batch_dims(msg, where)


def _check_batch_dims(msg: Any, where: str) -> None:
    shape = tuple(getattr(msg["fn"], "batch_shape", ()))
    declared = {f.dim for f in plates_of(msg) if f.dim is not None}
    stray = _stray(shape, declared)
    if stray and _stray(site_log_prob(msg).shape, declared):  # what is summed is the log-probability
        raise SiteShapeError(
            f"Site {msg['name']!r} of the {where} has batch shape {shape}, whose dim {stray[0]} (size "
            f"{shape[stray[0]]}) is in no plate; its plates are {sorted(p.name for p in plates_of(msg)) or 'none'}. "
            f"Put the site in a pyro.plate of size {shape[stray[0]]}, or make the dim part of the event with "
            f".to_event({-stray[0]})."
        )


def _stray(shape: Sequence[int], declared: Collection[int]) -> list[int]:
    return [d for d in range(-len(shape), 0) if shape[d] != 1 and d not in declared]


def _check_same_shape(name: str, guide_msg: Any, model_msg: Any) -> None:
    def shape(msg: Any) -> tuple[int, ...]:
        batch = tuple(msg["fn"].batch_shape)
        while batch and batch[0] == 1:
            batch = batch[1:]
        return batch

    g, m = guide_msg["fn"], model_msg["fn"]
    if tuple(g.event_shape) == tuple(m.event_shape):
        if shape(guide_msg) == shape(model_msg):
            return
        if model_msg["value"].shape == guide_msg["value"].shape and _as_wide(guide_msg, model_msg):
            return  # a batch shape that the value, and its log-probability, do not show
    plates = [sorted(p.name for p in plates_of(msg)) or "none" for msg in (guide_msg, model_msg)]
    raise SiteShapeError(
        f"Site {name!r} has batch shape {tuple(g.batch_shape)} and event shape {tuple(g.event_shape)} in the guide "
        f"(plates {plates[0]}), but {tuple(m.batch_shape)} and {tuple(m.event_shape)} in the model (plates "
        f"{plates[1]}). Put both in the same plates, with the same .to_event."
    )


def _as_wide(one: Any, other: Any) -> bool:
    try:
        return site_log_prob(one).shape == site_log_prob(other).shape
    except Exception:
        return False


def check_data(pair: Pair, trial: Trial) -> None:
    """Refuse observed values that are no tensors, of another shape than their distribution, outside of its support,
    empty, or that hold NaN which their distribution does not leave out by itself.

    A mask hides the value of a NaN term, but not its gradient (zero times NaN), if it has one.
    """
    for trace, where in ((trial.guide_trace, "guide"), (trial.model_trace, "model")):
        for msg in sample_sites(trace).values():
            wrong = wrong_observation(msg, where, pair, trial.score)
            if wrong is not None:
                raise wrong
    for msg in sample_sites(trial.model_trace).values():
        if not is_random_observation(msg) or not torch.is_tensor(msg["value"]):
            continue
        name, value = msg["name"], msg["value"]
        if value.numel() == 0:
            raise EmptyBatchError(
                f"Observed site {name!r} was given a value of shape {tuple(value.shape)}: the batch holds no data. "
                "Leave empty batches out."
            )
        if not value.is_floating_point() or msg["mask"] is False or not bool(value.isnan().any()):
            continue
        with on_trial(), torch.enable_grad():  # slopes are wanted, and the trial may have been without
            again = trace_pair(pair, trial.subsamples)[1].nodes.get(name, msg)
        if not _leaves_out(again):
            raise MissingDataError(
                f"The observed value of site {name!r} contains NaN ({int(value.isnan().sum())} of {value.numel()} "
                "numbers), of which its distribution makes no number. Drop the missing data, or fill them "
                "(torch.nan_to_num) and leave them out with poutine.mask: a mask alone does not keep NaN out of "
                "gradients."
            )


def _leaves_out(msg: Any) -> bool:
    """Whether a site's term, and its slopes, are numbers though its value holds NaN."""
    try:
        with torch.enable_grad():
            log_prob = torch.as_tensor(scale_and_mask(site_log_prob(msg), mask=msg["mask"]))
            leaves = leaf_parameters(log_prob.sum())
            slopes = torch.autograd.grad(log_prob.sum(), leaves, allow_unused=True, retain_graph=True) if leaves else ()
    except ValueError:
        return False
    return not any(bool(found.isnan().any()) for found in (log_prob, *slopes) if found is not None)


def warn_of_observations(pair: Pair, trial: Trial) -> None:
    """Warn that sites which the guide observes count no log q, and of the parameters that get no gradient for it."""
    observed = sample_sites(trial.guide_trace).keys() - guide_terms(trial.guide_trace).keys()
    if not observed:
        return
    with on_trial(), torch.enable_grad():
        traces = trace_pair(pair, trial.subsamples)
        alone = {id(leaf): leaf for name in observed for leaf in _leaves_of(traces[0].nodes[name])}
        others = [m for n, m in [*guide_terms(traces[0]).items(), *sample_sites(traces[1]).items()]]
        read = {id(leaf) for msg in others for leaf in _leaves_of(msg)}
    names = parameter_names(alone, {"guide": pair.guide, "model": pair.model})
    idle = sorted(names[key] for key in alone.keys() - read)
    sites = ", ".join(map(repr, sorted(observed)))
    warnings.warn(
        f"The guide observes {sites}: data, and no draw of the guide, so that log q leaves out "
        f"{'its term' if len(observed) == 1 else 'their terms'} under every estimator, and the loss is a bound (Pyro's "
        "Trace_ELBO subtracts such terms too, and may then lie above the evidence). "
        + (f"No other term reads {', '.join(idle)}, which get no gradient. " if idle else "")
        + "Use the data as plain tensors in the guide, or pyro.factor to weigh its draws.",
        stacklevel=3,
    )


def _leaves_of(msg: Any) -> list[Tensor]:
    """The parameters that a site's log-probability depends on."""
    return leaf_parameters(torch.as_tensor(site_log_prob(msg)).sum())


def value_of_attempt(site: Site, attempt: int) -> Tensor:
    """All elements at the first value, all at the last one, then values that go through the support.

    What an element is compared with may be a sum over all of them: the first two attempts differ in it. Of counts
    without a last value, draws.
    """
    number = torch.arange(math.prod(site.distribution.batch_shape))
    index = [0 * number, 0 * number - 1, number, number * (number + 1) // 2][attempt]
    try:
        return joint_values_at(site.distribution, index).reshape(site.distribution.shape())
    except NotImplementedError:
        return site.distribution.sample()


MOST_OTHERS = 8
"""So many values of other draws are gone through."""


def values_of_others(pair: Pair, trial: Trial, names: Collection[str]) -> list[dict[str, Tensor]]:
    """Values of the discrete sites beside the named ones, at which these are looked at: a draw may switch what it is
    that they join. The trial's own (no values here), all sites at each of their values, and, of several sites, two
    mixtures of these, as far as the program has terms at them. Of long programs the first and last values alone.
    """
    latent, values_there = trial.latent, trial.values
    others = [
        Site(m) for n, m in latent.items() if n not in names and family_of(m["fn"]) not in (None, Family.CONTINUOUS)
    ]
    if not others or trial.alone:
        return [{}]
    number = 2 if len(latent) > 100 else int(min(MOST_OTHERS, max(s.cardinality for s in others)))
    places = [[k if k < number - 1 else -1] * len(others) for k in range(number)]
    if len(others) > 1:
        mixed = torch.Generator().manual_seed(0)
        places += [torch.randint(number, (len(others),), generator=mixed).tolist() for _ in range(2)]
    found = [{s.name: values_there[s.name] for s in others}]
    for each in places:
        values = {s.name: _all_at(s, place) for s, place in zip(others, each, strict=True)}
        seen = any(all(torch.equal(v, known[n]) for n, v in values.items()) for known in found)
        if not seen and _scored(pair, trial, values_there | values) is not None:
            found.append(values)
    return [{}, *found[1:]]


def _all_at(site: Site, place: int) -> Tensor:
    """All elements of a site at the value of that place in its support; draws of a count without a last value."""
    try:
        index = torch.full((math.prod(site.distribution.batch_shape),), place)
        return joint_values_at(site.distribution, index).reshape(site.distribution.shape())
    except NotImplementedError:
        return site.distribution.sample()


def observed_constants(pair: Pair, trial: Trial, rows_run: Trace | None) -> list[str]:
    """Observed sites of the model whose values do not depend on latent draws: what a baseline may read.

    Told by the absence of a rows dim in `rows_run`; without such a run, by values that eight runs leave unchanged.
    """
    seen = {n: m["value"] for n, m in sample_sites(trial.model_trace).items() if is_random_observation(m)}
    names = [n for n, value in seen.items() if torch.is_tensor(value) and not value.requires_grad]
    if rows_run is not None:
        rowed = sample_sites(rows_run)

        def has_rows(name: str) -> bool:
            return rowed[name]["value"].dim() - rowed[name]["fn"].event_dim > trial.batch_dims

        return [n for n in names if n in rowed and not has_rows(n)]
    for _ in range(8):
        again = sample_sites(trace_pair(pair, trial.subsamples)[1])
        names = [n for n in names if n in again and torch.equal(again[n]["value"], seen[n])]
    return names
