"""The checks of the net on posteriors: marginals, most probable values, the law of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.diagnostics.assignments import innermost
from pyro_discrete.testing.generated_programs.case import TOLERANCE, Case, DisagreementError, SkippedError, written
from pyro_discrete.testing.generated_programs.description import Site
from pyro_discrete.testing.generated_programs.oracle import Answer, features

__all__ = ["computed", "marginals", "mode", "samples"]

DRAWS = 500
"""Joint draws of the check of samples; ten times as many before an alarm counts."""
UNLIKELY = 1e-7
"""Probability of a false alarm at a number of it (Bernstein's inequality), before its repetition."""


def marginals(case: Case) -> None:
    """The posterior's marginals: exact, as the guide has few joint values."""
    posterior = case.engine.posterior(case.pair.model, case.pair.guide)
    found = {n: _mean(d) for n, d in posterior.marginals(*case.pair.args).items()}
    for name in sorted(case.right[0].certain):
        if name not in found:
            raise DisagreementError(f"site {name!r} has no marginal")
    _compare(case, found)


def computed(case: Case) -> None:
    """The same of the model's own sites, asked for in Pyro's way."""
    elbo = case.engine.elbo("enumerate")
    found = elbo.compute_marginals(case.pair.model, case.pair.guide, *case.pair.args)
    _compare(case, {n: _mean(d) for n, d in found.items()}, own_alone=True)


def _compare(case: Case, found: Mapping[str, Tensor], own_alone: bool = False) -> None:
    problems = [_wrong_marginal(a.own if own_alone else {**a.guided, **a.own}, found) for a in case.right]
    if all(problems):
        raise DisagreementError(problems[0])


def mode(case: Case) -> None:
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


def samples(case: Case) -> None:
    """Joint draws have the marginals' means, and those of products of the guide's sites with each other and the own."""
    for draws in (DRAWS, 10 * DRAWS):
        found = case.engine.posterior(case.pair.model, case.pair.guide, num_samples=draws).samples(*case.pair.args)
        problems = [_unlikely(answer, found, draws) for answer in case.right]
        if not all(problems):
            return
    raise DisagreementError(problems[0])


def _unlikely(answer: Answer, found: Mapping[str, Tensor], draws: int) -> str:
    numbers = {name: features(found[name]).to(torch.get_default_dtype()) for name in answer.means}
    for name, right in answer.means.items():
        off = (numbers[name].mean(0) - right).abs() - _allowed(right, 2.0, draws)
        if (off > 0).any():
            return f"samples of {name} have means {written(numbers[name].mean(0))}, right is {written(right)}"
    for (one, other), right in answer.products.items():
        drawn = numbers[one].reshape(draws, -1)[:, 0] * numbers[other].reshape(draws, -1)[:, 0]
        if (drawn.mean() - right).abs() > _allowed(right, 4.0, draws):
            return f"samples of {one} times {other} have mean {drawn.mean():.4f}, right is {right:.4f}"
    return ""


def _allowed(right: Tensor, most: float, draws: int) -> Tensor:
    """By how much a mean of draws between 0 and `most` may be off (Bernstein)."""
    exponent = math.log(2 / UNLIKELY) / draws
    reach = most * exponent / 3
    return reach + (reach**2 + 2 * right * (most - right).clamp(min=0) * exponent).sqrt() + TOLERANCE


def _mean(distribution: Any) -> Tensor:
    """The means of the features of a marginal."""
    base = innermost(distribution)
    return base.probs if type(base).__name__ == "Categorical" else base.mean


def _wrong_marginal(right: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    for name, mean in right.items():
        if name not in found:
            return f"site {name!r} has no marginal"
        value = found[name]
        if value.dim() == mean.dim() + 1:  # a count's categorical
            value = value @ torch.arange(value.shape[-1]).to(value)
        if value.shape != mean.shape:
            return f"the marginal of {name} has shape {tuple(value.shape)}, not {tuple(mean.shape)}"
        if ((value - mean).abs() > TOLERANCE).any():
            return f"marginal of {name} {written(value)}, right is {written(mean)}"
    return ""
