"""Draws of rows that share their parameters: the law, the shape, and what is left to Pyro."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from pyro_discrete.drawing import drawn

PROBS = torch.tensor([[0.2, 0.0, 0.3, 0.5], [0.7, 0.1, 0.15, 0.05], [1.0, 0.0, 0.0, 0.0]])
ROWS = 20_000

DISTRIBUTIONS: dict[str, Any] = {
    "probs": dist.Categorical(PROBS),
    "logits": dist.Categorical(logits=PROBS.double().log()),
    "one_hot": dist.OneHotCategorical(logits=PROBS.log()),
    "event": dist.OneHotCategorical(3 * PROBS).to_event(1),
    "masked": dist.Categorical(PROBS).mask(torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_are_independent_draws_of_the_distribution(name: str) -> None:
    """Chi-squared of pairs of neighbouring rows, 5 cells of two elements: false alarms one in 1e5 for each of both."""
    torch.manual_seed(3)
    fn = DISTRIBUTIONS[name].expand([ROWS, *DISTRIBUTIONS[name].batch_shape])
    value, like = drawn(fn), fn()
    assert value.shape == like.shape
    assert value.dtype == like.dtype
    assert value.is_contiguous()
    index = value.argmax(-1) if "one_hot" in name or name == "event" else value
    assert index[:, 2].eq(0).all()
    for element in range(2):
        probs = PROBS[element].double()
        pairs = torch.bincount(4 * index[0::2, element] + index[1::2, element], minlength=16).double()
        expected = ROWS / 2 * torch.outer(probs, probs).flatten()
        assert pairs[expected == 0].sum() == 0
        there = expected > 0
        statistic = ((pairs - expected).square() / expected)[there].sum()
        assert statistic < {8: 37.3, 15: 50.5}[int(there.sum()) - 1]  # quantiles 1 - 1e-5


def test_what_shares_no_parameters_is_drawn_by_itself() -> None:
    class Own(dist.Categorical):
        def sample(self, sample_shape: Any = ()) -> torch.Tensor:
            return torch.full((2, 3), 7)

    for fn in (dist.Categorical(PROBS.repeat(2, 1, 1)), dist.Poisson(torch.ones(2, 3)), dist.Categorical(PROBS[0])):
        torch.manual_seed(0)
        value = drawn(fn)
        torch.manual_seed(0)
        assert torch.equal(value, fn())
    own = Own(PROBS.expand(2, 3, 4))
    assert torch.equal(drawn(own), own.sample())
