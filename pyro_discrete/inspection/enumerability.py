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

from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.inspection.failed_runs import why_not_at_once
from pyro_discrete.inspection.trial import (
    Run,
    SiteTerm,
    Trial,
    Values,
    at_its_numbers,
    value_of_attempt,
    values_of_others,
)
from pyro_discrete.inspection.trial_rows import (
    RunOverRows,
    check_rows,
    close,
    halves,
    plates_inside,
    run_over_rows,
    where_moved,
)
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, random_state, set_random_state, trace_pair
from pyro_discrete.programs.sites import Site, sample_sites, site_log_prob

__all__ = [
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
        return check_rows(pair, trial, 1).reason
    try:
        for others in values_of_others(pair, trial, names):
            mixing = run_over_rows(pair, trial, names, others).mixing(few=bool(others))
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


def joined_elements(pair: Pair, trial: Trial, sites: Iterable[Site]) -> str:
    """A term in a plate that the values of other elements of the plate reach, as far as a few values show; or nothing.

    A plate's elements cannot be summed over by themselves where this is not so.
    """
    return next(iter(joined_plates(pair, trial, sites).values()), "")


@at_its_numbers
@torch.no_grad()
def joined_plates(pair: Pair, trial: Trial, sites: Iterable[Site], under_plate: bool = False) -> dict[str, str]:
    """The plates whose elements share terms: their names, and the first such term, in words.

    All sites of a plate are given other values at some of its elements: terms of the others have to stay as they were.
    That is seen in rows of one run, `under_plate` if there are only these sites and rows will be, or else in runs of
    their own. Noise of the program's own (dropout) is the same in each of these; a term that changes all the same shows
    nothing.
    """
    drawn = {s.name: s for s in sites}
    plates, fixed = plates_inside(drawn.values()), trial.values
    if not plates:
        return {}

    def run(others: Values, values: Values) -> list[dict[str, SiteTerm]]:
        nonlocal start
        if start is None:
            start = random_state()
        set_random_state(start)
        return Run(*trace_pair(pair, trial.subsamples, {**fixed, **others, **values})).terms

    found, start = {}, None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # what is drawn after is as without
        over = _keeping_rows_apart(pair, trial, drawn, under_plate)
        for plate in plates:
            group = [s for s in drawn.values() if plate in s.plates]
            for others in values_of_others(pair, trial, [s.name for s in group]):
                if over is not None and not others:
                    joined = over.joined(plate)
                else:
                    joined = _joined_in(partial(run, others), plate, group, (0,) if others else (0, 2))
                if joined:
                    found[plate.name] = joined
                    break
    return found


def _keeping_rows_apart(pair: Pair, trial: Trial, drawn: Mapping[str, Site], under_plate: bool) -> RunOverRows | None:
    """A run over rows that tell plate elements apart; None where rows do not show what runs by themselves do."""
    if pair.guide_runs_model:
        return None
    names = None if under_plate and drawn.keys() == trial.values.keys() else drawn.keys()
    try:
        over = run_over_rows(pair, trial, names, swapped=drawn.values())
        return over if not over.mixing() and over.steady else None
    except Exception:  # runs by themselves say what it is
        return None


def _joined_in(
    run: Callable[[Values], list[dict[str, SiteTerm]]], plate: Any, group: Sequence[Site], attempts: Sequence[int]
) -> str:
    """The first term that joins elements of a plate, of whose sites these are the discrete ones."""
    unsteady: set[tuple[int, str]] | None = None  # looked for where a term seems to join elements
    for first in attempts:
        one, other = ({s.name: value_of_attempt(s, first + k) for s in group} for k in (0, 1))
        ends = run(one), run(other)
        for moved in halves(plate.size):
            given = {
                s.name: torch.where(
                    where_moved(moved, plate.dim, s.event_dim).to(one[s.name].device), other[s.name], one[s.name]
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
    expected = torch.where(where_moved(moved, plate.dim, 0).to(one.device), other.expand(shape), one.expand(shape))
    return not close(mixed.expand(shape), expected, 1e-4)
