"""Trial runs over rows of values: whether a program keeps these apart, and what each row's terms are.

One run over rows stands for a run of each of them, if it gives each row's own terms. Its operations, followed, show
whether it does, whether they keep plate elements apart as well, and which terms each draw reaches; a row that is run by
itself shows what hangs on the number of rows. Looks at one trial share these runs, and those of single values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from pyro_discrete.errors import DiscreteInferenceError, why_not_at_once
from pyro_discrete.families import Family
from pyro_discrete.inspection.apart import Followed, Keeping, follow, run_followed
from pyro_discrete.inspection.trial import Run, Trial, Values, at_its_numbers
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.pair import Pair, trace_pair
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    family_of,
    latent_sites,
    sample_sites,
    values_to_try,
)

__all__ = [
    "ENDS",
    "RowsVerdict",
    "RunOverRows",
    "check_rows",
    "close",
    "followed",
    "run_over_rows",
    "spread_values",
    "unused_size",
]


TRIAL_ROWS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


FIRST, LAST, OWN, ONE = range(4)
"""What the first rows hold: the first value throughout, the last one, the trial's, and draws, as the rest does."""


ALONE, ENDS = (FIRST, LAST, OWN, ONE), (FIRST, LAST)
"""Rows that are run by themselves (the trial is such a run of its own), and those of a long program."""


RUNS_AGAIN = 3
"""So many runs of a row alone have to be alike before it is no noise that sets its terms apart."""


class RunOverRows:
    """A run with a row for each of several runs, and what it shows.

    `names`: the sites that have rows of values; None for all, under a plate of rows. `follow`: whether it is to be
    followed as it goes, for whoever asks what its operations say; if it cannot be, it is made again.
    """

    def __init__(
        self, pair: Pair, trial: Trial, rows: int, values: Values, names: Collection[str] | None, follow: bool = True
    ) -> None:
        self._pair, self._trial, self._values, self._names = pair, trial, values, names
        self.rows: int = rows
        run = self._run_followed() if follow and not pair.guide_runs_model else None
        if run is None:
            with torch.no_grad():
                run = Run(*trace_pair(pair, trial.subsamples, values, self._dims if names is None else None))
        self.run: Run = run

    def _run_followed(self) -> Run | None:
        """The run, and what its operations say; None where it raises. What validation has Python read may be what keeps
        them from saying anything: they are asked without, then, where that is wanted."""
        try:
            found = run_followed(
                self._pair, self._trial.subsamples, self._values, self._draws, self._dims, self._names is None
            )
        except Exception:
            return None
        if not (found.said.reason and Distribution._validate_args):
            self.followed = found.said
        return Run(*found.traces, found.parts)

    @property
    def _draws(self) -> Collection[str]:
        return self._trial.values if self._names is None else self._names

    @property
    def _dims(self) -> tuple[int, int]:
        return self.rows, -1 - self._trial.batch_dims

    @cached_property
    def followed(self) -> Followed:
        """What the operations of a run at these values say of rows, and of the elements of the sites' plates."""
        return follow(self._pair, self._trial.subsamples, self._values, self._draws, self._dims, self._names is None)

    @cached_property
    def mixing(self) -> str:
        """What is wrong with rows: their terms have to be those of runs of them alone; empty if nothing is."""
        keeping = self.followed.of(ROWS_PLATE)
        rows = (OWN,) if keeping is Keeping.APART else ENDS if self._trial.long else ALONE

        def look_elsewhere() -> str:
            trial = replace(self._trial, shared=None)
            return RunOverRows(self._pair, trial, self.rows, self._values, self._names, follow=False).mixing_of(ENDS)

        words = f"at site {self.followed.mixed.get(ROWS_PLATE)!r} {_CHANGES}"
        return self._trial.mixing(self._pair, keeping, partial(self.mixing_of, rows), look_elsewhere, words)

    @torch.no_grad()
    def mixing_of(self, rows: Iterable[int]) -> str:
        """The same of these rows, by their values."""
        return next(filter(None, map(self._mixing, rows)), "")

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
                while len(again) < RUNS_AGAIN and not any(self._changed(run) for run in again):
                    again.append(self._trial.at(self._pair, values, anew=True))
                changed = next(filter(None, map(self._changed, again)), "")
                if changed:
                    return changed
                if all(torch.equal(expected.term, run.terms[where][name].term) for run in again):
                    return f"at site {name!r} {_CHANGES}"
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


_CHANGES = "a row's log-probability changes with the values in other rows"


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
    pair: Pair, trial: Trial, names: Collection[str] | None = None, others: Values | None = None
) -> RunOverRows:
    """The pair with rows of values at the named sites alone, all others as in the trial or at values of `others`.

    Without names: under a plate of rows, with values at all discrete sites of finite support, and draws at the rest. A
    run that was made for this is shared, unless others have other values. Raises what the program does.
    """
    shared = None if others else trial.shared_with(pair)
    key = None if names is None else frozenset(names)
    if shared is not None and key in shared.over_rows:
        return shared.over_rows[key]
    rows = unused_size(trial)
    found = RunOverRows(pair, trial, rows, spread_values(trial, rows, names) | dict(others or {}), names, not others)
    if shared is not None:
        shared.over_rows[key] = found
    return found


@at_its_numbers
def followed(pair: Pair, trial: Trial, draws: Collection[str], under_plate: bool = False) -> Followed:
    """What the operations of a run say of the elements of these draws: of one over rows, if the program takes these.

    `under_plate`: whether rows will be under a plate, if there are only these draws.
    """
    try:
        over = run_over_rows(pair, trial, None if under_plate and {*draws} == trial.values.keys() else draws)
        if not over.followed.reason:
            return over.followed
    except Exception:  # it takes no rows: one without says what it can
        pass
    return trial.followed(pair, draws)


class RowsVerdict:
    """The model's trace over trial rows, or the reason why the pair cannot be run over rows."""

    def __init__(self, model_trace: Trace | None, reason: str = "") -> None:
        self.model_trace: Trace | None = model_trace
        self.reason: str = reason

    def __bool__(self) -> bool:
        return self.model_trace is not None


@at_its_numbers
def check_rows(pair: Pair, trial: Trial) -> RowsVerdict:
    """Try the pair with a leading dim.

    A program that raises, broadcasts rows into another dim, or in which a row's log-probabilities are not those of a
    run with that row's values alone (`view(B, -1)`, control flow on a value, batch statistics), is to be run row by
    row. Rows are tried in a number that is no size in the program, so that they cannot pass for another dim, and with
    values from all over the support, so that they differ.
    """
    try:
        over = run_over_rows(pair, trial)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        return RowsVerdict(None, why_not_at_once(error))
    for trace, single in zip(over.run.traces, (trial.guide_trace, trial.model_trace), strict=True):
        rowed, alone = sample_sites(trace), sample_sites(single)
        changed = rowed.keys() ^ alone.keys()
        if changed:
            return RowsVerdict(None, f"its sites change from run to run ({', '.join(sorted(changed))})")
        for name, msg in rowed.items():
            joined = _joined_rows(name, msg["fn"], alone[name]["fn"], over.rows, trial.batch_dims)
            if joined:
                return RowsVerdict(None, joined)
    try:
        mixing = over.mixing
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


def unused_size(trial: Trial) -> int:
    """A number of rows that is no size in the program, so that they cannot pass for another dim."""
    sizes = _sizes(trial)
    return next((n for n in TRIAL_ROWS if n not in sizes), 47)


def _sizes(trial: Trial) -> set[int]:
    """Every size of a dim of a value in the traces."""
    return {size for msg in _tensors_of(trial) for size in msg["value"].shape}


def _tensors_of(trial: Trial) -> Iterator[Any]:
    """The nodes of its traces that have a tensor for their value."""
    nodes = (msg for trace in (trial.guide_trace, trial.model_trace) for msg in trace.nodes.values())
    return (msg for msg in nodes if torch.is_tensor(msg.get("value")))


def _joined_rows(name: str, fn: Any, single: Any, rows: int, batch_dims: int) -> str:
    """What is said of a site in whose shape rows are no dim of their own; empty where they are."""
    batch = (1,) * (batch_dims - len(single.batch_shape)) + tuple(single.batch_shape)
    if tuple(fn.batch_shape) == (rows, *batch) and tuple(fn.event_shape) == tuple(single.event_shape):
        return ""
    return (
        f"site {name!r} mixes rows into another dim: with {rows} rows its batch shape is {tuple(fn.batch_shape)} and "
        f"its event shape {tuple(fn.event_shape)}, where {(rows, *batch)} and {tuple(single.event_shape)} are expected"
    )
