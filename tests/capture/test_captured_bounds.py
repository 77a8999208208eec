"""Captured steps of the importance-weighted bound, with every option that it has: bit for bit the eager ones."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_discrete import VIMCO, TraceIWELBO


class Documents:
    """A global latent, and in each document of a subsampled plate a bit, a weight, and words."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Linear(3, 3)

    def model(self, x: Tensor, shared: bool) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0)) if shared else torch.tensor(0.3)
        with pyro.plate("documents", len(x), subsample_size=4) as i:
            topic = pyro.sample("topic", dist.Bernoulli(0.4))
            weight = pyro.sample("weight", dist.Normal(level, 1.0))
            with pyro.plate("words", 3):
                mean = pyro.param("slope", torch.tensor(0.5)) * topic + weight
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x[i].T)

    def guide(self, x: Tensor, shared: bool) -> None:
        if shared:
            pyro.sample("level", dist.Normal(pyro.param("level_loc", torch.tensor(0.1)), 0.5))
        with pyro.plate("documents", len(x), subsample_size=4) as i:
            logit, loc, scale = self.encoder(x[i]).unbind(-1)
            pyro.sample("topic", dist.Bernoulli(logits=logit))
            pyro.sample("weight", dist.Normal(loc, scale.exp()))


OPTIONS: dict[str, dict[str, Any]] = {
    "vimco": {"estimator": "vimco"},
    "arithmetic": {"estimator": VIMCO(mean="arithmetic")},
    "wake": {"estimator": "reweighted_wake_sleep"},
    "doubly": {"estimator": {"topic": "vimco"}, "dreg": True},
    "wake_doubly": {"estimator": "reweighted_wake_sleep", "dreg": True},
    "outer": {"estimator": "rloo", "num_outer_samples": 2},
    "outer_rebar": {"estimator": "rebar", "num_outer_samples": 2},
    "one_by_one": {"estimator": "vimco", "vectorize_particles": False},
    "named_plate": {"estimator": "disarm", "datum_plates": "documents"},
    "automatic": {},
    "one_particle": {"estimator": "reinforce", "num_particles": 1},
}


def trained(compile: Any, shared: bool, settings: dict[str, Any]) -> tuple[list[Any], TraceIWELBO]:
    pyro.clear_param_store()
    program, x = Documents(), torch.linspace(-2, 2, 30).reshape(10, 3)
    elbo = TraceIWELBO(**{"num_particles": 3, **settings}, compile=compile)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    torch.manual_seed(4)
    losses: list[Any] = [svi.step(x, shared) for _ in range(7)]
    seen = [*program.encoder.parameters(), *pyro.get_param_store().values()]
    return [*losses, *(value.detach().clone() for value in seen)], elbo


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_bound_is_captured(option: str, shared: bool) -> None:
    expected, _ = trained(False, shared, OPTIONS[option])
    got, elbo = trained("graph", shared, OPTIONS[option])
    assert str(elbo.captures).startswith("1 captured step(s), 1 made"), str(elbo.captures)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(expected, got, strict=True))


def test_one_joint_bound_is_captured() -> None:
    """Without plates of data; the warning that it is joint is not of the capture."""
    x, results = torch.linspace(-1, 1, 4), []

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.4).expand([4]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(4))).to_event(1))

    for compile in (False, "graph"):
        pyro.clear_param_store()
        elbo = TraceIWELBO("vimco", num_particles=4, datum_plates=(), compile=compile)
        torch.manual_seed(1)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        results.append(([svi.step() for _ in range(6)], pyro.param("logits").tolist()))
    assert results[0] == results[1]
    assert str(elbo.captures).startswith("1 captured step(s), 1 made")
