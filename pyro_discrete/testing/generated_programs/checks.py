"""The checks of the net, each of which compares one answer of the engine with the oracle's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.diagnostics.assignments import innermost
from pyro_discrete.testing.generated_programs.case import TOLERANCE, Case, DisagreementError, SkippedError, written
from pyro_discrete.testing.generated_programs.description import Site
from pyro_discrete.testing.generated_programs.oracle import Answer, Spread
from pyro_discrete.testing.generated_programs.sampled_checks import bound_estimate, estimate

__all__ = ["CHECKS", "EVERY"]

POSTERIOR_DRAWS = 100
"""Draws of the guide of an averaged marginal; ten times as many before an alarm counts."""
UNLIKELY = 1e-7
"""Probability of a false alarm at a number of an averaged marginal (Bernstein's inequality), before its repetition."""


def _exact(case: Case) -> None:
    """Loss and gradient under "enumerate", and the loss alone."""
    elbo = case.engine.elbo("enumerate")
    case.compare(*case.gradients(elbo))
    case.nearest(case.loss(elbo))


def _beside(case: Case) -> None:
    """The same with two particles beside each other."""
    case.compare(*case.gradients(case.engine.elbo("enumerate", num_particles=2)))


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
        case.nearest(case.loss(elbo))
    else:
        _member(case.loss(elbo), [a.losses for a in case.right])


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


def _marginals(case: Case) -> None:
    """The posterior's marginals: exact at the guide's sites, averages over draws at the model's own."""
    posterior = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=POSTERIOR_DRAWS)
    found = {n: _mean(d) for n, d in posterior.marginals(*case.pair.args).items()}
    for name in sorted(case.right[0].certain):
        if name not in found:
            raise DisagreementError(f"site {name!r} has no marginal")
    problems = [_wrong_marginal(a, found, POSTERIOR_DRAWS) for a in case.right]
    if not all(problems):
        return
    more = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=10 * POSTERIOR_DRAWS)
    found = {n: _mean(d) for n, d in more.marginals(*case.pair.args).items()}
    problems = [_wrong_marginal(a, found, 10 * POSTERIOR_DRAWS) for a in case.right]
    if all(problems):
        raise DisagreementError(problems[0])


def _mode(case: Case) -> None:
    """The most probable joint values, where there is a clear one."""
    if any(s.mask or s.scale for s in case.description.sites() if isinstance(s, Site)) or len(case.right) > 1:
        raise SkippedError("masked terms do not count there, and scaled ones are no probabilities")
    answer = case.right[0]
    if answer.clear < 1e-6:
        raise SkippedError("several values are as probable")
    found = case.engine.posterior(case.pair.model, case.pair.guide).most_probable(*case.pair.args)
    for name, right in answer.mode.items():
        if name not in found or not torch.equal(found[name].to(right), right):
            now = written(found[name]) if name in found else "not given"
            raise DisagreementError(f"most probable {name} {now}, right is {written(right)}")


def _mean(distribution: Any) -> Tensor:
    """The means of the features of a marginal."""
    base = innermost(distribution)
    return base.probs if type(base).__name__ == "Categorical" else base.mean


def _wrong_marginal(answer: Answer, found: Mapping[str, Tensor], draws: int) -> str:
    for name, spread in (answer.guided | answer.own).items():
        right = spread.mean
        value = found[name]
        if value.dim() == right.dim() + 1:  # a count's categorical
            value = value @ torch.arange(value.shape[-1]).to(value)
        if value.shape != right.shape:
            return f"the marginal of {name} has shape {tuple(value.shape)}, not {tuple(right.shape)}"
        allowed = torch.full_like(right, TOLERANCE)
        if name in answer.own:
            allowed = _allowed(spread, draws)
        if ((value - right).abs() > allowed).any():
            return f"marginal of {name} {written(value)}, right is {written(right)}"
    return ""


def _allowed(spread: Spread, draws: int) -> Tensor:
    """By how much a mean of draws may be off (Bernstein); by nothing where the guide's draws do not matter."""
    most = math.log(2 / UNLIKELY) / draws
    reach = 2 * most / 3  # features lie between 0 and 2
    off = reach + (reach**2 + 2 * spread.variance * most).sqrt()
    return torch.where(spread.variance < 1e-14, torch.full_like(off, TOLERANCE), off)


CHECKS: dict[str, Callable[[Case], None]] = {
    "exact": _exact,
    "particles": _beside,
    "captured": _captured,
    "auto": _automatic,
    "draw": _drawn_loss,
    "bound": _bound,
    "posterior": _marginals,
    "mode": _mode,
    "estimate": estimate,
    "bound estimate": bound_estimate,
}
"""What is checked, by name."""
EVERY = {"particles": 3, "captured": 10, "estimate": 10, "bound estimate": 10}
"""What is run on every so-manyth program alone."""
