"""The checks of the net that can only be made by statistics: sampled estimators, in the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import UnsupportedSiteError
from pyro_discrete.estimators.score.nvil import NVIL
from pyro_discrete.testing.generated_programs.case import TOLERANCE, Case, DisagreementError, SkippedError

__all__ = ["bound_estimate", "estimate"]

SAMPLED = (
    "reinforce",
    "rloo",
    "nvil",
    "disarm",
    "coupled",
    "sum_and_sample",
    "double_cv",
    "indecater",
    "arms",
    "mixed",
    "arm",
    "bitflip1",
    "carms",
    "muprop",
    "optimal_control_variate",
    "rebar",
    "relax",
    "rodeo",
    "unordered_set",
)
"""Estimators that are looked at by statistics; a program's seed says which."""
DRAWS, BATCHES = 50, 30
"""Particles of a step, and steps, of a statistical check; ten times the steps before an alarm counts."""
FEW, MORE = 4, 60
"""The same where each particle takes a run."""
ALARM, CONFIRMED = 6.0, 7.0
"""Standard errors at which a statistical check is repeated, and at which it then counts.

A right estimator alarms at one number in half a million (Student's t of 29 degrees of freedom beyond 6), and in the
repetition, whose draws are fresh, with 300 steps at one in 10^10. Both together happen to a program of 30 numbers less
than once in 10^14; were the errors so far from normal that the first said nothing, still less than once in 10^8.
"""


def estimate(case: Case) -> None:
    """A sampled estimator's loss and gradient, in the mean; of every second hundred by a plan made at zeros."""
    name = SAMPLED[(case.description.seed // 10) % len(SAMPLED)]
    if len(case.right) > 1:
        raise SkippedError("subsamples are drawn")
    setting: Any = NVIL(variance_normalisation=False) if name == "nvil" else name
    if name == "mixed":
        setting = {"z1": "enumerate", "*": "reinforce"}
        if "z1" not in case.right[0].guided:
            raise SkippedError("nothing is mixed")
    elbo = case.engine.elbo(setting, num_particles=FEW)
    try:
        case.loss(elbo)
    except UnsupportedSiteError:
        name = setting = "rloo"
        elbo = case.engine.elbo(setting, num_particles=FEW)
        case.loss(elbo)
    steps = MORE
    if elbo.plan.path == "sequential" and case.description.seed % 30:
        raise SkippedError("a run for each draw takes long: every third such program is looked at")
    if elbo.plan.path != "sequential":
        elbo, steps = case.engine.elbo(setting, num_particles=DRAWS), BATCHES
        _at_zeros(case, elbo)
    _by_statistics(case, elbo, case.right[0].loss, case.right[0].gradients, name, steps)


def bound_estimate(case: Case) -> None:
    """The bound of two particles in the mean, and its gradient."""
    case.needs_bound()
    elbo = case.engine.bound("reinforce", num_particles=2, num_outer_samples=DRAWS, datum_plates=())
    answer = case.right[0]
    _at_zeros(case, elbo)
    case.loss(elbo)
    if elbo.plan.path == "sequential":
        raise SkippedError("a run for each draw takes too long")
    _by_statistics(case, elbo, answer.bound, answer.bound_gradients, "bound")


def _at_zeros(case: Case, elbo: Any) -> None:
    if case.description.seed // 100 % 2 == 0:
        with case.all_zero(), suppress(Exception):
            case.gradients(elbo)


def _by_statistics(
    case: Case, elbo: Any, loss: float, gradients: Mapping[str, Tensor], name: str, batches: int = BATCHES
) -> None:
    right = torch.cat([torch.tensor([loss]), *(g.flatten() for g in gradients.values())])
    names = ["loss", *(f"gradient of {n}" for n, g in gradients.items() for _ in range(g.numel()))]
    case.gradients(elbo)
    for steps, limit in ((batches, ALARM), (10 * batches, CONFIRMED)):
        drawn = []
        for _ in range(steps):
            value, found = case.gradients(elbo)
            drawn.append(torch.cat([torch.tensor([value]), *(g.flatten() for g in found.values())]))
        stacked = torch.stack(drawn)
        off = stacked.mean(0) - right
        error = stacked.std(0) / math.sqrt(steps) + TOLERANCE
        z = off / error
        worst = int(z.abs().argmax())
        if z[worst].abs() <= limit:
            return
    raise DisagreementError(
        f"{name}: {names[worst]} {stacked.mean(0)[worst]:.5f} +- {error[worst]:.5f}, right is {right[worst]:.5f}"
    )
