"""An estimator, or any ELBO, held to the contract: on which programs, by how many draws, and what fails it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.registry import available_estimators, named_estimator
from pyro_discrete.families import ANY_FAMILY, Family, Need
from pyro_discrete.testing.contract import ElboLike, Measurement, Report, auxiliary_leaks, decide
from pyro_discrete.testing.small_programs import counts as _count_programs
from pyro_discrete.testing.small_programs import effects as effect_programs
from pyro_discrete.testing.small_programs import plates as plate_programs
from pyro_discrete.testing.small_programs import sites as site_programs
from pyro_discrete.testing.small_programs import structures as _structure_programs
from pyro_discrete.testing.small_programs.bounds import (
    bounded,
    categories_in_documents,
    global_and_layers,
    global_category,
    words_in_documents,
)
from pyro_discrete.testing.small_programs.program import Program
from pyro_discrete.testing.structures import StructureReport

__all__ = [
    "assert_contract",
    "bound_programs",
    "check_elbo",
    "check_estimator",
    "count_programs",
    "discover_estimators",
    "programs",
    "structure_programs",
]


ElboFactory = Callable[[int, bool], ElboLike]


BOTH_DTYPES = (torch.float64, torch.float32)

CALLS = 12
"""Of a vectorised comparison's first stage. A call takes as long for hundreds of particles as for a few, so few calls
of many particles see more in less time: 12 of 533 see a bias of 0.054 standard deviations of a draw half of the time,
and one of 0.095 in 99 of 100, where 50 of 64 see 0.062 and 0.105 (Student's t at a level of `FIRST_STAGE`)."""
LEAST_PARTICLES = 256
"""Of such a call: 12 of them see a bias of 0.078 half of the time, where 30 of 64 see 0.083."""


def programs() -> tuple[Program, ...]:
    """The test programs: about sites, about other effects, about plates."""
    modules = (site_programs, effect_programs, plate_programs)
    return tuple(p for module in modules for p in vars(module).values() if isinstance(p, Program))


def count_programs() -> tuple[Program, ...]:
    """Test programs about counts: Poisson, geometric, negative binomial, binomial and multinomial sites."""
    return tuple(p for p in vars(_count_programs).values() if isinstance(p, Program))


def structure_programs() -> tuple[Program, ...]:
    """Test programs about structures: one for each, two in one program, beside a Gaussian, in the model alone."""
    return tuple(p for p in vars(_structure_programs).values() if isinstance(p, Program))


def bound_programs() -> tuple[Program, ...]:
    """Test programs for the importance-weighted bound: what its particles share, layers, and data within data."""
    return (global_and_layers, words_in_documents, global_category, categories_in_documents)


def discover_estimators() -> list[type[Estimator]]:
    """Every concrete estimator class in the package `pyro_discrete.estimators`, found by looking."""
    return [info.cls for info in available_estimators().values()]


def check_estimator(
    estimator: Estimator | type[Estimator] | str,
    *,
    programs: Sequence[Program] | None = None,
    draws: int = 3_200,
    dtypes: Sequence[torch.dtype] = BOTH_DTYPES,
    false_alarm: float = 1e-4,
    seed: int = 0,
    inner: int | None = None,
    batch: int | None = None,
) -> Report:
    """Hold an estimator (an instance, a class or a name) to its declarations.

    - `programs`: of which it runs those that it serves; by default `programs()`. `draws`: particles for each
      comparison's first stage, at least; vectorised ones cost little, and are twice as many.
    - `false_alarm`: the probability that a right estimator's report has a failure.
    - `inner`: by default None, the evidence lower bound (3 for an estimator that serves the importance-weighted bound
      alone); a number K is the importance-weighted bound of K particles, with the contract's particles as its outer
      samples. Its exact answer is by brute force over all K-tuples.
    - `batch`: see `check_elbo`; of a bound 120, since some estimators take each pair of all tuples of inner particles.

    Returns a `Report`, which `assert_contract` judges. The mean loss and, if the estimator is declared unbiased, the
    mean gradients must agree with the exact ones; if it is declared biased, some gradient must be seen to be; and its
    auxiliary loss must not reach the programs' parameters.
    """
    from pyro_discrete.elbos.elbo import TraceELBO  # the engine, which this module is not to load unless it is used
    from pyro_discrete.elbos.iwelbo import TraceIWELBO

    given = _instance(estimator)
    if inner is None and given.importance_weighted:
        inner = max(3, given.min_inner)
    if inner is not None:
        programs = bounded([*all_programs(), *bound_programs()] if programs is None else programs, inner)

    def make(particles: int, vectorize: bool) -> ElboLike:
        own = copy.deepcopy(given)
        if inner is None:
            return TraceELBO(own, num_particles=particles, vectorize_particles=vectorize)
        return TraceIWELBO(own, num_particles=inner, num_outer_samples=particles, vectorize_particles=vectorize)

    leaks: list[str] = []
    with auxiliary_leaks(type(given), leaks):
        report = check_elbo(
            make,
            name=type(given).__name__,
            families=given.families,
            needs=given.needs,
            unbiased=given.unbiased,
            relaxed=bool(given.relaxed or given.sloped),
            hard_loss=0 not in given.relaxed,
            min_particles=given.min_particles,
            programs=programs,
            draws=draws,
            dtypes=dtypes,
            false_alarm=false_alarm,
            seed=seed,
            batch=120 if batch is None and inner is not None else batch,
        )
    return replace(report, violations=[*report.violations, *leaks])


def _instance(estimator: Estimator | type[Estimator] | str) -> Estimator:
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, type):
        return estimator()
    return named_estimator(estimator)


def check_elbo(
    make: ElboFactory,
    *,
    name: str,
    families: frozenset[Family] = ANY_FAMILY,
    needs: frozenset[Need] = frozenset(),
    unbiased: bool = True,
    relaxed: bool = False,
    hard_loss: bool = True,
    min_particles: int = 1,
    programs: Sequence[Program] | None = None,
    draws: int = 3_200,
    dtypes: Sequence[torch.dtype] = BOTH_DTYPES,
    false_alarm: float = 1e-4,
    seed: int = 0,
    batch: int | None = None,
) -> Report:
    """Hold any ELBO, made by `make(num_particles, vectorize_particles)`, to the contract; see `check_estimator`.

    `batch`: the particles of a vectorised call, of which there are `draws / batch`, 30 at least; by default so many
    that few calls are enough. A call of an estimator that takes each pair of particles takes time by their square.
    """
    chosen = all_programs() if programs is None else programs
    served = [p for p in chosen if p.families <= families and needs <= p.meets and (p.relaxable or not relaxed)]
    least = max(1, min_particles)
    many = max(LEAST_PARTICLES, least, 2 * draws // CALLS) if batch is None else max(least, batch)
    calls = CALLS if batch is None else max(30, draws // many)
    measurements = list(_series(served, make, (many, calls), least, draws, dtypes, seed, hard_loss))
    decision = decide(measurements, false_alarm, unbiased)
    return Report(name, unbiased, decision.comparisons, decision.threshold, decision.refused, decision.crashed)


all_programs = programs


def _series(
    served: Sequence[Program],
    make: ElboFactory,
    sizes: tuple[int, int],
    least: int,
    draws: int,
    dtypes: Sequence[torch.dtype],
    seed: int,
    hard_loss: bool,
) -> Iterator[Measurement]:
    """The measurements of one report: many particles at once, as few as allowed, and one run after the other.

    `sizes`: how many particles at once, in how many calls.
    """
    (many, calls), few = sizes, max(2, least)
    for number, each in enumerate(served):
        at = seed + 7919 * number

        def batch(each: Program = each) -> ElboLike:
            return make(many, each.vectorizable)

        def one_by_one() -> ElboLike:
            return make(few, False)

        def least_possible() -> ElboLike:
            return make(least, True)

        if each.vectorizable:
            path = f"vectorised, {many} particles"
            yield Measurement(each, batch, dtypes[0], path, calls, at, what="both", with_loss=hard_loss)
            for dtype in dtypes[1:]:
                yield Measurement(each, batch, dtype, path, calls, at, with_loss=hard_loss)
        if not each.vectorizable or number % 4 == 0:
            path = f"sequential, {few} particles"
            yield Measurement(each, one_by_one, dtypes[0], path, max(30, draws // 64), at + 2, with_loss=hard_loss)
            yield Measurement(each, one_by_one, dtypes[0], path, 30, at + 3, what="loss")
        if each.name == "fair_bernoulli":
            path = f"vectorised, {least} particles"
            yield Measurement(each, least_possible, dtypes[0], path, max(30, draws // 4), at + 4, with_loss=hard_loss)


def assert_contract(report: Report | StructureReport) -> None:
    """Raise AssertionError, with the report's table, unless the estimator (or the structure) keeps its contract."""
    if report.failures:
        raise AssertionError("\n" + str(report))
