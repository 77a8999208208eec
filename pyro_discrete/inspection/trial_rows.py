"""Trial runs over rows of values: whether a program keeps these apart, and what each row's terms are.

One run over rows stands for a run of each of them, if it gives each row's own terms; rows that are run by themselves
show whether it does. It tells whether a program takes rows, whether elements of a plate share terms, and which terms
move with a draw: looks at one trial share it, and runs of single values. With that a first call of a belief network
takes nine later steps in the place of fourteen, one of a mixture seven and a half in the place of fifteen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, SiteShapeError
from pyro_discrete.families import Family
from pyro_discrete.inspection.failed_runs import why_not_at_once
from pyro_discrete.inspection.trial import Run, Trial, Values, at_its_numbers
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair, random_position, trace_pair
from pyro_discrete.programs.sites import (
    Site,
    base_distribution,
    cardinality,
    family_of,
    latent_sites,
    sample_sites,
    values_to_try,
)

__all__ = [
    "RowsVerdict",
    "RunOverRows",
    "check_rows",
    "close",
    "halves",
    "plates_inside",
    "run_over_rows",
    "spread_values",
    "unused_size",
    "where_moved",
]


TRIAL_ROWS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


FIRST, LAST, OWN, ONE, OTHER = FIRST_ROWS = range(5)
"""What the first rows hold: the first value throughout, the last one, the trial's, and two times draws."""


ALONE = (FIRST, LAST, OWN, ONE)
"""Rows that are run by themselves; the trial is such a run of its own."""


MOST_NUMBERS = 1 << 25
"""Where a program has more numbers in all rows, none are for plate elements."""


RUNS_AGAIN = 3
"""So many runs of a row alone have to be alike before it is no noise that sets its terms apart."""


@dataclass(frozen=True)
class Swap:
    """Rows that tell elements of a plate apart: two with values of all sites inside, and mixes of both.

    `mixed`: the rows of mixes, and which elements have the values of `other` there, where the rest has those of `one`.
    """

    plate: Any
    one: int
    other: int
    mixed: Mapping[int, Tensor]


class RunOverRows:
    """A run with a row for each of several runs, and what it shows.

    `swaps`: the rows that tell plate elements apart. `steady`: whether it has such, nothing was drawn, and no term has
    been seen to change by itself.
    """

    def __init__(self, pair: Pair, trial: Trial, rows: int, values: Values, plate: bool, swaps: Sequence[Swap]) -> None:
        self._pair, self._trial = pair, trial
        self.rows: int = rows
        self.swaps: Sequence[Swap] = swaps
        before = random_position() if swaps else ()
        with torch.no_grad():
            over = (rows, -1 - trial.batch_dims) if plate else None
            self.run: Run = Run(*trace_pair(pair, trial.subsamples, values, over))
        self.steady: bool = bool(swaps) and before == random_position()
        self._found: dict[int, str] = {}

    @torch.no_grad()
    def mixing(self, few: bool = False) -> str:
        """What is wrong with rows: their terms have to be those of runs of them alone; empty if nothing is.

        `few`: two rows are run alone, as of a long program.
        """
        for row in (FIRST, LAST) if few or self._trial.long else ALONE:
            if row not in self._found:
                self._found[row] = self._mixing(row)
            if self._found[row]:
                return self._found[row]
        return ""

    def _mixing(self, row: int) -> str:
        """The same of one row. A term at which other runs of it differ, too, shows nothing: the program has noise of
        its own there. That is looked for where the first run differs."""
        values = self._values_of(row)
        alone = self._trial.at(self._pair, values)
        changed = self._changed(alone)
        if changed or self._agrees(row, alone):
            return changed
        again: list[Run] = []
        for where, sites in enumerate(self.run.terms):
            for name, (_, term, hidden) in sites.items():
                expected = alone.terms[where][name]
                if _equal(self._own(term, row), expected.term):
                    if hidden is None or expected.hidden is None or _equal(self._own(hidden, row), expected.hidden):
                        continue
                    return f"at site {name!r}, which is masked, a row's law changes with the values in other rows"
                self.steady = False
                while len(again) < RUNS_AGAIN and not any(self._changed(run) for run in again):
                    again.append(self._trial.at(self._pair, values, anew=True))
                changed = next(filter(None, map(self._changed, again)), "")
                if changed:
                    return changed
                if all(torch.equal(expected.term, run.terms[where][name].term) for run in again):
                    return f"at site {name!r} a row's log-probability changes with the values in other rows"
        return ""

    def _values_of(self, row: int) -> dict[str, Tensor]:
        """A row's values of all latent sites that the trial has, those that the run drew as well."""
        shapes = {name: value.shape for name, value in self._trial.values.items()}
        guide, model = map(latent_sites, self.run.traces)
        values = {name: msg["value"] for name, msg in (model | guide).items() if name in shapes}
        return {n: v if v.shape == shapes[n] else v[row].reshape(shapes[n]) for n, v in values.items()}

    def _changed(self, alone: Run) -> str:
        changed = [rowed.keys() ^ single.keys() for rowed, single in zip(self.run.terms, alone.terms, strict=True)]
        names = sorted(set[str]().union(*changed))
        return f"its sites change with their values ({', '.join(names)})" if names else ""

    def _agrees(self, row: int, alone: Run) -> bool:
        """Whether all terms of a row are those of a run of it alone, looked at at once."""
        found, expected = [], []
        for rowed, single in zip(self.run.terms, alone.terms, strict=True):
            for name, (_, *together) in rowed.items():
                for of_rows, by_itself in zip(together, single[name][1:], strict=True):
                    if of_rows is not None and by_itself is not None:
                        own = _fitted(self._own(of_rows, row), by_itself)
                        if own is None or own.device != by_itself.device:
                            return False
                        found.append(own.reshape(-1))
                        expected.append(by_itself.reshape(-1))
        return len({t.device for t in found}) <= 1 and (not found or close(torch.cat(found), torch.cat(expected), 1e-3))

    def _own(self, term: Tensor, row: int) -> Tensor | None:
        """One row of a term, or all of one that does not depend on rows; None of one of another shape."""
        dims = self._trial.batch_dims
        if term.dim() > dims + 1:
            return None
        if term.dim() == dims + 1:
            return term[row] if len(term) == self.rows else term[0] if len(term) == 1 else None
        return term

    @torch.no_grad()
    def joined(self, plate: Any) -> str:
        """The first term that joins elements of a plate, in words; or nothing."""
        for swap in self.swaps:
            for sites in self.run.terms if swap.plate == plate else ():
                for name, (msg, *terms) in sites.items():
                    inside = plate in plates_of(msg)
                    if inside and any(term is not None and self._mixes(term, swap) for term in terms):
                        return f"the term of site {name!r} joins elements of plate {plate.name!r}"
        return ""

    def _mixes(self, term: Tensor, swap: Swap) -> bool:
        """Whether rows of mixes are not, element by element, those that the elements' values are from."""
        dim = swap.plate.dim
        if term.dim() <= self._trial.batch_dims or len(term) != self.rows or term.shape[dim] != swap.plate.size:
            return False  # it has no rows, or no elements to tell apart
        moved = torch.stack([where_moved(m, dim, 0).expand(term.shape[1:]) for m in swap.mixed.values()])
        expected = torch.where(moved.to(term.device), term[swap.other], term[swap.one])
        return not close(term[list(swap.mixed)], expected, 1e-4)

    def moves(self) -> Iterator[tuple[tuple[str, str], bool]]:
        """Of each term, by "guide" or "model" and its site, whether some row's is another one than the first's."""
        for where, sites in zip(("guide", "model"), self.run.terms, strict=True):
            for name, (_, term, _) in sites.items():
                yield (where, name), term.dim() > self._trial.batch_dims and bool((term != term[:1]).any())


def _fitted(found: Tensor | None, expected: Tensor) -> Tensor | None:
    """A term in the shape of another one, which may have dims along which the first is constant; None if it has not."""
    if found is None or found.shape == expected.shape:
        return found
    try:
        found = found.expand(torch.broadcast_shapes(found.shape, expected.shape))
    except RuntimeError:
        return None
    return found.reshape(expected.shape) if found.numel() == expected.numel() else None


def _equal(found: Tensor | None, expected: Tensor) -> bool:
    """Whether two terms are the same up to rounding."""
    found = _fitted(found, expected)
    return found is not None and close(found, expected, 1e-3)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors of one shape are alike up to rounding, NaN at the same places; mostly they are equal."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@at_its_numbers
def run_over_rows(
    pair: Pair,
    trial: Trial,
    names: Collection[str] | None = None,
    others: Values | None = None,
    swapped: Collection[Site] = (),
) -> RunOverRows:
    """The pair with rows of values at the named sites alone, all others as in the trial or at values of `others`.

    Without names: under a plate of rows, with values at all discrete sites of finite support, and draws at the rest.
    `swapped`: discrete sites whose plates' elements are to be told apart, if all that have rows are among them and
    have a finite support. A run that was made for this is shared, unless others have other values. Raises what the
    program does.
    """
    shared = None if others else trial.shared_with(pair)
    key = None if names is None else frozenset(names)
    if shared is not None and key in shared.over_rows and (not swapped or shared.over_rows[key].swaps):
        return shared.over_rows[key]
    inside = {s.name for s in swapped if math.isfinite(cardinality(base_distribution(s.distribution)))}
    mixes = _Mixes(swapped) if inside == set(trial.values if names is None else names) else _Mixes(())
    rows = unused_size(trial, len(FIRST_ROWS) + mixes.rows)
    if rows * sum(m["value"].numel() for m in _tensors_of(trial)) > MOST_NUMBERS:
        mixes, rows = _Mixes(()), unused_size(trial)
    values = spread_values(trial, rows, names) | dict(others or {})
    found = RunOverRows(pair, trial, rows, values, names is None, mixes.put_into(values))
    if shared is not None and (names is None or found.swaps):  # what others will ask for
        shared.over_rows[key] = found
    return found


NOTHING = torch.tensor(False)
"""Which elements are moved where none are."""


class _Mixes:
    """The rows behind the first ones by which elements of plates of these sites are told apart."""

    def __init__(self, sites: Collection[Site]) -> None:
        self._sites = sites
        self._halves = {plate: halves(plate.size) for plate in plates_inside(sites)}
        self._within = {p: {s.name for s in sites if p in s.plates} for p in self._halves}
        self.rows: int = sum(2 * (len(h) + 2 * self._beside(p)) for p, h in self._halves.items())

    def _beside(self, plate: Any) -> bool:
        """Whether there are sites outside of a plate, which are as in the trial while its elements are told apart."""
        return len(self._within[plate]) < len(self._sites)

    def put_into(self, values: Mapping[str, Tensor]) -> list[Swap]:
        """Fill their rows in."""
        free, swaps = count(len(FIRST_ROWS)), []
        for plate, moved in self._halves.items():
            for first, second in ((FIRST, LAST), (ONE, OTHER)):
                one, other = first, second
                if self._beside(plate):
                    one, other = (self._put(values, plate, next(free), end, end, NOTHING) for end in (first, second))
                mixed = {self._put(values, plate, next(free), one, other, each): each for each in moved}
                swaps.append(Swap(plate, one, other, mixed))
        return swaps

    def _put(self, values: Mapping[str, Tensor], plate: Any, row: int, one: int, other: int, moved: Tensor) -> int:
        for site in self._sites:
            rows = values[site.name]
            if site.name in self._within[plate]:
                where = where_moved(moved, plate.dim, site.event_dim).to(rows.device)
                rows[row] = torch.where(where, rows[other], rows[one])
            else:
                rows[row] = rows[OWN]
        return row


def plates_inside(sites: Iterable[Site]) -> list[Any]:
    """The plates of sites that have several elements, from the outermost on."""
    plates = {p for s in sites for p in s.plates if p.vectorized and p.size > 1}
    return sorted(plates, key=lambda p: p.dim or 0)


def halves(size: int) -> list[Tensor]:
    """Halves of a plate's elements: any two elements are in different ones of some, or in large plates most are."""
    if size <= 16:
        return [torch.arange(size) // 2**bit % 2 == 1 for bit in range((size - 1).bit_length())]
    return [torch.rand(size) < 0.5 for _ in range(4)]


def where_moved(moved: Tensor, dim: int, event_dim: int) -> Tensor:
    """Which elements are moved, along a plate's dim of a value."""
    return moved.reshape(-1, *[1] * (-dim - 1 + event_dim))


class RowsVerdict:
    """The model's trace over trial rows, or the reason why the pair cannot be run over rows."""

    def __init__(self, model_trace: Trace | None, reason: str = "") -> None:
        self.model_trace: Trace | None = model_trace
        self.reason: str = reason

    def __bool__(self) -> bool:
        return self.model_trace is not None


@at_its_numbers
def check_rows(pair: Pair, trial: Trial, rows: int) -> RowsVerdict:
    """Try the pair with a leading dim.

    A program that raises, or in which a row's log-probabilities are not those of a run with that row's values alone
    (`view(B, -1)`, control flow on a value, batch statistics), is to be run row by row. One that broadcasts rows into
    another dim is refused with `SiteShapeError`. Rows are tried in a number that is no size in the program, so that
    they cannot pass for another dim, and with values from all over the support, so that they differ.
    """
    try:
        over = run_over_rows(pair, trial)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        if rows > 1 and _runs(pair, trial, rows):
            raise SiteShapeError(
                f"The program runs with {rows} rows but not with {unused_size(trial)}: it broadcasts the leading dim "
                f"of rows (or particles) into another dim of size {rows}. {_REMEDY}"
            ) from error
        return RowsVerdict(None, why_not_at_once(error))
    for trace, single in zip(over.run.traces, (trial.guide_trace, trial.model_trace), strict=True):
        rowed, alone = sample_sites(trace), sample_sites(single)
        changed = rowed.keys() ^ alone.keys()
        if changed:
            return RowsVerdict(None, f"its sites change from run to run ({', '.join(sorted(changed))})")
        for name, msg in rowed.items():
            _check_shapes(name, msg["fn"], alone[name]["fn"], over.rows, trial.batch_dims)
    try:
        mixing = over.mixing()
    except DiscreteInferenceError:
        raise
    except Exception as error:  # of a log-probability over rows, say
        return RowsVerdict(None, why_not_at_once(error))
    return RowsVerdict(None, mixing) if mixing else RowsVerdict(over.run.traces[1])


def spread_values(trial: Trial, rows: int, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """For each discrete site of finite support, rows of values from all over it; the trial's where `only` excludes it.
    A continuous site that `only` names has rows of draws.

    The first row holds the first value throughout and the second the last one, so that `any` and `all` of a row tell it
    from the others; the third those of the trial, and the rest is drawn uniformly.
    """
    values: dict[str, Tensor] = {}
    for name, msg in trial.latent.items():
        fn, base = msg["fn"], base_distribution(msg["fn"])
        if only is not None and name not in only:
            values[name] = msg["value"]
            continue
        padding = (1,) * (trial.batch_dims - len(fn.batch_shape))
        if family_of(fn) in (None, Family.CONTINUOUS):
            if only is not None:
                values[name] = fn.sample(torch.Size((rows, *padding)))
                values[name][OWN] = msg["value"].reshape(values[name][OWN].shape)
            continue
        if not math.isfinite(cardinality(base)):
            continue
        support = values_to_try(fn)
        copies = tuple(fn.event_shape[: fn.event_dim - len(base.event_shape)])
        index = torch.randint(len(support), (rows, *padding, *fn.batch_shape, *copies), device=support.device)
        index[FIRST], index[LAST] = 0, len(support) - 1
        values[name] = support[index]
        values[name][OWN] = msg["value"].reshape(values[name][OWN].shape)
    return values


_REMEDY = (
    "Index from the right (`w[..., z, :]`, `z.unsqueeze(-1) * w`), so that a leading dim broadcasts; or pass "
    "vectorize_particles=False."
)


def unused_size(trial: Trial, least: int = 0) -> int:
    """A number of rows, `least` or more, that is no size in the program, so that they cannot pass for another dim."""
    sizes = _sizes(trial)
    found = next((n for n in TRIAL_ROWS if n >= least and n not in sizes), None)
    return next(n for n in count(max(47, least)) if n not in sizes) if found is None else found


def _sizes(trial: Trial) -> set[int]:
    """Every size of a dim of a value in the traces."""
    return {size for msg in _tensors_of(trial) for size in msg["value"].shape}


def _tensors_of(trial: Trial) -> Iterator[Any]:
    """The nodes of its traces that have a tensor for their value."""
    nodes = (msg for trace in (trial.guide_trace, trial.model_trace) for msg in trace.nodes.values())
    return (msg for msg in nodes if torch.is_tensor(msg.get("value")))


def _runs(pair: Pair, trial: Trial, rows: int) -> bool:
    try:
        trace_pair(pair, trial.subsamples, rows=(rows, -1 - trial.batch_dims))
    except Exception:
        return False
    return True


def _check_shapes(name: str, fn: Any, single: Any, rows: int, batch_dims: int) -> None:
    batch = (1,) * (batch_dims - len(single.batch_shape)) + tuple(single.batch_shape)
    if tuple(fn.batch_shape) == (rows, *batch) and tuple(fn.event_shape) == tuple(single.event_shape):
        return
    raise SiteShapeError(
        f"Site {name!r} mixes rows into another dim: with {rows} rows its batch shape is {tuple(fn.batch_shape)} and "
        f"its event shape {tuple(fn.event_shape)}, where {(rows, *batch)} and {tuple(single.event_shape)} are "
        f"expected. {_REMEDY}"
    )
