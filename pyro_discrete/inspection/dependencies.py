"""Which cost terms a guide site can influence, where that is known for certain.

A trial run of the pair follows every draw through guide and model (`Provenance`), and further runs in which other
draws are changed must leave alone what is said not to depend on them. Where dependence could escape the first, or the
second contradicts it, nothing is known, and every site keeps its full cost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_discrete.errors import in_a_line
from pyro_discrete.families import Family
from pyro_discrete.inspection.provenance import Provenance, element_axis
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.inspection.trial_rows import RunOverRows, check_rows
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import (
    KeepSubsamples,
    Pair,
    on_trial,
    python_random_position,
    random_state,
    set_random_state,
    trace_pair,
)
from pyro_discrete.programs.sites import (
    Site,
    family_of,
    guide_terms,
    is_latent,
    is_observed_delta,
    latent_sites,
    masked_law,
    sample_sites,
    site_log_prob,
)

__all__ = [
    "UNKNOWN",
    "Dependencies",
    "MarkDraws",
    "Sources",
    "direct_dependencies",
    "direct_sources",
    "divergence_of",
    "find_dependencies",
    "reached_by",
    "terms_that_move",
    "why_joined",
]


Key = tuple[str, str]
"""("guide" or "model", site name)."""


Sources = Mapping[Key, frozenset[str]]


_ARGUMENT = "an argument"


CHECKED = 24
"""At most so many runs with changed draws."""


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What each term of guide and model is computed from: names of latent sites of the guide, itself included.

    - `terms`: for each site of guide and model the draws that its log-probability depends on, directly or through
      other draws. `parameters`: the same for its distribution, scale and mask alone, whatever its value is.
    - `elements`: for terms of sites with independent elements, below their event, the dim from the right whose entry i
      depends on the elements i alone of the discrete draws in it; where that is known.
    - `reason`: why nothing is known, empty where all is.
    - `plates`: names of plates whose elements share terms: a draw may change the terms of other elements too.

    A KL term (or entropy) in closed form is a term named `divergence_of(site)`.
    """

    terms: Sources = field(default_factory=dict)
    parameters: Sources = field(default_factory=dict)
    elements: Mapping[Key, int] = field(default_factory=dict)
    reason: str = ""
    plates: frozenset[str] = frozenset()
    _memory: dict[Any, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)
    _joined: dict[tuple[str, ...], Dependencies] = field(default_factory=dict, init=False, repr=False)
    _sharing: dict[frozenset[str], Dependencies] = field(default_factory=dict, init=False, repr=False)

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return not self.reason

    def describe(self) -> str:
        """What costs are made of, for the plan."""
        if self.known:
            return "each site's learning signal holds the terms that its draw can change, as a trial run showed"
        return (
            f"each site's learning signal holds all terms from its draw on, as dependence could escape: {self.reason}"
        )

    def fit(self, guide_sites: Collection[str], model_sites: Collection[str]) -> bool:
        """Whether they are about runs with these sites."""
        return self._sites == [*guide_sites, *model_sites]

    @property
    def whole(self) -> bool:
        """Whether it is known that every term depends on every draw of the guide."""
        drawn = frozenset[str]().union(*self.terms.values())
        return self.known and all(sources == drawn for sources in self.terms.values())

    @cached_property
    def _sites(self) -> list[str]:
        return [name for _, name in self.terms]

    def influences(self, site: str, term: Key) -> bool:
        """Whether a site's draw may change a term. True where that is not known."""
        sources = self.terms.get(term, self._divergences.get(term))
        return not self.known or sources is None or site in sources

    @cached_property
    def _divergences(self) -> dict[Key, frozenset[str]]:
        """What closed KL terms depend on: the parameters on both sides, or the guide's where the model has no such."""
        return {
            (side, divergence_of(name)): sources | self.parameters.get(("model", name), frozenset())
            for (where, name), sources in self.parameters.items()
            if where == "guide"
            for side in ("guide", "model")
        }

    def joined(self, members: Mapping[str, Collection[str]]) -> Dependencies:
        """The same, with new terms of the model, each computed from those of its members."""
        if not self.known or not members:
            return self
        key = tuple(members)
        if key not in self._joined:
            sources = {
                ("model", name): frozenset[str]().union(*(self.terms[("model", m)] for m in each))
                for name, each in members.items()
            }
            self._joined[key] = Dependencies(
                {**self.terms, **sources}, self.parameters, self.elements, plates=self.plates
            )
        return self._joined[key]

    def sharing(self, plates: frozenset[str]) -> Dependencies:
        """The same, with plates of these names whose elements share terms."""
        if plates <= self.plates:
            return self
        if plates not in self._sharing:
            self._sharing[plates] = replace(self, plates=self.plates | plates)
        return self._sharing[plates]

    def downstream(self, site: str, later: str) -> bool:
        """Whether a guide site's draw may change the distribution, and so the draw, of a later one."""
        return self.influences(site, ("guide", later))

    def influenced(self, site: str, in_model: bool, names: tuple[str, ...]) -> tuple[int, ...]:
        """Which of the terms of these names a site's draw may change, as indices."""
        key = (site, in_model, names)
        if key not in self._memory:
            where = "model" if in_model else "guide"
            self._memory[key] = tuple(i for i, name in enumerate(names) if self.influences(site, (where, name)))
        return self._memory[key]


def divergence_of(site: str) -> str:
    """The name of a site's KL term."""
    return f"KL of {site}"


UNKNOWN = Dependencies(reason="not looked for")


class MarkDraws(Messenger):
    """Marks latent draws as they are made, or met again in the model.

    And, as constants, the numbers of a whole plate's elements, which a loop over the plate reads.
    """

    def __init__(self, provenance: Provenance, given: Collection[str] = ()) -> None:
        super().__init__()
        self.provenance: Provenance = provenance
        self.given: Collection[str] = given
        self.chosen: bool = False

    def _pyro_sample(self, msg: Any) -> None:
        self.chosen = msg["value"] is not None  # a plate's elements, by its `subsample`

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            size, numbers = msg["fn"].size, msg["value"]
            with self.provenance.unwatched():
                whole = torch.is_tensor(numbers) and torch.equal(numbers, torch.arange(size, device=numbers.device))
            if whole and not self.chosen:
                self.provenance.mark_constant(numbers)
        elif (is_latent(msg) or msg["name"] in self.given) and isinstance(msg["value"], Tensor):
            discrete = family_of(msg["fn"]) not in (None, Family.CONTINUOUS)
            self.provenance.mark(msg["value"], [msg["name"]], element_axis(msg["fn"]) if discrete else None)


def find_dependencies(pair: Pair, numbers: Collection[Tensor] = ()) -> Dependencies:
    """Run the pair and say what depends on what, or why that is not known. Leaves random states as they were.

    Values of `numbers`, arguments of the pair, must not be read by Python, which could then decide by them.
    """
    with on_trial(), pyro.validation_enabled(False):
        before, subsamples = python_random_position(), KeepSubsamples()
        provenance = Provenance()
        try:
            with provenance, MarkDraws(provenance):
                for number in numbers:
                    provenance.mark(number, [_ARGUMENT])
                traces = trace_pair(pair, subsamples)
                terms, parameters = _sources(provenance, traces)
                elements = _elements(provenance, traces)
        except Exception as error:
            return Dependencies(reason=f"a trial run failed: {in_a_line(error)}")
        if provenance.escape:
            return Dependencies(reason=provenance.escape)
        if before != python_random_position():
            return Dependencies(reason="the program draws random numbers of Python's or NumPy's")
        found = Dependencies(terms, parameters, elements)
        contradiction = _contradiction(pair, subsamples, traces, found)
        return Dependencies(reason=contradiction) if contradiction else found


def reached_by(over: RunOverRows, site: str) -> Dependencies | None:
    """That every term depends on the only draw of a guide, if the operations of a run over its values show it; else
    None.

    Its own terms in guide and model are of its value, whatever that is. A run that follows the draw could find no more;
    a first call of a belief network takes 0.85 of the time without it.
    """
    known = over.followed
    if known.reason or not all(names for (_, name), names in known.reached.items() if name != site):
        return None
    sources = {(("guide", "model")[where], name): frozenset({site}) for where, name in known.reached}
    return Dependencies(sources, sources)


def direct_sources(pair: Pair, trial: Trial) -> Sources | None:
    """What each term is computed from if a draw counts for itself alone, not for those that it was drawn given.

    None where that is not known.
    """
    values = {n: m["value"].detach().clone() for n, m in latent_sites(trial.guide_trace).items()}
    found = direct_dependencies(pair, trial.subsamples, values)
    return found.terms if found.known else None


def direct_dependencies(
    pair: Pair,
    subsamples: KeepSubsamples,
    values: Mapping[str, Tensor],
    also: Callable[[Provenance], AbstractContextManager[Any]] = nullcontext,
) -> Dependencies:
    """What each term is computed from in a run at these values, each of which counts for itself alone.

    `also`: what is to be entered within the run that follows them, given that. What could be followed is there even
    where the `reason` says that something could not.
    """
    with on_trial(), pyro.validation_enabled(False):
        provenance = Provenance()
        try:
            with provenance, also(provenance), MarkDraws(provenance):
                terms, _ = _sources(provenance, trace_pair(pair, subsamples, values))
        except Exception as error:  # it failed as the run for all sources would
            return Dependencies(reason=f"a trial run failed: {in_a_line(error)}")
    return Dependencies(terms, reason=provenance.escape)


def terms_that_move(
    pair: Pair, subsamples: KeepSubsamples, values: Mapping[str, Tensor], sites: Mapping[str, Any]
) -> dict[str, set[Key]]:
    """Of each of these discrete sites, terms that another value of it changes while all other draws are held.

    There may be more: a run with each other value is not made. Empty where a run fails.
    """
    found: dict[str, set[Key]] = {}
    with on_trial(), pyro.validation_enabled(False):
        start = random_state()
        try:
            before = _log_probs(pair, subsamples, values, start)
            for name, msg in sites.items():
                again = _log_probs(pair, subsamples, {**values, name: _rotated(Site(msg), values[name])}, start)
                found[name] = {k for k in before.keys() & again.keys() if not _same({k: before[k]}, {k: again[k]})}
        except Exception:  # of values that are never drawn, perhaps
            return {}
    return found


def _sites(traces: tuple[Trace, Trace]) -> Iterator[tuple[Key, Any]]:
    for where, trace in zip(("guide", "model"), traces, strict=True):
        for name, msg in sample_sites(trace).items():
            yield (where, name), msg


def _sources(provenance: Provenance, traces: tuple[Trace, Trace]) -> tuple[Sources, Sources]:
    terms, parameters = {}, {}
    for key, msg in _sites(traces):
        with provenance.unwatched():
            clean = msg["value"].detach().clone() if isinstance(msg["value"], Tensor) else msg["value"]
        log_prob = msg["fn"].log_prob(clean, *msg["args"], **msg["kwargs"])
        law = masked_law(msg)
        drawn = None if law is None else law.log_prob(clean)
        parameters[key] = provenance.of(log_prob, drawn, msg["scale"], msg["mask"])
        terms[key] = parameters[key] | provenance.of(msg["value"])
    return terms, parameters


def _elements(provenance: Provenance, traces: tuple[Trace, Trace]) -> dict[Key, int]:
    """Where the terms of sites with independent elements keep the draws' elements apart."""
    found = {}
    for key, msg in _sites(traces):
        fn = msg["fn"]
        weighed = provenance.of(msg["scale"], msg["mask"])  # these are of all of the site's elements
        if isinstance(fn, Independent) and isinstance(msg["value"], Tensor) and not weighed:
            log_prob = fn.base_dist.log_prob(msg["value"])
            axis = provenance.axis_of(log_prob)
            if axis is not None and -axis <= fn.reinterpreted_batch_ndims:
                found[key] = axis
    return found


def _contradiction(pair: Pair, subsamples: KeepSubsamples, traces: tuple[Trace, Trace], found: Dependencies) -> str:
    """Change draws, hold the others, and see that no term changes which does not depend on them; empty if so.

    Where every term depends on every draw, nothing could be contradicted, and nothing is run.
    """
    discrete = {
        n: Site(m) for n, m in latent_sites(traces[0]).items() if Site(m).family not in (None, Family.CONTINUOUS)
    }
    values = {n: m["value"] for n, m in latent_sites(traces[0]).items()}
    changed = [frozenset(discrete) - sources for sources in dict.fromkeys(found.terms.values())]
    changed = [names for names in dict.fromkeys(changed) if names]
    if not changed:
        return ""
    if len(changed) > CHECKED:
        changed = _pooled(list(discrete), CHECKED)
    start = random_state()
    try:
        reference = _log_probs(pair, subsamples, values, start)
        for names in changed:
            others = {n: _rotated(discrete[n], values[n]) for n in discrete if n in names}
            again = _log_probs(pair, subsamples, values | others, start)
            unmoved = {k: v for k, v in reference.items() if not names & found.terms[k]}
            if again.keys() != reference.keys() or not _same(unmoved, {k: again[k] for k in unmoved}):
                if not _same(reference, _log_probs(pair, subsamples, values, start)):
                    return "its log-probabilities change from run to run though all draws are held"
                return f"terms change with draws that they were not seen to use ({', '.join(sorted(names)[:3])})"
    except Exception as error:
        return f"a run with other draws failed: {in_a_line(error)}"
    return ""


def _pooled(names: list[str], runs: int) -> list[frozenset[str]]:
    """Sets of a third of the names each: too many pairs to look at one by one."""
    draw = random.Random(0)
    return [frozenset(draw.sample(names, max(1, len(names) // 3))) for _ in range(runs)]


def _log_probs(pair: Pair, subsamples: KeepSubsamples, values: Mapping[str, Tensor], start: Any) -> dict[Key, Tensor]:
    set_random_state(start)  # noise of the program's own is to be the same in every run
    with torch.no_grad():
        traces = trace_pair(pair, subsamples, values)
        return {k: site_log_prob(m) for k, m in _sites(traces)}


def _same(one: Mapping[Key, Tensor], other: Mapping[Key, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        v.shape == other[k].shape and bool(torch.isclose(v, other[k], rtol=1e-6, atol=0, equal_nan=True).all())
        for k, v in one.items()
    )


def _rotated(site: Site, value: Tensor) -> Tensor:
    """Another value of the support for every element, as far as there is one to be had."""
    rotate: dict[Family | None, Callable[[], Tensor]] = {
        Family.BERNOULLI: lambda: 1 - value,
        Family.CATEGORICAL: lambda: (value + 1) % site.logits.shape[-1],
        Family.ONE_HOT: lambda: value.roll(1, -1),
    }
    if site.family in rotate:
        return rotate[site.family]()
    return site.distribution.sample()


def why_joined(pair: Pair, trial: Trial, known: Dependencies) -> str:
    """Why the guide's discrete sites cannot be summed over element by element; empty if they can."""
    if pair.guide_runs_model:
        return "the guide runs the model itself"
    sites = {n: Site(m) for n, m in latent_sites(trial.guide_trace).items()}
    discrete = [s for s in sites.values() if s.family not in (None, Family.CONTINUOUS)]
    reason = _why_not_these(discrete, sites.values(), trial) or _why_not_terms(discrete, trial, known)
    return reason or check_rows(pair, trial).reason


def _why_not_these(discrete: Iterable[Site], every: Iterable[Site], trial: Trial) -> str:
    for site in every:
        if site.family is Family.CONTINUOUS:
            return f"site {site.name!r} is continuous and not reparameterised"
    for site in discrete:
        if element_axis(site.distribution) is None or not math.isfinite(site.cardinality):
            return f"site {site.name!r} is not of several elements with finite support, made one event by .to_event(1)"
    alone = latent_sites(trial.model_trace).keys() - latent_sites(trial.guide_trace).keys()
    return f"site {min(alone)!r} is in the model alone" if alone else ""


def _why_not_terms(discrete: Iterable[Site], trial: Trial, known: Dependencies) -> str:
    if not known.known:
        return f"dependence could escape: {known.reason}"
    plates = {s.name: {p for p in s.plates if p.vectorized} for s in discrete}
    for where, trace in (("guide", trial.guide_trace), ("model", trial.model_trace)):
        for name, msg in (guide_terms(trace) if where == "guide" else sample_sites(trace)).items():
            moving = [s for s in plates if known.influences(s, (where, name))]
            if where == "guide" and msg["is_observed"]:
                return f"{name!r} of the guide is no draw"
            if not moving or is_observed_delta(msg):
                continue
            if where == "guide" and moving != [name]:
                return f"site {name!r} of the guide depends on {moving[0]!r}"
            if len(moving) > 1:
                return f"the term of site {name!r} joins {' and '.join(map(repr, moving))}"
            if (where, name) not in known.elements:
                return f"the term of site {name!r} may join the elements of {moving[0]!r}"
            if not plates[moving[0]] <= plates_of(msg):
                return f"site {name!r} outside a plate depends on {moving[0]!r} inside it"
    return ""
