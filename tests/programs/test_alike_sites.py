"""Scores of alike sites in one call are those of each site's own distribution, and what is unlike is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete import TraceELBO
from pyro_discrete.programs import alike_sites
from pyro_discrete.programs.alike_sites import FEWEST_ALIKE, scored_together
from pyro_discrete.programs.sites import site_log_prob

N = FEWEST_ALIKE + 2


def parameters(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64).requires_grad_()


def with_logits(p: Tensor) -> Any:
    fn = dist.Categorical(logits=p)
    fn.logits = p  # not brought to a sum of one
    return fn


MAKES: dict[str, Callable[[Tensor], Any]] = {
    "Normal": lambda p: dist.Normal(p, 0.5),
    "Normal, a scale of its own": lambda p: dist.Normal(p, p.exp()),
    "Normal, an event": lambda p: dist.Normal(p, 0.5).to_event(1),
    "Normal, an event of an event": lambda p: dist.Normal(p, 0.5).to_event(1).to_event(1),
    "Laplace": lambda p: dist.Laplace(p, 2.0),
    "Exponential": lambda p: dist.Exponential(p.exp()),
    "Gamma": lambda p: dist.Gamma(p.exp(), 2.0),
    "Poisson": lambda p: dist.Poisson(p.exp()),
    "Bernoulli": lambda p: dist.Bernoulli(logits=p),
    "Bernoulli, probs": lambda p: dist.Bernoulli(p.sigmoid()),
    "Bernoulli, an event": lambda p: dist.Bernoulli(logits=p).to_event(1),
    "Categorical": lambda p: dist.Categorical(logits=p),
    "Categorical, probs": lambda p: dist.Categorical(p.softmax(-1)),
    "Categorical, logits that are set": with_logits,
    "Categorical, an event": lambda p: dist.Categorical(logits=p).to_event(1),
}


def sites(make: Callable[[Tensor], Any], p: Tensor, value: Callable[[Any], Tensor] | None = None) -> dict[str, Any]:
    fns = [make(each) for each in p]
    drawn = [fn.sample().detach() if value is None else value(fn) for fn in fns]
    return {
        f"x{i}": {"fn": fn, "value": x, "args": (), "kwargs": {}}
        for i, (fn, x) in enumerate(zip(fns, drawn, strict=True))
    }


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("broadcast", [False, True])
def test_scores_and_gradients_are_those_of_each_site(name: str, broadcast: bool) -> None:
    torch.manual_seed(0)
    p = parameters(3, 1, 4) if broadcast else parameters(2, 4)
    alike = sites(MAKES[name], p)
    if broadcast:  # values that lack dims of their distributions, as those of data beside enumerated values do
        for msg in alike.values():
            msg["value"] = msg["value"][0]
    found = scored_together(alike)
    assert found.keys() == alike.keys()
    weights = torch.arange(1.0, N + 1)
    each = {n: site_log_prob(msg) for n, msg in alike.items()}
    for n, score in found.items():
        assert score.shape == each[n].shape
        assert score.dtype is each[n].dtype
        torch.testing.assert_close(score, each[n], rtol=1e-12, atol=1e-12)
    gradients = []
    for scores in (found, each):
        total = sum(w * s.sum() for w, s in zip(weights, scores.values(), strict=True))
        gradients += torch.autograd.grad(torch.as_tensor(total), p, retain_graph=True)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


class Shifted(dist.Normal):
    """Scores otherwise than the class that it is derived from."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 1


def with_own_score(p: Tensor) -> Any:
    fn = dist.Normal(p, 1.0)
    fn.log_prob = lambda value: value  # type: ignore[method-assign]
    return fn


def with_own_score_of_an_event(p: Tensor) -> Any:
    fn = dist.Normal(p, 1.0).to_event(1)
    fn.log_prob = lambda value: value.sum(-1)  # type: ignore[method-assign]
    return fn


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Shifted(p, 1.0),
        lambda p: Shifted(p, 1.0).to_event(1),
        with_own_score,
        lambda p: with_own_score(p).to_event(1),
        with_own_score_of_an_event,
        lambda p: dist.Normal(p, 1.0).mask(torch.tensor(True)),
        lambda p: dist.Normal(p, 1.0).mask(torch.tensor(True)).to_event(1),
        lambda p: dist.LogNormal(p, 1.0),
        lambda p: dist.Normal(p, 1.0).expand([3, 4]).mask(False),
        lambda p: dist.Poisson(p.exp(), is_sparse=True),
    ],
)
def test_what_may_score_otherwise_is_left_alone(make: Callable[[Tensor], Any]) -> None:
    assert not scored_together(sites(make, parameters(4), lambda fn: torch.ones(4, dtype=torch.float64)))


def test_unlike_sites_are_in_groups_of_their_own() -> None:
    p = parameters(4)
    alike = sites(MAKES["Normal"], p)
    others = {
        "dtype": dist.Normal(p[0].detach().float(), 0.5),
        "shape": dist.Normal(p[0, :2], 0.5),
        "class": dist.Laplace(p[0], 0.5),
        "event": dist.Normal(p[0], 0.5).to_event(1),
        "validation": dist.Normal(p[0], 0.5, validate_args=False),
    }
    for name, fn in others.items():
        alike[name] = {"fn": fn, "value": fn.sample().detach(), "args": (), "kwargs": {}}
    assert scored_together(alike).keys() == {f"x{i}" for i in range(N)}


def test_few_and_large_ones_are_left_alone() -> None:
    assert not scored_together(dict(list(sites(MAKES["Normal"], parameters(4)).items())[: FEWEST_ALIKE - 1]))
    assert not scored_together(sites(MAKES["Normal"], parameters(alike_sites.MOST_ELEMENTS + 1)))


def test_values_of_another_kind_are_left_alone() -> None:
    class Own(torch.Tensor):
        pass

    alike = sites(MAKES["Normal"], parameters(4), lambda fn: fn.sample().detach().as_subclass(Own))
    assert not scored_together(alike)
    support = sites(MAKES["Categorical"], parameters(4), lambda fn: fn.enumerate_support(expand=False))
    assert not scored_together(support)  # Pyro takes these from the table


def chain(x: Tensor) -> None:
    logits = pyro.param("transition", lambda: torch.eye(3, dtype=torch.float64)).log_softmax(-1)
    locs = pyro.param("locs", lambda: torch.linspace(-2.0, 2.0, 3, dtype=torch.float64))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(logits=logits[z]))
        with poutine.mask(mask=torch.tensor(t % 3 != 1)):
            pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def scaled_chain(x: Tensor) -> None:
    with poutine.scale(scale=0.5):
        chain(x)


def factors(x: Tensor) -> None:
    q = pyro.param("q", lambda: torch.linspace(-1.0, 1.0, 3 * len(x), dtype=torch.float64).reshape(len(x), 3))
    for t in range(len(x)):
        with poutine.scale(scale=0.5):
            pyro.sample(f"z{t}", dist.Categorical(logits=q[t]))


def nothing(x: Tensor) -> None:
    pass


def step(model: Any, guide: Any, x: Tensor, spec: str, particles: int) -> tuple[float, dict[str, Tensor]]:
    pyro.clear_param_store()
    torch.manual_seed(3)
    loss = TraceELBO(spec, num_particles=particles).loss_and_grads(model, guide, x)
    return loss, {n: p.grad.clone() for n, p in pyro.get_param_store().named_parameters()}


@pytest.mark.parametrize(
    ("model", "guide", "spec", "particles"),
    [(chain, nothing, "enumerate", 1), (scaled_chain, factors, "rloo", 2), (scaled_chain, factors, "reinforce", 1)],
)
def test_steps_are_the_same(model: Any, guide: Any, spec: str, particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1.0, 1.0, N, dtype=torch.float64)
    together = step(model, guide, x, spec, particles)
    monkeypatch.setattr(alike_sites, "FEWEST_ALIKE", 10**9)
    apart = step(model, guide, x, spec, particles)
    assert together[0] == pytest.approx(apart[0], rel=1e-12)
    for name, gradient in apart[1].items():
        torch.testing.assert_close(together[1][name], gradient, rtol=1e-12, atol=1e-12)


def test_a_value_outside_of_its_support_is_named() -> None:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Bernoulli(0.5))
        for t in range(len(x)):
            pyro.sample(f"x{t}", dist.Poisson(1 + p), obs=x[t])

    def guide(x: Tensor) -> None:
        pyro.sample("p", dist.Bernoulli(pyro.param("q", lambda: torch.tensor(0.5))))

    x = torch.ones(N)
    elbo = TraceELBO("reinforce")
    elbo.loss(model, guide, x)
    x[5] = -1.0
    with pytest.raises(ValueError, match="'x5'"):
        elbo.loss(model, guide, x)
