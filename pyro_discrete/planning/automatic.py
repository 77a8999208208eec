"""What "auto" takes for a site: the first of a committed table of measurements that the site and its program allow."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import Dependencies, Sources, direct_sources
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.inspection.trial_rows import check_rows
from pyro_discrete.planning.shared_terms import SharedTerms
from pyro_discrete.programs.pair import Pair, on_trial, trace_pair
from pyro_discrete.programs.sites import Site, base_distribution, latent_sites, sample_sites, site_log_prob
from pyro_discrete.relaxations.handler import ExtendMessenger
from pyro_discrete.relaxations.jumps import WatchJumps, refuse_jump
from pyro_discrete.relaxations.relaxed_distribution import program_value

__all__ = [
    "CHEAP_SUPPORT",
    "TABLE_FILE",
    "Situation",
    "cheap_enumeration",
    "is_differentiable",
    "multiply_adds",
    "numbers_of",
    "ranking",
    "situations",
]


TABLE_FILE = Path(__file__).with_name("auto_table.json")
"""Variance times time of estimators by kind of site, as benchmarks/auto/auto_table.py measured it."""


_MEASURED_AS = {
    Family.CATEGORICAL: Family.ONE_HOT,
    Family.COUNT: Family.DISCRETE,
    Family.CONTINUOUS: Family.DISCRETE,
}


MOST_NUMBERS = 50_000_000
"""Estimators whose rows would hold more numbers in the program's sites are not taken by "auto": they need memory."""

CHEAP_SUPPORT = 256
"""Up to so many joint values of all the guide's discrete sites, or of those behind any one term, "auto" enumerates."""


WEIGHTS = {"depth": 2.0, "particles": 1.0, "work": 1.0}
"""Of each logarithmic distance to a cell: so chosen, cells are foretold best from the others (auto_models.py)."""


@dataclass(frozen=True)
class Situation:
    """What "auto" knows of a site's surroundings.

    - `depth`: how many sites of the guide are drawn by estimators. `numbers`: how many a run holds in all sites.
    - `work`: these numbers, and the multiply-adds of a run.
    - `differentiable`: whether the model is a differentiable function of the site's relaxed value.
    - `separable`: whether the elements of the site's plates share no later term.
    - `takes_rows`: whether the program can be run over rows at once.
    """

    depth: int = 1
    numbers: int = 0
    work: Callable[[], int] = lambda: 1
    takes_rows: Callable[[], bool] = lambda: False
    differentiable: Callable[[], bool] = lambda: False
    separable: Callable[[], bool] = lambda: False

    def why_not(self, estimator: Estimator, site: Site) -> str:
        """Why an estimator that serves the site cannot be taken here; empty if it can."""
        if estimator.rows(site) > 1 and not self.takes_rows():
            return "the program takes no rows at once"
        if (estimator.slope_rows or estimator.relaxed) and not self.differentiable():
            return "the model is not differentiable there"
        if estimator.separable and not self.separable():
            return "elements of a plate share terms"
        numbers = self.depth * estimator.rows(site) * self.numbers
        if estimator.rows(site) > 4 and numbers > MOST_NUMBERS:
            return f"its rows hold {numbers:.2g} numbers"
        return ""


@cache
def _table() -> list[dict[str, Any]]:
    return json.loads(TABLE_FILE.read_text())


def ranking(
    family: Family,
    support: float,
    depth: int,
    particles: int,
    work: int,
    table: Sequence[dict[str, Any]] | None = None,
    law: str = "",
) -> tuple[list[str], str]:
    """Names of estimators, least variance times time first, and the measured cell that is nearest.

    A structure whose `law`, the name of its class, was measured at such a support has cells of its own; else it is
    looked up by family. Supports are rounded up, for what lists joint values was measured on no larger ones; depth,
    particles and the work of a run (where there is little, further rows are cheap) go to the nearest on a logarithmic
    scale.

    >>> names, cell = ranking(Family.BERNOULLI, float("inf"), depth=1, particles=1, work=1000)
    >>> cell
    'Bernoulli, many joint values, 1 site, 1 particle, a run of 8e+04 operations'
    """
    table = _table() if table is None else table
    kind = _MEASURED_AS.get(family, family).value
    cells = [cell for cell in table if cell["family"] == kind]
    largest = max(cell["support"] for cell in cells)
    size = min((cell["support"] for cell in cells if cell["support"] >= support), default=largest)
    cells = [cell for cell in table if cell["family"] == law and cell["support"] == size] or cells
    wanted = {"depth": depth, "particles": particles, "work": max(work, 1)}

    def distance(cell: dict) -> tuple[float, ...]:
        far = sum(WEIGHTS[name] * abs(math.log(cell[name] / value)) for name, value in wanted.items())
        return abs(math.log(cell["support"] / size)), far, *(cell[name] for name in wanted)

    best = min(cells, key=distance)
    joint = "many" if best["support"] == largest else f"up to {best['support']}"
    parts = [
        best["family"],
        f"{joint} joint values",
        _count(best["depth"], "site"),
        _count(best["particles"], "particle"),
        f"a run of {best['work']:.0e} operations",
    ]
    return [name for name, _ in best["ranking"]], ", ".join(parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number > 1)}"


def situations(
    pair: Pair,
    trial: Trial,
    sites: list[Site],
    shared: SharedTerms,
    vectorise: bool,
) -> dict[str, Situation]:
    """Each site's situation. What takes a run is looked at when it is asked for, once."""
    drawn = sum(site.family is not None for site in sites)
    numbers = numbers_of(trial)

    @cache
    def work() -> int:
        try:
            with on_trial():
                return numbers + multiply_adds(lambda: trace_pair(pair, trial.subsamples))
        except Exception:  # what cannot be run or counted once more is taken for small
            return numbers

    @cache
    def takes_rows() -> bool:
        try:
            return vectorise and bool(check_rows(pair, trial))
        except DiscreteInferenceError:  # no error, as long as it has no rows
            return False

    return {
        site.name: Situation(
            drawn,
            numbers,
            work,
            takes_rows,
            partial(is_differentiable, pair, trial, site.name),
            partial(shared.certainly_none, site),
        )
        for site in sites
    }


def multiply_adds(*runs: Callable[[], Any]) -> int:
    """Of matrix products and convolutions in these calls."""
    with FlopCounterMode(display=False) as counter:
        for run in runs:
            run()
    return counter.get_total_flops() // 2


def is_differentiable(pair: Pair, trial: Trial, name: str) -> bool:
    """Whether the model's terms are continuous in a relaxed value of the site, with a finite gradient.

    Integers are left out, as their soft values are slower than the table's vectors, and so are a structure's that has
    no marginals, which REBAR alone would read there.
    """
    msg = latent_sites(trial.guide_trace)[name]
    values = {n: m["value"].detach() for n, m in latent_sites(trial.guide_trace).items()}
    soft = _softened(Site(msg), values[name])
    if soft is None:
        return False
    try:
        with on_trial(), torch.enable_grad():
            extend = ExtendMessenger({name: None})
            watch = WatchJumps(lambda drawn: refuse_jump("auto") if drawn == name else None)
            given = Pair(watch(extend(pair.model)), watch(extend(pair.guide)), pair.args, pair.kwargs)
            values[name] = program_value(msg["fn"], soft, name)
            _, model_trace = trace_pair(given, trial.subsamples, values)
            terms = [site_log_prob(m).sum() for n, m in sample_sites(model_trace).items() if n != name]
            total: Tensor = sum(terms, torch.zeros(()))
            (slope,) = torch.autograd.grad(total, [soft], allow_unused=True)
    except Exception:  # whatever a program says to a value that is no corner
        return False
    return slope is not None and bool(slope.isfinite().all()) and bool(slope.any())


def _softened(site: Site, hard: Tensor) -> Tensor | None:
    """A value of the site moved from its corner, differentiable; None where auto looks at no soft values."""
    base = base_distribution(site.distribution)
    if site.family is Family.BERNOULLI:
        soft = 0.8 * hard + 0.1
    elif site.family is Family.ONE_HOT:
        soft = 0.8 * hard + 0.2 / hard.shape[-1]
    elif isinstance(base, Structure) and site.relaxable and base.defines("marginals"):
        soft = 0.8 * base.vertex(hard) + 0.2 * base.marginals().detach()
    else:
        return None
    return soft.requires_grad_()


def cheap_enumeration(
    pair: Pair, trial: Trial, discrete: list[Site], marginal: list[Site], known: Callable[[], Dependencies]
) -> Enumerate | None:
    """The budget with which "auto" enumerates all discrete sites, where few values hang together; else None.

    Where a term depends on few draws directly, but through these on more, as along a chain in the guide, sums over one
    site after the other may be as small, or not: they have to fit.
    """
    everything = [*discrete, *marginal]
    if any(s.cardinality > CHEAP_SUPPORT for s in everything):
        return None
    if math.prod(s.cardinality for s in discrete) <= CHEAP_SUPPORT:
        return Enumerate()
    if _sums_are_small(everything, known().terms if known().known else None, CHEAP_SUPPORT):
        return Enumerate()
    if not _sums_are_small(everything, direct_sources(pair, trial), CHEAP_SUPPORT):
        return None
    largest = CHEAP_SUPPORT * numbers_of(trial)
    return Enumerate(max_elements=largest, max_operations=16 * largest)


def numbers_of(trial: Trial) -> int:
    """How many numbers the values of all sites have."""
    sites = [m for t in (trial.guide_trace, trial.model_trace) for m in sample_sites(t).values()]
    return sum(math.prod(m["fn"].shape()) for m in sites)


def _sums_are_small(sites: Sequence[Site], sources: Sources | None, largest: int) -> bool:
    """Whether the draws that any one term is computed from have so few joint values."""
    if sources is None or not sites:
        return False
    sizes = {site.name: site.cardinality for site in sites}
    return all(math.prod(sizes.get(name, 1.0) for name in names) <= largest for names in sources.values())
