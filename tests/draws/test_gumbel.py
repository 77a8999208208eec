"""Gumbel noise, truncated and conditional, and draws with and without replacement: against enumeration."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from pyro_discrete import gumbel_max, gumbel_top_k, log_prob_ordered, log_prob_unordered, truncated_gumbel
from pyro_discrete.draws.gumbel import conditional_gumbel, gumbel_like, logistic_like
from pyro_discrete.errors import SettingError

LOGITS = torch.tensor([0.7, -1.2, 0.1, 1.5, -0.4], dtype=torch.float64)


def ordered_by_hand(logits, order):
    p, left, total = logits.softmax(-1), 1.0, 1.0
    for index in order:
        total, left = total * p[index].item() / left, left - p[index].item()
    return total


def distance(sample, cdf):
    """Kolmogorov's distance of a sample from a distribution."""
    ordered = sample.sort().values
    steps = torch.arange(1, len(sample) + 1, dtype=sample.dtype) / len(sample)
    return max((cdf(ordered) - steps).abs().max().item(), (cdf(ordered) - steps + 1 / len(sample)).abs().max().item())


@pytest.mark.statistical
def test_noise_has_its_distribution():
    """Kolmogorov at 1e-6 each: 2.7 / sqrt(n)."""
    torch.manual_seed(0)
    many = torch.zeros(100_000, dtype=torch.float64)
    assert distance(gumbel_like(many), lambda x: (-(-x).exp()).exp()) < 2.7 / math.sqrt(len(many))
    assert distance(logistic_like(many), torch.sigmoid) < 2.7 / math.sqrt(len(many))

    def truncated(x):
        return ((-(0.3 - x).exp()) + math.exp(0.3 - 0.2)).exp()

    draws = truncated_gumbel(many + 0.3, torch.tensor(0.2, dtype=torch.float64))
    assert bool((draws <= 0.2).all())
    assert distance(draws, truncated) < 2.7 / math.sqrt(len(many))


def test_a_truncation_that_does_not_bind_or_binds_hard():
    torch.manual_seed(0)
    location = torch.tensor([0.0, 3.0, -torch.inf])
    assert bool((truncated_gumbel(location, torch.tensor(-80.0)) <= -80.0).all())
    assert truncated_gumbel(location, torch.tensor(1e6))[2] == -torch.inf
    assert bool(truncated_gumbel(location, torch.tensor(1e6))[:2].isfinite().all())


@pytest.mark.statistical
def test_conditional_noise_is_the_noise_given_its_argmax():
    """Rejection sampling as the reference: means of each coordinate, 5.5 standard errors (4e-8 each)."""
    torch.manual_seed(0)
    logits = LOGITS.expand(200_000, 5)
    perturbed = logits + gumbel_like(logits)
    for index in range(5):
        reference = perturbed[perturbed.argmax(-1) == index]
        hard = torch.eye(5, dtype=torch.float64)[index].expand(len(reference), 5)
        ours = conditional_gumbel(logits[: len(reference)], hard)
        assert bool((ours.argmax(-1) == index).all())
        for power in (1, 2):
            a, b = ours**power, reference**power
            error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
            assert bool(((a.mean(0) - b.mean(0)).abs() < 5.5 * error).all())


@pytest.mark.statistical
def test_gumbel_max_draws_the_categorical_and_top_k_without_replacement():
    """Counts of all 20 ordered pairs and of 5 categories: chi-square of 19 and 4 degrees at 1e-6."""
    torch.manual_seed(0)
    many = 100_000
    counts = torch.bincount(gumbel_max(LOGITS.expand(many, 5)), minlength=5)
    expected = many * LOGITS.softmax(-1)
    assert ((counts - expected) ** 2 / expected).sum() < 33.4
    pairs, perturbed = gumbel_top_k(LOGITS.expand(many, 5), 2)
    assert bool((perturbed[:, 0] > perturbed[:, 1]).all())
    chi = 0.0
    for order in permutations(range(5), 2):
        expected_pair = many * ordered_by_hand(LOGITS, order)
        found = int((pairs == torch.tensor(order)).all(-1).sum())
        chi += (found - expected_pair) ** 2 / expected_pair
    assert chi < 65.4


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_log_probabilities_are_those_of_enumeration(k):
    orders = torch.tensor(list(permutations(range(5), k)))
    found = log_prob_ordered(LOGITS + 3.0, orders)  # normalised or not
    by_hand = torch.tensor([ordered_by_hand(LOGITS, order) for order in orders.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found.exp(), by_hand)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    sets: dict[tuple[int, ...], float] = {}
    for order, p in zip(orders.tolist(), by_hand.tolist(), strict=True):
        sets[tuple(sorted(order))] = sets.get(tuple(sorted(order)), 0.0) + p
    unordered = log_prob_unordered(LOGITS - 2.0, torch.tensor(list(sets)))
    torch.testing.assert_close(unordered.exp(), torch.tensor(list(sets.values()), dtype=torch.float64))


@pytest.mark.parametrize("log_prob", [log_prob_ordered, log_prob_unordered])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_their_slopes_are_those_of_finite_differences(log_prob, k):
    logits = LOGITS.expand(2, 5).clone().requires_grad_()
    indices = torch.tensor([[0, 3, 1, 4, 2], [2, 1, 0, 3, 4]])[:, :k]
    assert torch.autograd.gradcheck(lambda x: log_prob(x, indices), (logits,))


@pytest.mark.parametrize("log_prob", [log_prob_ordered, log_prob_unordered])
def test_extremes_in_single_precision(log_prob):
    """What is left is summed: no cancellation where the first draw had nearly all of the mass."""
    logits = torch.tensor([60.0, 0.0, 1.0, -torch.inf], requires_grad=True)
    wide = torch.tensor([60.0, 0.0, 1.0, -torch.inf], dtype=torch.float64)
    indices = torch.tensor([0, 2])
    found = log_prob(logits, indices)
    torch.testing.assert_close(found.double(), log_prob(wide, indices), rtol=1e-6, atol=1e-6)
    assert found.item() == pytest.approx(math.log(math.e / (1 + math.e)), rel=1e-5)
    found.backward()
    assert bool(logits.grad.isfinite().all())
    assert log_prob(wide, torch.tensor([0, 3])).item() == -torch.inf


def test_many_categories():
    torch.manual_seed(0)
    logits = torch.randn(10_000)
    indices, _ = gumbel_top_k(logits, 10_000)
    assert sorted(indices.tolist()) == list(range(10_000))
    assert log_prob_ordered(logits, indices).isfinite()
    assert log_prob_unordered(logits, indices[:10]).isfinite()


@pytest.mark.parametrize("k", [0, 6])
def test_a_number_of_draws_out_of_range_is_refused(k):
    with pytest.raises(SettingError, match="1 to 5 expected"):
        gumbel_top_k(LOGITS, k)
    with pytest.raises(SettingError, match="1 to 16 expected"):
        log_prob_unordered(torch.zeros(20), torch.arange(17))
