"""The small programs whose steps are captured: one for each estimator."""

from __future__ import annotations

from pyro_discrete.estimators.base import Estimator
from pyro_discrete.testing.small_programs import effects as effect_programs
from pyro_discrete.testing.small_programs import plates as plate_programs
from pyro_discrete.testing.small_programs import sites as site_programs
from pyro_discrete.testing.small_programs.program import Program

PREFERRED = ("one_hot_plate", "two_layers", "subsampled_plate", "fair_bernoulli", "not_reparameterised")


def all_programs() -> list[Program]:
    modules = (plate_programs, site_programs, effect_programs)
    return [p for module in modules for p in vars(module).values() if isinstance(p, Program)]


def a_program_for(estimator: Estimator) -> Program:
    """A program with a plate that the estimator serves, as many families as possible."""
    served = [
        p
        for p in all_programs()
        if p.families <= estimator.families and (p.relaxable or not (estimator.relaxed or estimator.sloped))
    ]
    return next((p for name in PREFERRED for p in served if p.name == name), served[0])
