"""Whether a pair can take a leading dim of rows, and keeps the rows apart."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, SiteShapeError
from pyro_discrete.families import Family
from pyro_discrete.probe import Trial
from pyro_discrete.programs.pair import Pair, trace_pair
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    family_of,
    latent_sites,
    sample_sites,
    site_log_prob,
)

__all__ = ["RowsVerdict", "check_rows"]

TRIAL_ROWS = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


class RowsVerdict:
    """The model's trace over trial rows, or the reason why the pair cannot be run over rows."""

    def __init__(self, model_trace: Trace | None, reason: str = "") -> None:
        self.model_trace, self.reason = model_trace, reason

    def __bool__(self) -> bool:
        return self.model_trace is not None


def check_rows(pair: Pair, trial: Trial, rows: int, only: Collection[str] | None = None) -> RowsVerdict:
    """Try the pair with a leading dim.

    A program that raises, or in which a row's log-probabilities are not those of a run with that row's values alone
    (`view(B, -1)`, control flow on a value, batch statistics), is to be run row by row. One that broadcasts rows into
    another dim is refused with `SiteShapeError`. Rows are tried in a number that is no size in the program, so that
    they cannot pass for another dim, and with values from all over the support, so that they differ. With `only`, rows
    differ at these sites alone.
    """
    trial_rows = next((n for n in TRIAL_ROWS if n not in _sizes(trial)), 47)
    dim = -1 - trial.batch_dims
    try:
        guide_trace, model_trace = trace_pair(
            pair, trial.subsamples, _spread_values(trial, trial_rows, only), rows=(trial_rows, dim)
        )
    except DiscreteInferenceError:
        raise
    except Exception as error:
        if rows > 1 and _runs(pair, trial, rows):
            raise SiteShapeError(
                f"The program runs with {rows} rows but not with {trial_rows}: it broadcasts the leading dim of rows "
                f"(or particles) into another dim of size {rows}. {_REMEDY}"
            ) from error
        return RowsVerdict(None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    for trace, single in ((guide_trace, trial.guide_trace), (model_trace, trial.model_trace)):
        rowed, alone = sample_sites(trace), sample_sites(single)
        changed = rowed.keys() ^ alone.keys()
        if changed:
            return RowsVerdict(None, f"its sites change from run to run ({', '.join(sorted(changed))})")
        for name, msg in rowed.items():
            _check_shapes(name, msg["fn"], alone[name]["fn"], trial_rows, trial.batch_dims)
    few = 2 if len(model_trace.nodes) > 200 else 5  # a long program is run less often
    for row in range(min(trial_rows, few)):
        mixing = _mixing_site(pair, trial, guide_trace, model_trace, row)
        if mixing is not None:
            return RowsVerdict(
                None, f"at site {mixing!r} a row's log-probability changes with the values in other rows"
            )
    return RowsVerdict(model_trace)


def _spread_values(trial: Trial, rows: int, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """For each discrete site of finite support, rows of values from all over it; the trial's where `only` excludes it.

    The first row holds the first value throughout and the second the last one, so that `any` and `all` of a row tell it
    from the others; the rest is drawn uniformly.
    """
    values: dict[str, Tensor] = {}
    for name, msg in (latent_sites(trial.model_trace) | latent_sites(trial.guide_trace)).items():
        fn, base = msg["fn"], base_distribution(msg["fn"])
        if only is not None and name not in only:
            values[name] = msg["value"]
            continue
        if family_of(fn) in (None, Family.CONTINUOUS) or not math.isfinite(cardinality(base)):
            continue
        support = base.enumerate_support(expand=False)
        support = support.reshape((-1, *base.event_shape))
        copies = tuple(fn.event_shape[: fn.event_dim - len(base.event_shape)])
        padding = (1,) * (trial.batch_dims - len(fn.batch_shape))
        index = torch.randint(len(support), (rows, *padding, *fn.batch_shape, *copies), device=support.device)
        index[0], index[1] = 0, len(support) - 1
        values[name] = support[index]
    return values


_REMEDY = (
    "Index from the right (`w[..., z, :]`, `z.unsqueeze(-1) * w`), so that a leading dim broadcasts; or pass "
    "vectorize_particles=False."
)


def _sizes(trial: Trial) -> set[int]:
    """Every size of a dim of a value in the traces."""
    sizes: set[int] = set()
    for trace in (trial.guide_trace, trial.model_trace):
        for msg in trace.nodes.values():
            value = msg.get("value")
            if torch.is_tensor(value):
                sizes.update(value.shape)
    return sizes


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


@torch.no_grad()
def _mixing_site(pair: Pair, trial: Trial, guide_trace: Trace, model_trace: Trace, row: int) -> str | None:
    """The first site at which a row's log-probability is not that of runs with the row's values alone.

    A site at which such runs differ from each other has noise of its own (dropout), and shows nothing.
    """
    single_values = latent_sites(trial.model_trace) | latent_sites(trial.guide_trace)
    rowed_values = latent_sites(model_trace) | latent_sites(guide_trace)
    shapes = {n: m["value"].shape for n, m in single_values.items()}
    values = {
        n: m["value"] if m["value"].shape == shapes[n] else m["value"][row].reshape(shapes[n])
        for n, m in rowed_values.items()
    }
    repeats = [trace_pair(pair, trial.subsamples, values) for _ in range(2)]
    for rowed, *singles in zip((guide_trace, model_trace), *repeats, strict=True):
        together, alone = sample_sites(rowed), [sample_sites(trace) for trace in singles]
        for sites in alone:
            changed = sites.keys() ^ together.keys()
            if changed:
                return min(changed)
        for name, msg in together.items():
            expected, again = (site_log_prob(sites[name]) for sites in alone)
            if not torch.equal(expected, again):
                continue
            got = site_log_prob(msg)[row].reshape(expected.shape)
            if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                return name
    return None
