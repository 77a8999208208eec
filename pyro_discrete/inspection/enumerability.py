"""Whether discrete sites can be enumerated in dims on the left: programs that keep values, and plate elements, apart.

Enumerated values fill a dim left of all plates at the sites that are summed over, and at these alone. That gives each
value's own terms if the program broadcasts; and an element's terms may be weighed by the probability of the element's
own value if no other element's reaches them. Both are tried here, with rows and elements of differing values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, why_not_at_once
from pyro_discrete.inspection.apart import Keeping
from pyro_discrete.inspection.trial import (
    Run,
    SiteTerm,
    Trial,
    Values,
    at_its_numbers,
    value_of_attempt,
    values_of_others,
)
from pyro_discrete.inspection.trial_rows import ENDS, check_rows, close, followed, run_over_rows
from pyro_discrete.programs.dims import ROWS_PLATE, plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, random_state, set_random_state, trace_pair
from pyro_discrete.programs.sites import Site, hidden_log_prob, sample_sites, site_log_prob, weighed_log_prob

__all__ = [
    "crossing_site",
    "joined_elements",
    "joined_plates",
    "marked_trial",
    "why_not_over_values",
]


@at_its_numbers
@torch.no_grad()
def why_not_over_values(pair: Pair, trial: Trial, names: Collection[str]) -> str:
    """Why the program cannot be run with rows of values at the named sites alone; empty if it can.

    A row's terms have to be those of a run with the row's values by themselves. Other sites have one value each,
    several times another one.
    """
    if pair.guide_runs_model:  # it runs the model itself, with values of its own
        return check_rows(pair, trial).reason
    try:
        over = run_over_rows(pair, trial, names)
        if over.mixing or over.followed.of(ROWS_PLATE) is Keeping.APART:
            return over.mixing
        for others in values_of_others(pair, trial, names)[1:]:
            mixing = run_over_rows(pair, trial, names, others).mixing_of(ENDS)
            if mixing:
                return mixing
    except DiscreteInferenceError:
        raise
    except Exception as error:
        return why_not_at_once(error)
    return ""


@torch.no_grad()
def marked_trial(pair: Pair, max_plate_nesting: float) -> Trial | None:
    """A trial under enumeration of the sites marked `infer={"enumerate": "parallel"}`, where a program runs so.

    Some programs read a draw by the shape that its enumeration gives it, and cannot be run on single values.
    """
    nestings = range(5) if max_plate_nesting == math.inf else [int(max_plate_nesting)]
    for nesting in nestings:
        subsamples = KeepSubsamples()
        try:
            with subsamples:
                guide = EnumMessenger(first_available_dim=-1 - nesting)(pair.guide)
                guide_trace = poutine.trace(guide).get_trace(*pair.args, **pair.kwargs)
                model = poutine.replay(EnumMessenger()(pair.model), trace=guide_trace)
                model_trace = poutine.trace(model).get_trace(*pair.args, **pair.kwargs)
                for trace in (guide_trace, model_trace):
                    trace.compute_log_prob()
        except Exception:
            continue
        sites = [*sample_sites(guide_trace).values(), *sample_sites(model_trace).values()]
        deepest = max((-f.dim for m in sites for f in m["cond_indep_stack"] if f.dim is not None), default=0)
        if any(_is_too_wide(m, sites) for m in sites):
            continue
        if deepest <= nesting and any(m["infer"].get("_enumerate_dim") is not None for m in sites):
            return Trial(guide_trace, model_trace, subsamples, nesting)
    return None


def _is_too_wide(msg: Any, sites: Iterable[Any]) -> bool:
    """Whether a term has a dim of a size that neither a plate around it nor an enumerated site's values have."""
    sizes = {f.dim: {f.size} for f in plates_of(msg) if f.dim is not None}
    for other in sites:
        dim = other["infer"].get("_enumerate_dim")
        if dim is not None:
            sizes.setdefault(dim, set()).add(other["value"].shape[dim - other["fn"].event_dim])
    shape = site_log_prob(msg).shape
    return any(size != 1 and size not in sizes.get(d, ()) for d, size in enumerate(shape, start=-len(shape)))


@at_its_numbers
@torch.no_grad()
def crossing_site(pair: Pair, trial: Trial, sites: Iterable[Site]) -> tuple[str, Site] | None:
    """A site outside a plate that depends on one of `sites` inside it: by the operations of a run or, where these could
    not be followed, as far as other values of them show.

    In the guide or the model. Sites of the same plates are given other values together, so that a long program is run
    few times; and a second time only where a term has changed, to see whether it does by itself.
    """
    own = sample_sites(trial.guide_trace), sample_sites(trial.model_trace)
    fixed = trial.values
    groups: dict[frozenset[Any], list[Site]] = {}
    every = {s.name: s for s in sites}
    for site in every.values():
        plates = frozenset(p for p in site.plates if p.vectorized)
        if plates:
            groups.setdefault(plates, []).append(site)
    for plates, group in groups.items():
        outside = [_after(nodes, group, plates, where) for where, nodes in enumerate(own)]
        names = [s.name for s in group]
        if any(outside):
            known = followed(pair, trial, every)
            outside = [[n for n in each if known.reaches(names, where, n)] for where, each in enumerate(outside)]
            if any(outside) and not known.reason:
                return next(name for each in outside for name in each), group[0]
        if not any(outside):
            continue
        for others in values_of_others(pair, trial, names):
            around = fixed | others
            traces = [sample_sites(t) for t in trace_pair(pair, trial.subsamples, around)] if others else own
            crossed = _crossed(pair, trial, traces, outside, around, group, range(2 if others else 4))
            if crossed:
                return crossed, group[0]
    return None


def _crossed(
    pair: Pair,
    trial: Trial,
    traces: Sequence[Mapping[str, Any]],
    outside: Sequence[Sequence[str]],
    fixed: Mapping[str, Tensor],
    group: Sequence[Site],
    attempts: Iterable[int],
) -> str:
    """The first of the sites outside whose term, or being there, hangs on the values of a group; the rest is held."""
    for attempt in attempts:
        values = {**fixed, **{s.name: value_of_attempt(s, attempt) for s in group}}
        once = [sample_sites(trace) for trace in trace_pair(pair, trial.subsamples, values)]
        changed = [
            (where, name)
            for where, names in enumerate(outside)
            for name in names
            if (name in once[where]) != (name in traces[where])
            or (name in once[where] and not _same_terms(once[where][name], traces[where][name]))
        ]
        if not changed:
            continue
        again = [sample_sites(trace) for trace in trace_pair(pair, trial.subsamples, values)]
        for where, name in changed:
            if name not in once[where] or name not in again[where] or name not in traces[where]:
                return name
            if _same_terms(once[where][name], again[where][name]):  # else it has noise of its own, and shows nothing
                return name
    return ""


def _after(nodes: Mapping[str, Any], group: Iterable[Site], plates: frozenset[Any], in_model: int) -> list[str]:
    """Sites after the first one of a group, not in all of its plates; all of the model's, if the guide alone has it."""
    order = {name: i for i, name in enumerate(nodes)}
    first = min((order.get(s.name, -1 if in_model else len(order)) for s in group), default=len(order))
    return [n for n, i in order.items() if i > first and not plates <= plates_of(nodes[n])]


def _same_terms(msg: Any, other: Any) -> bool:
    hidden, others = hidden_log_prob(msg), hidden_log_prob(other)
    if hidden is not None and others is not None and not _same(hidden, others):
        return False
    return _same(weighed_log_prob(msg), weighed_log_prob(other))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def joined_elements(pair: Pair, trial: Trial, sites: Iterable[Site]) -> str:
    """A term in a plate that the values of other elements of the plate reach, as far as a few values show; or nothing.

    A plate's elements cannot be summed over by themselves where this is not so.
    """
    return next(iter(joined_plates(pair, trial, sites).values()), "")


@at_its_numbers
@torch.no_grad()
def joined_plates(pair: Pair, trial: Trial, sites: Iterable[Site], under_plate: bool = False) -> dict[str, str]:
    """The plates whose elements share terms: their names, and the first such term, in words.

    The operations of a run tell; where they do not, all sites of a plate are given other values at some of its
    elements: terms of the others have to stay as they were. Noise of the program's own (dropout) is the same in each
    run; a term that changes all the same shows nothing. `under_plate`: whether rows will be (`followed`).
    """
    drawn = {s.name: s for s in sites}
    plates, fixed = _plates_inside(drawn.values()), trial.values
    if not plates:
        return {}

    def run(others: Values, values: Values) -> list[dict[str, SiteTerm]]:
        set_random_state(start)
        return Run(*trace_pair(pair, trial.subsamples, {**fixed, **others, **values})).terms

    def look_at(plate: Any, group: Sequence[Site]) -> str:
        for others in values_of_others(pair, trial, [s.name for s in group]):
            joined = _joined_in(partial(run, others), plate, group, (0,) if others else (0, 2))
            if joined:
                return joined
        return ""

    found = {}
    known = followed(pair, trial, drawn, under_plate)
    unsettled = [plate for plate in plates if known.of(plate.name) is not Keeping.APART]
    if not unsettled:
        return {}
    with on_trial():
        start = random_state()
        for plate in unsettled:
            look = partial(look_at, plate, [s for s in drawn.values() if plate in s.plates])
            words = f"the term of site {known.mixed.get(plate.name)!r} joins elements of plate {plate.name!r}"
            joined = trial.mixing(pair, known.of(plate.name), look, look, words)
            found |= {plate.name: joined} if joined else {}
    return found


def _plates_inside(sites: Iterable[Site]) -> list[Any]:
    """The plates of sites that have several elements, from the outermost on."""
    plates = {p for s in sites for p in s.plates if p.vectorized and p.size > 1}
    return sorted(plates, key=lambda p: p.dim or 0)


def _halves(size: int) -> list[Tensor]:
    """Halves of a plate's elements: any two elements are in different ones of some, or in large plates most are."""
    if size <= 16:
        return [torch.arange(size) // 2**bit % 2 == 1 for bit in range((size - 1).bit_length())]
    return [torch.rand(size) < 0.5 for _ in range(4)]


def _where_moved(moved: Tensor, dim: int, event_dim: int) -> Tensor:
    """Which elements are moved, along a plate's dim of a value."""
    return moved.reshape(-1, *[1] * (-dim - 1 + event_dim))


def _joined_in(
    run: Callable[[Values], list[dict[str, SiteTerm]]], plate: Any, group: Sequence[Site], attempts: Sequence[int]
) -> str:
    """The first term that joins elements of a plate, of whose sites these are the discrete ones."""
    unsteady: set[tuple[int, str]] | None = None  # looked for where a term seems to join elements
    for first in attempts:
        one, other = ({s.name: value_of_attempt(s, first + k) for s in group} for k in (0, 1))
        ends = run(one), run(other)
        for moved in _halves(plate.size):
            given = {
                s.name: torch.where(
                    _where_moved(moved, plate.dim, s.event_dim).to(one[s.name].device), other[s.name], one[s.name]
                )
                for s in group
            }
            for where, terms in enumerate(zip(*ends, run(given), strict=True)):
                for name in _joined(*terms, plate, moved):
                    if unsteady is None:
                        unsteady = _differing(ends[0], run(one))
                    if (where, name) not in unsteady:
                        return f"the term of site {name!r} joins elements of plate {plate.name!r}"
    return ""


def _differing(
    terms: Sequence[Mapping[str, SiteTerm]], again: Sequence[Mapping[str, SiteTerm]]
) -> set[tuple[int, str]]:
    """Terms of guide (0) and model (1) that are not the same in two runs of the same values."""
    return {
        (where, name)
        for where, (sites, others) in enumerate(zip(terms, again, strict=True))
        for name, (_, term, _) in sites.items()
        if name not in others or not torch.equal(term, others[name].term)
    }


def _joined(
    one: Mapping[str, SiteTerm], other: Mapping[str, SiteTerm], mixed: Mapping[str, SiteTerm], plate: Any, moved: Tensor
) -> Iterator[str]:
    """The terms that are not, element by element, those of the runs that the elements' values are from."""
    if one.keys() != mixed.keys() or other.keys() != mixed.keys():
        return  # said where sites that change are refused
    for name, (msg, *terms) in mixed.items():
        if plate in plates_of(msg):
            alike = zip(one[name][1:], other[name][1:], terms, strict=True)
            if any(_mixes(each, plate, moved) for each in alike):
                yield name


def _mixes(terms: Iterable[Tensor | None], plate: Any, moved: Tensor) -> bool:
    """Whether the last of three terms is not made of the elements of the first two; not so where there are none."""
    one, other, mixed = terms
    if one is None or other is None or mixed is None:
        return False
    shape = torch.broadcast_shapes(one.shape, other.shape, mixed.shape)
    if len(shape) < -plate.dim or shape[plate.dim] != len(moved):
        return False  # it has no elements to tell apart
    expected = torch.where(_where_moved(moved, plate.dim, 0).to(one.device), other.expand(shape), one.expand(shape))
    return not close(mixed.expand(shape), expected, 1e-4)
