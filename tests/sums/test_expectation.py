"""Expectations of enumerated terms, beside Pyro's `TraceEnum_ELBO` and sums over all values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyro_discrete import TraceELBO
from pyro_discrete.sums import expectation

X = (-1.0, 0.5, 2.0)


def mixture(scale: float = 1.0) -> None:
    """One site in a plate, and a site outside of it."""
    tilt = pyro.sample("tilt", dist.Bernoulli(0.4))
    with poutine.scale(scale=scale), pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(z - tilt, 1.0), obs=torch.tensor(X))


def apart(impossible: bool = False) -> None:
    """Sites that do not depend on each other."""
    q = pyro.param("q", lambda: torch.tensor([[0.1, 0.4, -0.3], [0.0, 0.2, 0.9], [1.0, -1.0, 0.3]]))
    pyro.sample("tilt", dist.Bernoulli(logits=pyro.param("tilt_logits", lambda: torch.tensor(0.3))))
    mask = torch.tensor([0.0, -torch.inf, 0.0]) if impossible else 0.0
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Categorical(logits=q + mask))


def dependent() -> None:
    """One site given the other."""
    q = pyro.param("q", lambda: torch.tensor([[0.1, 0.4, -0.3], [0.0, 0.2, 0.9]]))
    tilt = pyro.sample("tilt", dist.Bernoulli(logits=pyro.param("tilt_logits", lambda: torch.tensor(0.3))))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Categorical(logits=torch.where(tilt[..., None] == 1, q[0], q[1])))


def masked() -> None:
    """A site of which one element does not count: its weights are no probabilities."""
    q = pyro.param("q", lambda: torch.tensor([[0.1, 0.4, -0.3], [0.0, 0.2, 0.9], [1.0, -1.0, 0.3]]))
    pyro.sample("tilt", dist.Bernoulli(logits=pyro.param("tilt_logits", lambda: torch.tensor(0.3))))
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        pyro.sample("z", dist.Categorical(logits=q))


def step(elbo: Any, model: Callable[..., Any], guide: Callable[..., Any]) -> list[torch.Tensor]:
    pyro.clear_param_store()
    loss = elbo.loss_and_grads(model, guide)
    return [torch.tensor(loss), *(p.unconstrained().grad for _, p in sorted(pyro.get_param_store().items()))]  # type: ignore[misc]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def by_dice(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether expectations went by `Dice`."""
    went: list[bool] = []

    class Watched(expectation.Dice):
        def __init__(self, *args: Any) -> None:
            went.append(True)
            super().__init__(*args)

    monkeypatch.setattr(expectation, "Dice", Watched)
    return went


@pytest.mark.parametrize(
    ("guide", "general"),
    [(apart, False), (lambda: apart(impossible=True), False), (dependent, True), (masked, True)],
    ids=["apart", "impossible", "dependent", "masked"],
)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_it_is_pyros(guide: Callable[..., Any], general: bool, scale: float, by_dice: list[bool]) -> None:
    def model() -> None:
        mixture(scale)

    ours = step(TraceELBO("enumerate"), model, guide)
    theirs = step(TraceEnum_ELBO(max_plate_nesting=1), model, config_enumerate(guide))
    assert bool(by_dice) == general
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_costs_are_known_by_the_terms_shapes() -> None:
    elbo = TraceELBO("enumerate")
    step(elbo, mixture, apart)
    once = elbo.plan.cost
    step(elbo, mixture, apart)
    assert len(elbo.plan.met.sum_costs) == 1
    assert elbo.plan.cost == once
