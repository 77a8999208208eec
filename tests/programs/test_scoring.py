"""How sites are scored: bits by their one operation, with the numbers, slopes and errors of their distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete.errors import MissingDataError
from pyro_discrete.programs.sites import cardinality, log_prob, negative_log_prob

LOGITS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
BITS = (torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()

DISTRIBUTIONS: dict[str, Any] = {
    "one dim": lambda logits: dist.Bernoulli(logits=logits).to_event(1),
    "two dims": lambda logits: dist.Bernoulli(logits=logits).to_event(2),
    "repeated": lambda logits: dist.Bernoulli(logits=logits[0]).expand([3, 4, 5]).to_event(1),
    "shared": lambda logits: dist.Bernoulli(logits=logits[0]).to_event(1),
    "probs": lambda logits: dist.Bernoulli(logits.sigmoid()).to_event(1),
    "no event": lambda logits: dist.Bernoulli(logits=logits),
    "masked": lambda logits: dist.Bernoulli(logits=logits).to_event(1).mask(BITS[..., 0].bool()),
}


def site(fn: Any, value: torch.Tensor, observed: bool = True) -> dict[str, Any]:
    return {"name": "x", "fn": fn, "value": value, "args": (), "kwargs": {}, "is_observed": observed}


SCORES: list[Callable[[Any, torch.Tensor], torch.Tensor]] = [
    lambda fn, bits: fn.log_prob(bits),
    lambda fn, bits: log_prob(fn, site(fn, bits)),
    lambda fn, bits: -negative_log_prob(fn, site(fn, bits)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_scores_and_slopes_are_those_of_the_distribution_bit_for_bit(
    name: str, validated: bool, dtype: torch.dtype
) -> None:
    bits, found = BITS.to(dtype), []
    with pyro.validation_enabled(validated):
        for score in SCORES:
            logits = (7 * LOGITS).to(dtype).requires_grad_()
            term = score(DISTRIBUTIONS[name](logits), bits)
            (slope,) = torch.autograd.grad(term.square().sum(), logits)
            found.append((term, slope))
    for term, slope in found[1:]:
        assert torch.equal(term, found[0][0])
        assert torch.equal(slope, found[0][1])


@pytest.mark.parametrize("score", [log_prob, negative_log_prob])
def test_what_is_no_bit_is_refused_by_name_where_it_is_looked_at(score: Any) -> None:
    fn = dist.Bernoulli(logits=LOGITS, validate_args=True).to_event(1)
    with pytest.raises(ValueError, match="While scoring site 'x'"):
        score(fn, site(fn, BITS + 0.5))
    with pytest.raises(MissingDataError, match="'x' contains NaN"):
        score(fn, site(fn, BITS / BITS))


@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical])
@pytest.mark.parametrize("given", ["probs", "logits"])
def test_the_number_of_categories_is_that_of_their_list(kind: Any, given: str) -> None:
    fn = kind(**{given: torch.rand(3, 4) + 0.1})
    assert cardinality(fn) == len(fn.enumerate_support())
    assert cardinality(fn.to_event(1)) == len(fn.enumerate_support()) ** 3
