"""The checks of the net, each of which compares one answer of the engine with the oracle's."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.testing.generated_programs.case import TOLERANCE, Case, DisagreementError, SkippedError
from pyro_discrete.testing.generated_programs.data_bounds import JoinedDataError, data_bounds
from pyro_discrete.testing.generated_programs.oracle import Answer, NoAnswerError, evidence, gradients_of
from pyro_discrete.testing.generated_programs.posterior_checks import computed, marginals, mode, samples
from pyro_discrete.testing.generated_programs.sampled_checks import bound_estimate, estimate

__all__ = ["CHECKS", "EVERY"]


def _exact(case: Case) -> None:
    """Loss and gradient under "enumerate", and the loss alone."""
    elbo = case.engine.elbo("enumerate")
    case.compare(*case.gradients(elbo))
    case.nearest(case.loss(elbo))


def _beside(case: Case) -> None:
    """The same with two particles beside each other, or one after another, each with a subsample of its own then."""
    loss, found = case.gradients(case.engine.elbo("enumerate", num_particles=2))
    pairs = [_in_the_middle(*both) for both in combinations(case.right, 2)]
    replace(case, right=[*case.right, *pairs]).compare(loss, found)


def _in_the_middle(one: Answer, other: Answer) -> Answer:
    gradients = {name: (gradient + other.gradients[name]) / 2 for name, gradient in one.gradients.items()}
    return replace(one, loss=(one.loss + other.loss) / 2, gradients=gradients)


def _captured(case: Case) -> None:
    """The same as a captured graph, the second time by the graph alone."""
    elbo = case.engine.elbo("enumerate", compile="graph")
    for _ in range(2):
        case.compare(*case.gradients(elbo))


def _automatic(case: Case) -> None:
    """Under "auto" the same where its plan is exact, else a loss that some draw has."""
    elbo = case.engine.elbo()
    loss, found = case.gradients(elbo)
    if elbo.plan.path == "enumerated":
        case.compare(loss, found)
    loss = case.loss(elbo)
    if elbo.plan.path == "enumerated":  # now, after the branch of another draw perhaps
        case.nearest(loss)
    else:
        _member(loss, [a.losses for a in case.right])


def _renumbered(case: Case) -> None:
    """The same after a call in which all that the program is given, or holds, was zero."""
    _after(case, case.engine.elbo("enumerate"), case.all_zero())


def _captured_anew(case: Case) -> None:
    """The same as a graph that was captured where all of it was zero."""
    _after(case, case.engine.elbo("enumerate", compile="graph"), case.all_zero(), calls=2)


def _moved(case: Case) -> None:
    """The same after a call in which all that is learned had the other sign."""
    compiled = "graph" if case.description.seed % 5 == 0 else False
    _after(case, case.engine.elbo("enumerate", compile=compiled), case.moved())


def _after(case: Case, elbo: Any, elsewhere: AbstractContextManager[None], calls: int = 1) -> None:
    """Loss and gradient, twice, after calls with other numbers, which may fail."""
    with elsewhere, suppress(Exception):
        for _ in range(calls):
            case.gradients(elbo)
    for _ in range(2):
        case.compare(*case.gradients(elbo))


def _collapsed(case: Case) -> None:
    """The model by itself, all of its discrete sites summed out; the first time, of every second program, at zeros."""
    if any(getattr(site, "role", "") == "point" for site in case.description.sites()):
        raise SkippedError("a continuous site is drawn from its prior")
    try:
        found = evidence(case.pair, {})
    except (NoAnswerError, ValueError) as error:
        raise SkippedError(str(error)) from error
    if all(abs(total.item()) < TOLERANCE for total, _ in found.values()):
        raise SkippedError("nothing is observed")
    right = [
        replace(case.right[0], loss=-total.item(), gradients=gradients_of(-total, case.pair.parameters))
        for total, _ in found.values()
    ]
    model = case.engine.collapse(case.pair.model)
    if case.description.seed % 4 == 0:
        with case.all_zero(), suppress(Exception):
            case.collapsed(model)
    for _ in range(2):
        replace(case, right=right).compare(*case.collapsed(model))


def _drawn_loss(case: Case) -> None:
    """A loss of one draw is the loss at some joint value."""
    elbo = case.engine.elbo("reinforce")
    case.gradients(elbo)
    for _ in range(2):
        _member(case.loss(elbo), [a.losses for a in case.right])


def _member(loss: float, possible: list[Tensor]) -> None:
    values = torch.cat(possible)
    nearest = values[(values - loss).abs().argmin()].item()
    if not math.isclose(loss, nearest, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise DisagreementError(f"loss {loss:.6f} is that of no draw; the nearest of {len(values)} is {nearest:.6f}")


def _bound(case: Case) -> None:
    """The bound of two particles, all data jointly: of each draw that of some pair of joint values."""
    case.needs_bound()
    elbo = case.engine.bound("reinforce", num_particles=2, datum_plates=())
    for _ in range(2):
        _member(case.loss(elbo), [a.bounds for a in case.right])


def _data_bound(case: Case) -> None:
    """The bound of each datum, for the plates that are found to be those of the data: it is one, and a draw's is that
    of some pair of joint values with the same values of what the particles share."""
    case.needs_bound()
    if any(getattr(s, "scale", "") for s in case.description.sites()):
        raise SkippedError("the weights of a scaled program are other ones")
    elbo = case.engine.bound("reinforce", num_particles=2)
    loss = case.loss(elbo)
    plates = elbo.plan.layout.datum
    if not plates:
        raise SkippedError("all data are bounded jointly")
    try:
        expected, possible = data_bounds(case.description, case.right[0].runs, plates)
    except JoinedDataError as error:
        raise DisagreementError(str(error)) from error
    evidence = case.right[0].evidence
    if expected < evidence - TOLERANCE:
        raise DisagreementError(f"the bound for {sorted(plates)} is {expected:.6f}, minus the evidence {evidence:.6f}")
    _member(loss, [possible])


CHECKS: dict[str, Callable[[Case], None]] = {
    "exact": _exact,
    "particles": _beside,
    "captured": _captured,
    "auto": _automatic,
    "renumbered": _renumbered,
    "captured anew": _captured_anew,
    "moved": _moved,
    "collapsed": _collapsed,
    "draw": _drawn_loss,
    "bound": _bound,
    "data bound": _data_bound,
    "posterior": marginals,
    "computed": computed,
    "mode": mode,
    "samples": samples,
    "estimate": estimate,
    "bound estimate": bound_estimate,
}
"""What is checked, by name."""
EVERY = {
    "particles": 3,
    "renumbered": 2,
    "captured": 10,
    "captured anew": 7,
    "moved": 3,
    "collapsed": 2,
    "computed": 3,
    "samples": 10,
    "estimate": 10,
    "bound estimate": 10,
}
"""What is run on every so-manyth program alone."""
