"""Every value that coupled draws can take, with its exact probability: expectations of estimators without sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

from pyro_discrete.estimators.base import Draw, Estimator
from pyro_discrete.families import Family

PHIS = [0.0, 0.1, -0.1, 1.0, -1.0, 4.0, -4.0, 8.0, -8.0, 15.0, -15.0]
LOGITS = [torch.tensor(x, dtype=torch.float64) for x in ([0.4, -1.2, 0.9], [3.0, -0.2, -4.0], [0.0, 8.0, -15.0])]

Regions = list[tuple[tuple[int, ...], float]]
"""What coupled draws of one bit can be, and how probable each is."""


@dataclass
class Site:
    """What `draw` reads of a site."""

    logits: Tensor
    family: Family = Family.BERNOULLI
    event_dim: int = 0
    name: str = "z"


def gradient(estimator: Estimator, value: Tensor, logits: Tensor, cost: Tensor, event_dim: int = 0, **extra) -> Tensor:
    """The gradient on logits `[K, *batch, *event]` that the estimator makes of values and costs."""
    logits = logits.clone().requires_grad_()
    draw = Draw(value, logits=logits, event_dim=event_dim, extra=extra)
    draw = draw.replace(log_q=score(value[0], logits, event_dim))
    (found,) = torch.autograd.grad(estimator.surrogate(draw, cost).loss.sum(), logits)
    return found


def score(value: Tensor, logits: Tensor, event_dim: int) -> Tensor:
    """log q of bits, or of integers where the logits have a dim for categories."""
    if value.dim() < logits.dim():
        return logits.log_softmax(-1).gather(-1, value.unsqueeze(-1)).squeeze(-1)
    log_q = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(value)
    return log_q.flatten(log_q.dim() - event_dim).sum(-1) if event_dim else log_q


def pair_regions(phi: float) -> Regions:
    """(b, b') of an antithetic pair: apart both ways with the smaller probability, else both what is likely."""
    r = 1 / (1 + math.exp(abs(phi)))
    likely = int(phi > 0)
    return [((1, 0), r), ((0, 1), r), ((likely, likely), (1 / (1 + math.exp(-abs(phi)))) - r)]


def copula_regions(phi: float, draws: int, copula: str) -> Regions:
    """n bits coupled by a copula: which of them have the rarer value, with probabilities by inclusion and exclusion.

    u_i < r is d_i > a with a = 1 - r^(1 / (n - 1)), and P(d_i > a for all i in S) = max(0, 1 - |S| a)^(n - 1).
    """
    r, rare = 1 / (1 + math.exp(abs(phi))), int(phi <= 0)
    a = 1 - r ** (1 / (draws - 1))

    def all_of(size: int) -> float:
        if copula == "independent":
            return r**size
        return 1.0 if size == 0 else max(0.0, 1 - size * a) ** (draws - 1)

    out = []
    for size in range(draws + 1):
        exactly = sum((-1) ** k * math.comb(draws - size, k) * all_of(size + k) for k in range(draws - size + 1))
        out += [
            (tuple(rare if i in members else 1 - rare for i in range(draws)), exactly)
            for members in combinations(range(draws), size)
        ]
    return out


def joint(regions: list[Regions]) -> Iterator[tuple[Tensor, float]]:
    """Independent bits together: values `[n, bits]` and their probability, where that is not zero."""
    for chosen in product(*regions):
        probability = math.prod(p for _, p in chosen)
        if probability > 0:
            yield torch.tensor([bits for bits, _ in chosen], dtype=torch.float64).T, probability


def moments(parts: Iterator[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of gradients with their probabilities, which have to sum to one."""
    values, weights = zip(*parts, strict=True)
    weight, value = torch.tensor(weights, dtype=torch.float64), torch.stack(values)
    assert abs(weight.sum().item() - 1) < 1e-9
    shape = (-1,) + (1,) * (value.dim() - 1)
    mean = (value * weight.reshape(shape)).sum(0)
    return mean, ((value - mean).square() * weight.reshape(shape)).sum(0)


def exact_gradient(probabilities: Callable[[Tensor], Tensor], logits: Tensor, costs: Tensor) -> Tensor:
    """The gradient of sum_z q(z) f(z) on the logits."""
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad((probabilities(logits) * costs).sum(), logits)
    return found


def tangled(b: Tensor) -> Tensor:
    """A cost of three bits `[..., 3]` that does not add up."""
    return (b * torch.tensor([1.0, -0.7, 0.4])).sum(-1).square() + b.prod(-1) - 0.3 * b[..., 0] * b[..., 2]


def exact_of_bits(cost: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The exact gradient on the logits of independent bits."""
    values = torch.tensor(list(product((0.0, 1.0), repeat=len(logits))), dtype=torch.float64)

    def probabilities(phi: Tensor) -> Tensor:
        return torch.distributions.Bernoulli(logits=phi).log_prob(values).sum(-1).exp()

    return exact_gradient(probabilities, logits, cost(values))


def mean_and_variance(
    estimator: Estimator, logits: Tensor, cost: Callable[[Tensor], Tensor], regions: list[Regions]
) -> tuple[Tensor, Tensor]:
    """Of the gradient `[bits]`, summed over all draws of one event."""

    def parts() -> Iterator[tuple[Tensor, float]]:
        for value, probability in joint(regions):
            found = gradient(estimator, value.unsqueeze(1), logits.unsqueeze(0), cost(value).unsqueeze(1), event_dim=1)
            yield found[0], probability

    return moments(parts())
