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
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.inspection.apart import Keeping
from pyro_discrete.inspection.failed_runs import why_not_at_once
from pyro_discrete.inspection.trial import (
    Trial,
    at_its_numbers,
    check_rows,
    spread_values,
    unused_size,
    value_of_attempt,
    values_of_others,
)
from pyro_discrete.programs.dims import ROWS_PLATE, plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, random_state, set_random_state, trace_pair
from pyro_discrete.programs.sites import Site, hidden_log_prob, sample_sites, site_log_prob

__all__ = [
    "joined_elements",
    "joined_plates",
    "marked_trial",
    "why_not_over_values",
]


Traces = tuple[Trace, Trace]
"""Of the guide and the model."""


@at_its_numbers
@torch.no_grad()
def why_not_over_values(pair: Pair, trial: Trial, names: Collection[str]) -> str:
    """Why the program cannot be run with rows of values at the named sites alone; empty if it can.

    A row's terms have to be those of a run with the row's values by themselves. Other sites have one value each,
    several times another one.
    """
    if pair.guide_runs_model:  # it runs the model itself, with values of its own
        return check_rows(pair, trial, 1).reason
    rows = unused_size(trial)
    spread = spread_values(trial, rows, names)
    single = trial.values
    followed = trial.followed(pair, names, (0, -1 - trial.batch_dims))
    keeping = followed.of(ROWS_PLATE)

    def mixing() -> str:
        for others in [{}] if keeping is Keeping.APART else values_of_others(pair, trial, names):
            values = spread | others
            together = trace_pair(pair, trial.subsamples, values)
            few = 2 if others or len(trial.model_trace.nodes) > 200 else 5  # a long program is run less often
            few = 1 if keeping is Keeping.APART else few  # what hangs on the number of rows does so in each
            for row in range(min(rows, few)):
                own = {n: v[row].reshape(single[n].shape) if n in names else v for n, v in values.items()}
                alone = partial(trace_pair, pair, trial.subsamples, own)
                found = _mixing(together, alone, row, rows, trial.batch_dims)
                if found:
                    return found
        return ""

    try:
        words = (
            f"at site {followed.mixed.get(ROWS_PLATE)!r} a row's log-probability changes with the values in other rows"
        )
        return trial.mixing(pair, keeping, mixing, words)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        return why_not_at_once(error)


def _mixing(together: Traces, alone: Callable[[], Traces], row: int, rows: int, batch_dims: int) -> str:
    """What is wrong with a row: its terms have to be those of a run of it alone, unless another one differs, too."""
    runs = [alone()]
    for where, rowed in enumerate(together):
        sites = sample_sites(rowed)
        changed = sites.keys() ^ sample_sites(runs[0][where]).keys()
        for name, msg in sites.items() if not changed else ():
            expected = _term(runs[0][where].nodes[name])
            found = _row(_term(msg), row, rows, batch_dims)
            if found is not None and _equal(found, expected):
                hidden, alone_hidden = hidden_log_prob(msg), hidden_log_prob(runs[0][where].nodes[name])
                if hidden is None or alone_hidden is None:
                    continue
                found = _row(hidden, row, rows, batch_dims)
                if found is not None and _equal(found, alone_hidden):
                    continue
                return f"at site {name!r}, which is masked, a row's law changes with the values in other rows"
            if len(runs) == 1:
                runs.append(alone())
            changed = sites.keys() ^ sample_sites(runs[1][where]).keys()
            if changed:
                break
            if torch.equal(expected, _term(runs[1][where].nodes[name])):
                return f"at site {name!r} a row's log-probability changes with the values in other rows"
        if changed:
            return f"its sites change with their values ({', '.join(sorted(changed))})"
    return ""


def _term(msg: Any) -> Tensor:
    """A site's log-probability, with its mask's effect and scale: what of a value may reach it, reaches it here."""
    log_prob = site_log_prob(msg)
    for part in (msg["mask"], msg["scale"]):
        if torch.is_tensor(part):
            log_prob = log_prob * part
    return log_prob


def _row(term: Tensor, row: int, rows: int, batch_dims: int) -> Tensor | None:
    """One row of a term over all rows, or all of one that does not depend on them; None for one of another shape."""
    if term.dim() > batch_dims + 1:
        return None
    if term.dim() == batch_dims + 1:
        return term[row] if term.shape[0] == rows else term[0] if term.shape[0] == 1 else None
    return term


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Whether two terms are the same up to rounding; the first may lack dims along which it is constant."""
    try:
        found = found.expand(torch.broadcast_shapes(found.shape, expected.shape))
    except RuntimeError:
        return False
    if found.numel() != expected.numel():
        return False
    return torch.allclose(found.reshape(expected.shape), expected, rtol=1e-3, atol=1e-3, equal_nan=True)


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
def joined_plates(pair: Pair, trial: Trial, sites: Iterable[Site]) -> dict[str, str]:
    """The plates whose elements share terms: their names, and the first such term, in words.

    All sites of a plate are given other values at some of its elements: terms of the others have to stay as they were.
    Noise of the program's own (dropout) is the same in every run; a term that changes all the same shows nothing.
    """
    drawn = {s.name: s for s in sites}
    plates = {p for s in drawn.values() for p in s.plates if p.vectorized and p.size > 1}
    fixed = trial.values

    def run(others: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        set_random_state(start)
        return [sample_sites(trace) for trace in trace_pair(pair, trial.subsamples, {**fixed, **others, **values})]

    def look_at(plate: Any, group: Sequence[Site]) -> str:
        for others in values_of_others(pair, trial, [s.name for s in group]):
            joined = _joined_in(partial(run, others), plate, group, (0,) if others else (0, 2))
            if joined:
                return joined
        return ""

    found, start = {}, random_state()
    with on_trial():
        for plate in sorted(plates, key=lambda p: p.dim or 0):
            group = [s for s in drawn.values() if plate in s.plates]
            followed = trial.followed(pair, drawn)
            keeping = followed.of(plate.name)
            if keeping is Keeping.APART:
                continue
            words = f"the term of site {followed.mixed.get(plate.name)!r} joins elements of plate {plate.name!r}"
            joined = trial.mixing(pair, keeping, partial(look_at, plate, group), words)
            if joined:
                found[plate.name] = joined
    return found


def _joined_in(
    run: Callable[[Mapping[str, Tensor]], list[dict[str, Any]]],
    plate: Any,
    group: Sequence[Site],
    attempts: Sequence[int],
) -> str:
    """The first term that joins elements of a plate, of whose sites these are the discrete ones."""
    unsteady: set[tuple[int, str]] | None = None  # looked for where a term seems to join elements
    for first in attempts:
        one, other = ({s.name: value_of_attempt(s, first + k) for s in group} for k in (0, 1))
        ends = run(one), run(other)
        for moved in _halves(plate.size):
            given = {s.name: torch.where(_along(moved, plate, s), other[s.name], one[s.name]) for s in group}
            for where, sites_of in enumerate(zip(*ends, run(given), strict=True)):
                for name in _joined(*sites_of, plate, moved):
                    if unsteady is None:
                        unsteady = _differing(ends[0], run(one))
                    if (where, name) not in unsteady:
                        return f"the term of site {name!r} joins elements of plate {plate.name!r}"
    return ""


def _differing(runs: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Terms of guide (0) and model (1) that are not the same in two runs of the same values."""
    return {
        (where, name)
        for where, (sites, others) in enumerate(zip(runs, again, strict=True))
        for name, msg in sites.items()
        if name not in others or not torch.equal(_term(msg), _term(others[name]))
    }


def _halves(size: int) -> list[Tensor]:
    """Halves of a plate's elements: any two elements are in different ones of some, or in large plates most are."""
    if size <= 16:
        return [torch.arange(size) // 2**bit % 2 == 1 for bit in range((size - 1).bit_length())]
    return [torch.rand(size) < 0.5 for _ in range(4)]


def _along(moved: Tensor, plate: Any, site: Site) -> Tensor:
    """Which elements are moved, along the plate's dim of a value."""
    return moved.reshape(-1, *[1] * (-plate.dim - 1 + site.event_dim)).to(site.distribution.sample().device)


def _joined(
    one: Mapping[str, Any], other: Mapping[str, Any], mixed: Mapping[str, Any], plate: Any, moved: Tensor
) -> Iterator[str]:
    """The terms that are not, element by element, those of the runs that the elements' values are from."""
    if one.keys() != mixed.keys() or other.keys() != mixed.keys():
        return  # said where sites that change are refused
    for name, msg in mixed.items():
        if plate not in plates_of(msg):
            continue
        messages = one[name], other[name], msg
        if _mixes([_term(m) for m in messages], plate, moved) or _mixes(map(hidden_log_prob, messages), plate, moved):
            yield name


def _mixes(terms: Iterable[Tensor | None], plate: Any, moved: Tensor) -> bool:
    """Whether the last of three terms is not made of the elements of the first two; not so where there are none."""
    one, other, mixed = terms
    if one is None or other is None or mixed is None:
        return False
    shape = torch.broadcast_shapes(one.shape, other.shape, mixed.shape)
    if len(shape) < -plate.dim or shape[plate.dim] != len(moved):
        return False  # it has no elements to tell apart
    where = moved.reshape(-1, *[1] * (-plate.dim - 1)).to(one.device)
    expected = torch.where(where, other.expand(shape), one.expand(shape))
    return not torch.allclose(mixed.expand(shape), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
