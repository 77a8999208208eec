"""The net: whether what the engine says of a generated pair is what the oracle says."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_discrete.diagnostics.assignments import innermost
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.iwelbo import TraceIWELBO
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.testing.generated.description import Chain, Description
from pyro_discrete.testing.generated.oracle import Answer, NoAnswerError, Spread, answers
from pyro_discrete.testing.generated.source import build
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["CHECKS", "Engine", "Finding", "Verdict", "check"]

TOLERANCE = 1e-6
SAMPLED = ("reinforce", "rloo", "nvil", "disarm", "coupled", "sum_and_sample", "double_cv", "indecater", "arms")
"""Estimators that are looked at by statistics; a program's seed says which."""
DRAWS, BATCHES = 50, 30
"""Particles of a step, and steps, of a statistical check; ten times the steps before an alarm counts."""
ALARM, CONFIRMED = 6.0, 7.0
"""Standard errors at which a statistical check is repeated, and at which it then counts.

With 30 steps, whose means have nearly normal errors, a right estimator alarms at one number in a million (Student's t of
29 degrees of freedom: 1.6e-6); the repetition has fresh draws and 300 steps (1.7e-11). Both happen by chance in one of
10^16 numbers, and with errors far from normal the second alone is what is counted on: below 1e-6 a program.
"""
WIDEST = "pair_of_categoricals"
POSTERIOR_DRAWS = 100
UNLIKELY = 1e-7
"""Probability of a false alarm at a number of an averaged marginal (Bernstein's inequality), before its repetition."""


@dataclass(frozen=True)
class Engine:
    """What is tested; tests put wrong ones here."""

    elbo: Callable[..., Any] = TraceELBO
    bound: Callable[..., Any] = TraceIWELBO
    posterior: Callable[..., Any] = DiscretePosterior


@dataclass(frozen=True)
class Finding:
    """What a check found: `kind` is "passed", "refused", "skipped" or "wrong"."""

    check: str
    kind: str
    text: str = ""


@dataclass
class Verdict:
    """All findings of a program."""

    description: Description
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What disagreed."""
        return [f for f in self.findings if f.kind == "wrong"]

    @property
    def kind(self) -> str:
        """The worst of it: "wrong", "refused" (the exact loss was) or "passed"."""
        kinds = Counter(f.kind for f in self.findings)
        return next((k for k in ("wrong", "refused", "passed") if kinds[k]), "skipped")


class _DisagreementError(Exception):
    """A check met another answer than the right one."""


class _SkippedError(Exception):
    """A check does not apply."""


def check(
    description: Description,
    engine: Engine | None = None,
    only: tuple[str, ...] | None = None,
    sampled: bool | None = None,
) -> Verdict:
    """Run the checks on a program.

    - `only`: names of `CHECKS`; all by default. `sampled`: whether statistical ones are run (of every tenth seed).
    """
    engine = Engine() if engine is None else engine
    sampled = description.seed % 10 == 0 if sampled is None else sampled
    verdict = Verdict(description)
    with _on_its_own(description.seed):
        try:
            pair = build(description)
            right = answers(pair)
        except NoAnswerError as reason:
            verdict.findings.append(Finding("oracle", "skipped", str(reason)))
            return verdict
        except Exception as error:  # the program is no Pyro program: the generator's fault
            verdict.findings.append(Finding("oracle", "wrong", f"the oracle failed: {_brief(error)}"))
            return verdict
        case = _Case(description, engine, pair, right)
        for name, run in CHECKS.items():
            if (only is not None and name not in only) or (name in STATISTICAL and not sampled):
                continue
            torch.manual_seed(description.seed)
            try:
                run(case)
                verdict.findings.append(Finding(name, "passed"))
            except _SkippedError as reason:
                verdict.findings.append(Finding(name, "skipped", str(reason)))
            except _DisagreementError as found:
                verdict.findings.append(Finding(name, "wrong", str(found)))
            except DiscreteInferenceError as error:
                verdict.findings.append(Finding(name, "refused", _brief(error)))
            except Exception as error:
                verdict.findings.append(Finding(name, "wrong", f"raised {_brief(error)}"))
    return verdict


@contextmanager
def _on_its_own(seed: int) -> Iterator[None]:
    """Float64, a param store and a random state of its own, and no warnings."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            torch.set_num_threads(threads)


def _brief(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def reason(finding: Finding) -> str:
    """A refusal without its names and numbers, to be counted."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", finding.text))[:160]


@dataclass
class _Case:
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
            raise _DisagreementError(f"loss {loss:.6f}, right is {best.loss:.6f}{several}")
        return best

    def ordered(self) -> Iterator[Answer]:
        """The answers, for the two orders in which the elements of a random subsample may stand."""
        yield from self.right
        thinned = [p for p in self.description.plates if p.subsample == "random"]
        for plate in thinned:
            dims = {}
            for site in self.description.sites():
                if plate.name in site.plates:
                    of_features = 0 if site.family in ("bernoulli", "binomial") else 1 + (site.family == WIDEST)
                    names = [f"{site.name}_{t}" for t in range(site.length)] if isinstance(site, Chain) else [site.name]
                    dims |= dict.fromkeys(names, plate.dim - of_features)
            yield from (answer.turned(dims) for answer in self.right)

    def compare(self, loss: float, found: Mapping[str, Tensor]) -> None:
        """Raise where the loss and the gradients are not those of an answer."""
        best = self.nearest(loss)
        alike = [a for a in self.right if math.isclose(a.loss, best.loss, rel_tol=1e-5, abs_tol=1e-5)]
        problems = [_first_difference(found, a.gradients) for a in alike]
        if all(problems):
            raise _DisagreementError(f"the loss is right, {problems[0]}")


def _first_difference(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    for name, gradient in right.items():
        if not torch.allclose(found[name], gradient, rtol=TOLERANCE, atol=TOLERANCE):
            return f"gradient of {name} {_written(found[name])}, right is {_written(gradient)}"
    return ""


def _written(value: Tensor) -> str:
    return str([round(v, 6) for v in value.flatten().tolist()])


def _exact(case: _Case) -> None:
    """Loss and gradient under "enumerate", and the loss alone."""
    elbo = case.engine.elbo("enumerate")
    case.compare(*case.gradients(elbo))
    case.nearest(case.loss(elbo))


def _automatic(case: _Case) -> None:
    """Under "auto" the same where its plan is exact, else a loss that some draw has."""
    elbo = case.engine.elbo()
    loss, found = case.gradients(elbo)
    if elbo.plan.path == "enumerated":
        case.compare(loss, found)
        case.nearest(case.loss(elbo))
    else:
        _member(case.loss(elbo), [a.losses for a in case.right])


def _drawn_loss(case: _Case) -> None:
    """A loss of one draw is the loss at some joint value."""
    elbo = case.engine.elbo("reinforce")
    case.gradients(elbo)
    for _ in range(2):
        _member(case.loss(elbo), [a.losses for a in case.right])


def _member(loss: float, possible: list[Tensor]) -> None:
    values = torch.cat(possible)
    nearest = values[(values - loss).abs().argmin()].item()
    if not math.isclose(loss, nearest, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise _DisagreementError(f"loss {loss:.6f} is that of no draw; the nearest of {len(values)} is {nearest:.6f}")


def _has_bound(case: _Case) -> None:
    if any(p.subsample for p in case.description.plates) or "scale" in case.description.handlers:
        raise _SkippedError("scales of the whole program stand outside of a bound")
    if len(case.right) > 1 or len(case.right[0].losses) > 32:
        raise _SkippedError("too many pairs of joint values")


def _bound(case: _Case) -> None:
    """The bound of two particles, all data jointly: of each draw that of some pair of joint values."""
    _has_bound(case)
    elbo = case.engine.bound("reinforce", num_particles=2, datum_plates=())
    for _ in range(2):
        _member(case.loss(elbo), [a.bounds for a in case.right])


def _marginals(case: _Case) -> None:
    """The posterior's marginals: exact at the guide's sites, averages over draws at the model's own."""
    posterior = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=POSTERIOR_DRAWS)
    found = {n: _mean(d) for n, d in posterior.marginals(*case.pair.args).items()}
    for name in sorted(case.right[0].certain):
        if name not in found:
            raise _DisagreementError(f"site {name!r} has no marginal")
    problems = [_wrong_marginal(a, found, POSTERIOR_DRAWS) for a in case.ordered()]
    if not all(problems):
        return
    more = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=10 * POSTERIOR_DRAWS)
    found = {n: _mean(d) for n, d in more.marginals(*case.pair.args).items()}
    problems = [_wrong_marginal(a, found, 10 * POSTERIOR_DRAWS) for a in case.ordered()]
    if all(problems):
        raise _DisagreementError(problems[0])


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


def _estimate(case: _Case) -> None:
    """A sampled estimator's loss and gradient, in the mean."""
    name = SAMPLED[(case.description.seed // 10) % len(SAMPLED)]
    if len(case.right) > 1:
        raise _SkippedError("subsamples are drawn")
    setting: Any = name
    if name == "nvil":
        from pyro_discrete.estimators.score.nvil import NVIL

        setting = NVIL(variance_normalisation=False)
    elbo = case.engine.elbo(setting, num_particles=DRAWS)
    _by_statistics(case, elbo, case.right[0].loss, case.right[0].gradients, name)


def _bound_estimate(case: _Case) -> None:
    """The bound of two particles in the mean, and its gradient."""
    _has_bound(case)
    elbo = case.engine.bound("reinforce", num_particles=2, num_outer_samples=DRAWS, datum_plates=())
    answer = case.right[0]
    _by_statistics(case, elbo, answer.bound, answer.bound_gradients, "bound")


def _by_statistics(case: _Case, elbo: Any, loss: float, gradients: Mapping[str, Tensor], name: str) -> None:
    right = torch.cat([torch.tensor([loss]), *(g.flatten() for g in gradients.values())])
    names = ["loss", *(f"gradient of {n}" for n, g in gradients.items() for _ in range(g.numel()))]
    case.gradients(elbo)
    if elbo.plan.path == "sequential":
        raise _SkippedError("a run for each draw takes too long")
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
    raise _DisagreementError(
        f"{name}: {names[worst]} {stacked.mean(0)[worst]:.5f} +- {error[worst]:.5f}, right is {right[worst]:.5f}"
    )


CHECKS: dict[str, Callable[[_Case], None]] = {
    "exact": _exact,
    "auto": _automatic,
    "draw": _drawn_loss,
    "bound": _bound,
    "posterior": _marginals,
    "estimate": _estimate,
    "bound estimate": _bound_estimate,
}
"""What is checked, by name."""
STATISTICAL = ("estimate", "bound estimate")
