"""What a generated pair has to give: by a run of the plain program for every joint value, without the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_discrete.diagnostics.assignments import AssignValues, Choices, innermost
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["Answer", "NoAnswerError", "Run", "answers", "evidence", "features", "gradients_of"]

BUDGET = 4096


class NoAnswerError(ValueError):
    """The program has no right answer that could be compared with."""


@dataclass(frozen=True)
class Answer:
    """What is right for one choice of subsamples.

    - `loss`: minus the evidence lower bound. `gradients`: by the parameters' names, zero where nothing depends on it.
    - `losses`: the loss at each joint value of the guide's sites, `[assignments]`; `weights`: their probabilities.
    - `bound`: minus the bound of two particles, all data jointly; `bounds`: of each pair, `[assignments^2]`.
    - `guided`, `own`: marginals, as means of features, of the guide's sites and of those that the model alone has.
    - `products`: means of the products of the first features of two sites, one at least of the guide.
    - `evidence`: minus the log evidence, as far as the guide's values reach.
    - `certain`: names of sites that every run has. `mode`: the most probable values of the guide's sites under q, and
      given these of the model's own; `clear`: by how much, in logarithms, these are more probable than others.
    - `runs`: all of it, by joint values of the guide's sites.
    """

    loss: float
    gradients: dict[str, Tensor]
    losses: Tensor
    weights: Tensor
    bound: float
    bound_gradients: dict[str, Tensor]
    bounds: Tensor
    guided: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    products: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    evidence: float = 0.0
    certain: frozenset[str] = frozenset()
    mode: dict[str, Tensor] = field(default_factory=dict)
    clear: float = 0.0
    runs: list[Run] = field(default_factory=list)

    @property
    def means(self) -> dict[str, Tensor]:
        """Of the features of all sites."""
        return self.guided | self.own


@dataclass
class Run:
    """A joint value of the guide's sites: its probability, log p less log q, and what the sites are there."""

    weight: Tensor
    log_p: Tensor
    log_q: Tensor
    values: dict[str, Tensor]
    own: _Own


@dataclass
class _Own:
    """The model's own sites given the guide's: means of features, most probable values, and how clearly these are."""

    means: dict[str, Tensor]
    best: dict[str, Tensor]
    clear: float


@dataclass
class _OwnRun:
    """A joint value of the model's own sites: its log-probability with and without scales, and their scale."""

    joint: Tensor
    plain: Tensor
    values: dict[str, Tensor]
    scale: float


class _AssignInOrder(AssignValues):
    """A subsample is an ordered one: what a program makes of its elements may hang on which comes first."""

    def _subsample(self, name: str, fn: Any) -> Tensor:
        if fn.subsample_size in (None, fn.size):
            return torch.arange(fn.size)
        orders = list(permutations(range(fn.size), fn.subsample_size))
        index = self.choices.take(name, len(orders))
        self.subsets.append((name, index))
        self.weight = self.weight / len(orders)
        return torch.tensor(orders[index])


def answers(pair: Pair) -> list[Answer]:
    """The right answers, one for each choice of subsamples (those that a program draws; else a single one)."""
    groups: dict[Any, list[Run]] = {}
    choices, more = Choices(BUDGET), True
    while more:
        choices.restart()
        assign = _AssignInOrder(choices, nodes=0)
        with assign:
            trace = poutine.trace(pair.guide).get_trace(*pair.args)
        trace.compute_log_prob()
        log_q = torch.zeros(())
        for site in trace.nodes.values():
            if site["type"] == "sample" and (not site["is_observed"] or isinstance(site["fn"], Unit)):
                log_q = log_q + torch.as_tensor(site["log_prob"]).sum()
        drawn = {n: assign.values[n] for n in assign.enumerated}
        for subsets, (log_p, own) in evidence(pair, assign.values).items():
            key = (tuple(assign.subsets), subsets)
            groups.setdefault(key, []).append(Run(assign.weight, log_p, log_q, drawn, own))
        more = choices.advance()
    return [_answer(runs, pair.parameters) for runs in groups.values()]


def evidence(pair: Pair, given: Mapping[str, Tensor]) -> dict[Any, tuple[Tensor, _Own]]:
    """log p(data, given) by the model's subsamples, with the means of the features of the model's own sites.

    Means are left out where scales change them: a posterior is of probabilities, not of powers of them.
    The model's own sites are summed out: s log sum p(own) prod p(rest)^(s' / s), where s is the scale around them and
    s' that of another term. A mask of theirs does not change what they are drawn from.
    """
    groups: dict[Any, list[_OwnRun]] = {}
    choices, more = Choices(BUDGET), True
    while more:
        choices.restart()
        assign = _AssignInOrder(choices, 0, given)
        with assign:
            trace = poutine.trace(pair.model).get_trace(*pair.args)
        trace.compute_log_prob()
        scales = {float(trace.nodes[n]["scale"]) for n in assign.enumerated}
        if len(scales) > 1:
            raise NoAnswerError(f"the model's own sites have several scales: {scales}")
        scale = scales.pop() if scales else 1.0
        total = plain = torch.zeros(())
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            if name in assign.enumerated:
                prior = innermost(site["fn"]).log_prob(site["value"]).sum()
                total, plain = total + prior, plain + prior
            else:
                factor: Any = torch.as_tensor(site["scale"]) / scale
                total = total + scale_and_mask(site["unscaled_log_prob"], factor, site["mask"]).sum()
                plain = plain + scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"]).sum()
        values = {n: assign.values[n] for n in assign.enumerated}
        groups.setdefault(tuple(assign.subsets), []).append(_OwnRun(total, plain.detach(), values, scale))
        more = choices.advance()
    found = {}
    for subsets, runs in groups.items():
        if len({run.scale for run in runs}) > 1:
            raise NoAnswerError("the scale of the model's own sites changes with their values")
        joint = torch.stack([run.joint for run in runs])
        shares, plain = joint.detach().softmax(0), torch.stack([run.plain for run in runs]).softmax(0)
        names = _alike([run.values for run in runs]) if torch.allclose(shares, plain) else set()
        means = {
            n: torch.stack([p * features(run.values[n]) for p, run in zip(shares, runs, strict=True)]).sum(0)
            for n in names
        }
        best = runs[int(plain.argmax())].values
        found[subsets] = (runs[0].scale * joint.logsumexp(0), _Own(means, best, _clearness(plain)))
    return found


def _alike(runs: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The names that all runs have, with values of one shape."""
    return [n for n, v in runs[0].items() if all(n in run and run[n].shape == v.shape for run in runs)]


def _clearness(probabilities: Tensor) -> float:
    """By how much the greatest exceeds the next, in logarithms."""
    if len(probabilities) < 2:
        return float("inf")
    first, second = probabilities.log().topk(2).values
    return (first - second).item()


def features(value: Tensor) -> Tensor:
    """Indicators of an integer's values 0, 1 and 2; other values as they are."""
    if value.is_floating_point():
        return value
    return torch.nn.functional.one_hot(value, 3).to(torch.get_default_dtype())


def _answer(runs: list[Run], parameters: Mapping[str, Tensor]) -> Answer:
    weights = torch.stack([r.weight for r in runs])
    weights = weights / weights.detach().sum()
    log_w = torch.stack([r.log_p - r.log_q for r in runs])
    loss = -(weights * log_w).sum()
    pairs = -(torch.logaddexp(log_w[:, None], log_w) - torch.tensor(2.0).log())
    bound = (weights[:, None] * weights * pairs).sum()
    plain = weights.detach()
    guided = {}
    for name in _alike([r.values for r in runs]):
        guided[name] = _mean(plain, [features(r.values[name].detach()) for r in runs])
    own = {}
    for name in _alike([r.own.means for r in runs]):
        own[name] = _mean(plain, [r.own.means[name] for r in runs])
    products = {}
    for one in guided:
        first = torch.stack([features(r.values[one].detach()).flatten()[0] for r in runs])
        for other in [*guided, *own]:
            means = [r.own.means[other] if other in own else features(r.values[other].detach()) for r in runs]
            if one != other:
                products[one, other] = (plain * first * torch.stack([m.flatten()[0] for m in means])).sum()
    best = runs[int(plain.argmax())]
    certain = frozenset(guided) | frozenset(own)
    return Answer(
        loss.item(),
        gradients_of(loss, parameters),
        -log_w.detach(),
        plain,
        bound.item(),
        gradients_of(bound, parameters),
        pairs.detach().flatten(),
        guided,
        own,
        products,
        -(plain.log() + log_w.detach()).logsumexp(0).item(),
        certain,
        best.values | best.own.best,
        min(_clearness(plain), best.own.clear),
        runs,
    )


def _mean(weights: Tensor, values: list[Tensor]) -> Tensor:
    return torch.tensordot(weights, torch.stack(values), dims=1)


def gradients_of(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A value's gradient for each parameter, zero where it reads none."""
    if not value.requires_grad:
        return {n: torch.zeros_like(p) for n, p in parameters.items()}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found, strict=True)}
