"""Estimators that are hard forward: for which costs they are exact, and what they are equal to, draw by draw."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    DecoupledStraightThrough,
    GappedStraightThrough,
    GumbelRao,
    ReinMax,
    StraightThrough,
    StraightThroughGumbelSoftmax,
    TraceELBO,
)
from pyro_discrete.errors import SettingError
from tests.support.hard_forward import exact_gradient, expected_gradient, gradient_given, outcomes

LOGITS = torch.tensor([[0.5, -1.0, 0.2], [1.2, 0.0, -0.4]], dtype=torch.float64)
FIRST = torch.tensor([[0.7, -0.4, 1.1], [0.2, 0.9, -1.3]], dtype=torch.float64)
SECOND = torch.tensor([[0.3, -1.0, 0.8], [1.4, 0.1, -0.6], [0.5, 0.9, -0.2]], dtype=torch.float64)


def linear(z):
    return (FIRST * z).sum()


def quadratic(z):
    """Quadratic in the two sites together, with products of the two and squares within each."""
    return (FIRST * z).sum() + z[0] @ SECOND @ z[1] + (FIRST * z).sum().square()


def cubic(z):
    return (FIRST * z).sum() ** 3


def bias(estimator, cost):
    """The largest bias of any coordinate."""
    return (expected_gradient(estimator, LOGITS, cost) - exact_gradient(LOGITS, cost)).abs().max().item()


@pytest.mark.parametrize("estimator", [StraightThrough(), ReinMax()], ids=lambda e: e.name)
def test_exact_for_a_linear_cost(estimator):
    assert bias(estimator, linear) < 1e-15


def test_reinmax_is_exact_for_a_quadratic_cost_and_not_for_a_cubic_one():
    """Two sites of three categories, to rounding; the straight-through estimator is not exact, nor ReinMax at t = 2."""
    assert bias(ReinMax(), quadratic) < 1e-15
    assert bias(ReinMax(), cubic) > 0.01
    assert bias(StraightThrough(), quadratic) > 0.01
    assert bias(ReinMax(temperature=2.0), quadratic) > 0.01


def test_reinmax_is_half_of_straight_through_and_darn_draw_by_draw():
    """DARN: the score function, its signal the linear part of f(D) - f(pi): f'(D) (D - pi) (D - pi)^T."""
    pi = LOGITS.softmax(-1)
    for hard, _ in outcomes(LOGITS):
        point = hard.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cubic(point), point)
        darn = (slope * (hard - pi)).sum(-1, keepdim=True) * (hard - pi)
        both = gradient_given(StraightThrough(), LOGITS, hard, cubic) + darn
        torch.testing.assert_close(gradient_given(ReinMax(), LOGITS, hard, cubic), both / 2, rtol=1e-14, atol=1e-15)


def test_gapped_moves_the_logits_as_the_paper_says():
    """The largest logit to the drawn category, and all others at least a gap below it; no gradient through the move."""
    estimator = GappedStraightThrough(temperature=0.7, gap=0.8)
    for hard, _ in outcomes(LOGITS):
        top = LOGITS.max(-1, keepdim=True).values
        m1 = (top - (LOGITS * hard).sum(-1, keepdim=True)) * hard
        m2 = (LOGITS + 0.8 - top).clamp(min=0) * (1 - hard)
        phi = LOGITS.clone().requires_grad_()
        soft = ((phi + m1 - m2) / 0.7).softmax(-1)
        assert torch.equal(soft.argmax(-1), hard.argmax(-1))
        point = hard.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cubic(point), point)
        (expected,) = torch.autograd.grad(soft, phi, slope)
        torch.testing.assert_close(gradient_given(estimator, LOGITS, hard, cubic), expected)


@pytest.mark.parametrize("phi", [-2.3, -0.6, 0.0, 0.4, 3.0])
@pytest.mark.parametrize(
    "estimator",
    [StraightThrough(0.7), ReinMax(1.4), GappedStraightThrough(0.7, gap=0.8), DecoupledStraightThrough(1.7)],
    ids=lambda e: e.name,
)
def test_a_bernoulli_is_two_categories_with_logits_zero_and_phi(estimator, phi):
    one = torch.tensor([phi], dtype=torch.float64)
    two = torch.tensor([[0.0, phi]], dtype=torch.float64)
    for bit in (0.0, 1.0):
        hard = torch.tensor([bit], dtype=torch.float64)
        binary = gradient_given(estimator, one, hard, lambda z: (2 * z.sum() + 0.3) ** 3, one_hot=False)
        both = torch.stack([1 - hard, hard], -1)
        categorical = gradient_given(estimator, two, both, lambda z: (2 * z[..., 1].sum() + 0.3) ** 3)
        torch.testing.assert_close(binary[0], categorical[0, 1])


def values_at(estimator, logits, one_hot):
    """The gradients that independent estimates lead to, of f = sum of (w z)^2; `[draws, *shape]`."""
    phi = logits.clone().requires_grad_()
    weight = torch.arange(1, 1 + phi.shape[-1]) if one_hot else torch.tensor(1.5)
    (estimator.weights(phi, 0, one_hot) * weight).square().sum().backward()
    return phi.grad


@pytest.mark.statistical
@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "bits"])
def test_gumbel_rao_with_one_draw_is_straight_through_gumbel_softmax_in_distribution(one_hot):
    """Two samples of 40,000 by Kolmogorov and Smirnov, at 1e-6 for each of at most three coordinates."""
    torch.manual_seed(0)
    logits = (torch.tensor([0.8, -0.5, 0.1]) if one_hot else torch.tensor(0.6)).expand(
        40_000, *([3] if one_hot else [])
    )
    made = [
        values_at(e, logits, one_hot).flatten(1) if one_hot else values_at(e, logits, one_hot).unsqueeze(1)
        for e in (GumbelRao(0.6, draws=1), StraightThroughGumbelSoftmax(0.6))
    ]
    for ours, theirs in zip(made[0].T, made[1].T, strict=True):
        both = torch.cat([ours, theirs]).sort().values
        distance = (
            torch.searchsorted(ours.sort().values, both, right=True)
            - torch.searchsorted(theirs.sort().values, both, right=True)
        ).abs().max().item() / len(ours)
        assert distance < 2.69 * (2 / len(ours)) ** 0.5


@pytest.mark.statistical
def test_gumbel_rao_keeps_the_mean_and_loses_variance_with_more_draws():
    torch.manual_seed(0)
    logits = torch.tensor([0.8, -0.5, 0.1]).expand(40_000, 3)
    found = [values_at(GumbelRao(0.6, draws=k), logits, True) for k in (1, 4, 16)]
    variances = [f.var(0).sum().item() for f in found]
    assert variances[0] > 1.1 * variances[1] > 1.1 * 1.02 * variances[2]
    error = (found[0].var(0) / 40_000 + found[2].var(0) / 40_000).sqrt()
    assert bool(((found[0].mean(0) - found[2].mean(0)).abs() < 5 * error).all())  # 5e-7 a coordinate


def one_bit():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.factor("reward", 10.0 * z)


def one_bit_guide():
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("phi", torch.tensor(2.0))))


@pytest.mark.statistical
def test_tempered_draws_are_for_the_gradient_alone():
    """At a forward temperature of 20 steps draw nearly fair bits; `loss()` still draws from the guide (8e-7)."""
    elbo = TraceELBO(DecoupledStraightThrough(forward_temperature=20.0), num_particles=10_000)
    loss = elbo.loss(one_bit, one_bit_guide)
    exact = TraceELBO("enumerate").loss(one_bit, one_bit_guide)
    assert loss == pytest.approx(exact, abs=5 * 12 * 0.33 / 100)
    assert abs(elbo.loss_and_grads(one_bit, one_bit_guide) - exact) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: StraightThrough(0.0),
        lambda: ReinMax(-1.0),
        lambda: GumbelRao(draws=0),
        lambda: GappedStraightThrough(gap=-0.1),
        lambda: GappedStraightThrough(gap=True),
        lambda: DecoupledStraightThrough(forward_temperature=float("inf")),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(SettingError, match="given"):
        make()
