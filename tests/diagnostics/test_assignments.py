"""Which joint assignments there are, and what cannot be enumerated."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete.diagnostics import exact_loss
from pyro_discrete.diagnostics.assignments import Choices
from pyro_discrete.errors import EnumerationError


def test_choices_walk_every_path_once():
    choices, paths = Choices(budget=100), []
    more = True
    while more:
        choices.restart()
        first = choices.take("a", 3)
        paths.append((first, *[choices.take(f"b{i}", 2) for i in range(first)]))
        more = choices.advance()
    assert len(paths) == len(set(paths)) == 1 + 2 + 4


def test_too_many_assignments():
    def guide():
        with pyro.plate("data", 20):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(EnumerationError, match=r"'z' has 1048576 joint values.*budget is 10000"):
        exact_loss(guide, guide)


def test_sites_before_it_count():
    def guide():
        pyro.sample("a", dist.Categorical(torch.ones(150)))
        pyro.sample("b", dist.Categorical(torch.ones(100)))

    with pytest.raises(EnumerationError, match=r"'b' has 100 joint values, which makes 15000"):
        exact_loss(guide, guide)


@pytest.mark.parametrize("fn", [dist.Poisson(1.0), dist.Gamma(1.0, 1.0)])
def test_infinite_support(fn):
    def guide():
        pyro.sample("rate", fn)

    with pytest.raises(EnumerationError, match=rf"'rate' \({type(fn).__name__}\)"):
        exact_loss(guide, guide)


def test_hidden_randomness():
    def guide():
        pass

    def model():
        pyro.factor("noise", torch.rand(()))

    with pytest.raises(EnumerationError, match="two different values"):
        exact_loss(model, guide)


def test_continuous_site_of_the_model_only():
    def model():
        pyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(EnumerationError, match="'y' is not in the guide"):
        exact_loss(model, lambda: None)


def test_marginal_of_mixed_scales():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.2))

    with pytest.raises(EnumerationError, match="no marginal"):
        exact_loss(model, lambda: None)
