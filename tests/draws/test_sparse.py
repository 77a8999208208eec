"""Sparsemax and entmax against their definitions, and the relaxation that they give."""

from __future__ import annotations

import pytest
import torch

from pyro_discrete import SparseGumbelSoftmax
from pyro_discrete.draws.softening import BINARY, MAPPINGS, entmax, sparsemax
from pyro_discrete.errors import SettingError

POWER = {"sparsemax": 1, "entmax": 2}


def by_bisection(scores, mapping):
    """(z / (1 or 2) - threshold)_+ to the power 1 or 2, with the threshold at which the sum is one."""
    z = scores / POWER[mapping]
    low, high = z.max(-1, keepdim=True).values - 1, z.max(-1, keepdim=True).values
    for _ in range(100):
        middle = (low + high) / 2
        above = (z - middle).clamp(min=0).pow(POWER[mapping]).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (z - low).clamp(min=0).pow(POWER[mapping])


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_mapping_is_the_one_defined(mapping, scale):
    torch.manual_seed(0)
    scores = scale * torch.randn(50, 30, dtype=torch.float64)
    torch.testing.assert_close(MAPPINGS[mapping](scores), by_bisection(scores, mapping), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_slope_is_that_of_finite_differences(mapping):
    torch.manual_seed(1)
    scores = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MAPPINGS[mapping], (scores,))
    assert bool((MAPPINGS[mapping](scores) == 0).any())


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_two_categories_in_closed_form(mapping):
    score = torch.linspace(-3, 3, 41, dtype=torch.float64)
    two = MAPPINGS[mapping](torch.stack([torch.zeros_like(score), score], -1))[..., 1]
    torch.testing.assert_close(BINARY[mapping](score), two)


@pytest.mark.parametrize("mapping", [sparsemax, entmax])
def test_many_categories_and_impossible_ones(mapping):
    scores = torch.cat([torch.full((10_000,), -torch.inf), torch.tensor([0.3, 0.1])]).requires_grad_()
    out = mapping(scores)
    assert out.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert bool((out[:10_000] == 0).all())
    (out * torch.arange(10_002)).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    even = mapping(torch.linspace(0, 1e-3, 10_000))
    assert even.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert bool((even >= 0).all())


def test_values_are_hard_with_positive_probability_and_else_soft():
    torch.manual_seed(0)
    for one_hot, logits in ((True, torch.zeros(2000, 3)), (False, torch.zeros(2000))):
        for mapping in ("entmax", "sparsemax"):
            value = SparseGumbelSoftmax(0.5, mapping).weights(logits, 0, one_hot)
            hard = ((value == 0) | (value == 1)).float().mean()
            assert 0.1 < hard < 0.9


def test_unknown_mapping_is_refused():
    with pytest.raises(SettingError, match="sparsemax"):
        SparseGumbelSoftmax(mapping="softmax")  # type: ignore[arg-type]
