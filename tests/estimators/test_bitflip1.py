"""BitFlip1: exact means and variances by sums over the pair and the choice of the bit, and what it must not do."""

from __future__ import annotations

import pytest
import torch

from pyro_discrete import BitFlip1, DisARM
from pyro_discrete.testing import assert_contract, check_estimator, programs
from tests.support.regions import (
    LOGITS,
    PHIS,
    Site,
    exact_of_bits,
    gradient,
    joint,
    mean_and_variance,
    moments,
    pair_regions,
    tangled,
)


def flips(logits, cost):
    """Mean and variance of BitFlip1's gradient over the pair and the choice of the bit."""
    small = (-logits.abs()).sigmoid() < 0.5 / len(logits)
    choices = small.nonzero().flatten().tolist() or [None]

    def parts():
        for pair, probability in joint([pair_regions(phi) for phi in logits.tolist()]):
            for bit in choices:
                flipped = pair[0].clone()
                if bit is not None:
                    flipped[bit] = 1 - flipped[bit]
                rows = torch.stack([*pair, flipped]).unsqueeze(1)
                found = gradient(BitFlip1(), rows, logits.unsqueeze(0), cost(rows), event_dim=1)
                yield found[0], probability / len(choices)

    return moments(parts()), small


@pytest.mark.parametrize("logits", LOGITS, ids=str)
def test_bitflip1_is_unbiased_by_an_exact_sum(logits):
    (mean, _), _ = flips(logits, tangled)
    torch.testing.assert_close(mean, exact_of_bits(tangled, logits), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("logits", LOGITS[1:], ids=str)
def test_bitflip1_is_never_noisier_than_disarm_where_costs_add_up(logits):
    def additive(b):
        return (b * torch.tensor([1.0, -0.7, 0.4])).sum(-1)

    (_, variance), small = flips(logits, additive)
    _, disarm = mean_and_variance(DisARM(), logits, additive, [pair_regions(phi) for phi in logits.tolist()])
    assert small.any()
    assert (variance[small] < 0.9 * disarm[small]).all()
    torch.testing.assert_close(variance[~small], disarm[~small])


def test_bitflip1_is_noisier_where_an_antithetic_pair_leaves_the_cost_the_same():
    """The limit of the claim, as its docstring says: a cost that is high where the bits are alike."""

    def alike(b):
        return (b[..., 0] == b[..., 1]).double()

    logits = torch.tensor([-1.2, 0.0], dtype=torch.float64)
    (_, variance), small = flips(logits, alike)
    _, disarm = mean_and_variance(DisARM(), logits, alike, [pair_regions(phi) for phi in logits.tolist()])
    assert small.tolist() == [True, False]
    assert variance[0] > disarm[0]


@pytest.mark.parametrize("phi", PHIS)
def test_bitflip1_of_a_single_bit_is_exact(phi):
    estimator, logits = BitFlip1(), torch.full((50,), phi, dtype=torch.float64)
    torch.manual_seed(1)
    draw = estimator.draw(Site(logits))
    assert draw.value.shape == (2, 50)
    exact = 0.7 * logits.sigmoid() * (-logits).sigmoid()
    found = gradient(estimator, draw.value, logits, 0.7 * draw.value - 2.0)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_bitflip1_flips_one_bit_near_the_boundary():
    logits = torch.tensor([0.3, -6.0, 5.0, -0.2]).expand(200, 4)
    draw = BitFlip1().draw(Site(logits, event_dim=1))
    changed = draw.value[2] != draw.value[0]
    assert (changed.sum(-1) == 1).all()
    assert changed.any(0).tolist() == [False, True, True, False]
    middling = BitFlip1().draw(Site(torch.zeros(200, 4), event_dim=1)).value
    assert middling[2].equal(middling[0])


class TakesElementsApart(BitFlip1):
    """The planted error: flipping a bit of every plate element at once where they share later terms."""

    separable = False


@pytest.mark.statistical
def test_bitflip1_where_elements_share_terms_would_be_biased():
    """A right estimator would alarm here with a probability below 1e-6."""
    program = next(p for p in programs() if p.name == "words_feed_documents")
    report = check_estimator(TakesElementsApart, programs=[program], dtypes=(torch.float64,), false_alarm=1e-6)
    with pytest.raises(AssertionError, match="FAILS"):
        assert_contract(report)
    assert not any(c.is_loss and c.alarm for c in report.comparisons)
