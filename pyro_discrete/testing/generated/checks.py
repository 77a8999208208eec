"""The checks of the net, each of which compares one answer of the engine with the oracle's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.diagnostics.assignments import innermost
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.iwelbo import TraceIWELBO
from pyro_discrete.estimators.score.nvil import NVIL
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.testing.generated.description import Chain, Description, Site
from pyro_discrete.testing.generated.oracle import Answer, Spread
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["CHECKS", "EVERY", "Case", "DisagreementError", "Engine", "SkippedError"]

TOLERANCE = 1e-6
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
)
"""Estimators that are looked at by statistics; a program's seed says which."""
DRAWS, BATCHES = 50, 30
"""Particles of a step, and steps, of a statistical check; ten times the steps before an alarm counts."""
ALARM, CONFIRMED = 6.0, 7.0
"""Standard errors at which a statistical check is repeated, and at which it then counts.

A right estimator alarms at one number in half a million (Student's t of 29 degrees of freedom beyond 6), and in the
repetition, whose draws are fresh, with 300 steps at one in 10^10. Both together happen to a program of 30 numbers less
than once in 10^14; were the errors so far from normal that the first said nothing, still less than once in 10^8.
"""
POSTERIOR_DRAWS = 100
"""Draws of the guide of an averaged marginal; ten times as many before an alarm counts."""
UNLIKELY = 1e-7
"""Probability of a false alarm at a number of an averaged marginal (Bernstein's inequality), before its repetition."""


@dataclass(frozen=True)
class Engine:
    """What is tested; tests put wrong ones here."""

    elbo: Callable[..., Any] = TraceELBO
    bound: Callable[..., Any] = TraceIWELBO
    posterior: Callable[..., Any] = DiscretePosterior


class DisagreementError(Exception):
    """A check met another answer than the right one."""


class SkippedError(Exception):
    """A check does not apply."""


@dataclass
class Case:
    """A program with its right answers."""

    description: Description
    engine: Engine
    pair: Pair
    right: list[Answer]

    def gradients(self, elbo: Any) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients of a step."""
        for leaf in self.pair.parameters.values():
            leaf.grad = None
        loss = elbo.loss_and_grads(self.pair.model, self.pair.guide, *self.pair.args)
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.pair.parameters.items()}
        return loss, found

    def loss(self, elbo: Any) -> float:
        return elbo.loss(self.pair.model, self.pair.guide, *self.pair.args)

    def nearest(self, loss: float) -> Answer:
        """The answer, of those for each subsample, whose loss it is."""
        best = min(self.right, key=lambda a: abs(a.loss - loss))
        if not math.isclose(loss, best.loss, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            several = f" (or another of {len(self.right)} subsamples)" if len(self.right) > 1 else ""
            raise DisagreementError(f"loss {loss:.6f}, right is {best.loss:.6f}{several}")
        return best

    def ordered(self) -> Iterator[Answer]:
        """The answers, for the two orders in which the elements of a random subsample may stand."""
        yield from self.right
        thinned = [p for p in self.description.plates if p.subsample == "random"]
        for plate in thinned:
            dims = {}
            for site in self.description.sites():
                if plate.name in site.plates:
                    of_features = (
                        0 if site.family in ("bernoulli", "binomial") else 1 + (site.family == "pair_of_categoricals")
                    )
                    names = [f"{site.name}_{t}" for t in range(site.length)] if isinstance(site, Chain) else [site.name]
                    dims |= dict.fromkeys(names, plate.dim - of_features)
            yield from (answer.turned(dims) for answer in self.right)

    def compare(self, loss: float, found: Mapping[str, Tensor]) -> None:
        """Raise where the loss and the gradients are not those of an answer."""
        best = self.nearest(loss)
        alike = [a for a in self.right if math.isclose(a.loss, best.loss, rel_tol=1e-5, abs_tol=1e-5)]
        problems = [_first_difference(found, a.gradients) for a in alike]
        if all(problems):
            raise DisagreementError(f"the loss is right, {problems[0]}")


def _first_difference(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    for name, gradient in right.items():
        if not torch.allclose(found[name], gradient, rtol=TOLERANCE, atol=TOLERANCE):
            return f"gradient of {name} {_written(found[name])}, right is {_written(gradient)}"
    return ""


def _written(value: Tensor) -> str:
    return str([round(v, 6) for v in value.flatten().tolist()])


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


def _has_bound(case: Case) -> None:
    if any(p.subsample for p in case.description.plates) or "scale" in case.description.handlers:
        raise SkippedError("scales of the whole program stand outside of a bound")
    if len(case.right) > 1 or len(case.right[0].losses) > 32:
        raise SkippedError("too many pairs of joint values")


def _bound(case: Case) -> None:
    """The bound of two particles, all data jointly: of each draw that of some pair of joint values."""
    _has_bound(case)
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
    problems = [_wrong_marginal(a, found, POSTERIOR_DRAWS) for a in case.ordered()]
    if not all(problems):
        return
    more = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=10 * POSTERIOR_DRAWS)
    found = {n: _mean(d) for n, d in more.marginals(*case.pair.args).items()}
    problems = [_wrong_marginal(a, found, 10 * POSTERIOR_DRAWS) for a in case.ordered()]
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
            now = _written(found[name]) if name in found else "not given"
            raise DisagreementError(f"most probable {name} {now}, right is {_written(right)}")


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
            return f"marginal of {name} {_written(value)}, right is {_written(right)}"
    return ""


def _allowed(spread: Spread, draws: int) -> Tensor:
    """By how much a mean of draws may be off (Bernstein); by nothing where the guide's draws do not matter."""
    most = math.log(2 / UNLIKELY) / draws
    reach = 2 * most / 3  # features lie between 0 and 2
    off = reach + (reach**2 + 2 * spread.variance * most).sqrt()
    return torch.where(spread.variance < 1e-14, torch.full_like(off, TOLERANCE), off)


def _estimate(case: Case) -> None:
    """A sampled estimator's loss and gradient, in the mean."""
    name = SAMPLED[(case.description.seed // 10) % len(SAMPLED)]
    if len(case.right) > 1:
        raise SkippedError("subsamples are drawn")
    setting: Any = NVIL(variance_normalisation=False) if name == "nvil" else name
    if name == "mixed":
        setting = {"z1": "enumerate", "*": "reinforce"}
        if "z1" not in case.right[0].guided:
            raise SkippedError("nothing is mixed")
    elbo = case.engine.elbo(setting, num_particles=DRAWS)
    _by_statistics(case, elbo, case.right[0].loss, case.right[0].gradients, name)


def _bound_estimate(case: Case) -> None:
    """The bound of two particles in the mean, and its gradient."""
    _has_bound(case)
    elbo = case.engine.bound("reinforce", num_particles=2, num_outer_samples=DRAWS, datum_plates=())
    answer = case.right[0]
    _by_statistics(case, elbo, answer.bound, answer.bound_gradients, "bound")


def _by_statistics(case: Case, elbo: Any, loss: float, gradients: Mapping[str, Tensor], name: str) -> None:
    right = torch.cat([torch.tensor([loss]), *(g.flatten() for g in gradients.values())])
    names = ["loss", *(f"gradient of {n}" for n, g in gradients.items() for _ in range(g.numel()))]
    case.gradients(elbo)
    if elbo.plan.path == "sequential":
        raise SkippedError("a run for each draw takes too long")
    for steps, limit in ((BATCHES, ALARM), (10 * BATCHES, CONFIRMED)):
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


CHECKS: dict[str, Callable[[Case], None]] = {
    "exact": _exact,
    "particles": _beside,
    "captured": _captured,
    "auto": _automatic,
    "draw": _drawn_loss,
    "bound": _bound,
    "posterior": _marginals,
    "mode": _mode,
    "estimate": _estimate,
    "bound estimate": _bound_estimate,
}
"""What is checked, by name."""
EVERY = {"particles": 3, "captured": 10, "estimate": 10, "bound estimate": 10}
"""What is run on every so-manyth program alone."""
