"""Comparison and monitor on programs with structures: against gradients and entropies by all values."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

from pyro_discrete import TraceELBO
from pyro_discrete.diagnostics import Monitor, compare_estimators
from pyro_discrete.distributions import Arborescence, KSubset, PlackettLuce, SequentialMatching

DOUBLE = torch.float64
VALUES = torch.tensor([0.5, 1.3, -0.7, 0.2], dtype=DOUBLE)


def ranking_pair():
    """A ranking of three items, of which the first two are looked up."""
    phi = nn.Parameter(torch.tensor([0.2, -0.4, 0.7], dtype=DOUBLE))
    prior = PlackettLuce(torch.zeros(3, dtype=DOUBLE))

    def reward(order):
        found = VALUES[order]
        return found[..., 0] - 0.5 * found[..., 1]

    def model():
        pyro.factor("reward", 2 * reward(pyro.sample("order", prior)))

    def guide():
        pyro.sample("order", PlackettLuce(phi))

    law = PlackettLuce(phi)
    every = law.enumerate_support(expand=False)
    log_q = law.log_prob(every)
    loss = -(log_q.exp() * (2 * reward(every) + prior.log_prob(every) - log_q)).sum()
    (gradient,) = torch.autograd.grad(loss, phi)
    return model, guide, gradient


@pytest.mark.statistical
def test_estimators_are_compared_on_a_ranking():
    """400 draws each; a false alarm at the comparison's threshold is below 1e-4 for each of the unbiased ones."""
    model, guide, gradient = ranking_pair()
    pyro.set_rng_seed(0)
    found = compare_estimators(model, guide, draws=400, warm_up=2, progress=False)
    assert found.reference == "exact"
    assert float(found["gradient_norm"].item()) == pytest.approx(float(gradient.norm()), rel=1e-9)
    serving = set(found["estimator"].values.tolist())
    assert {"enumerate", "unordered_set", "rloo", "rebar", "relax", "gumbel_softmax", "gumbel_rao"} <= serving
    for label in ("enumerate", "unordered_set", "sum_and_sample", "rloo", "reinforce", "rebar", "relax"):
        assert not bool(found.bias_seen.sel(estimator=label)), label
    assert float(found["variance"].sel(estimator="enumerate").sum()) == pytest.approx(0, abs=1e-20)
    assert found.recommendation == 'TraceELBO("enumerate")'
    assert "PlackettLuce has no marginals" in found.left_out["muprop"]
    assert "does not serve site 'order', which is PlackettLuce" in found.left_out["disarm"]


def test_the_monitor_on_a_ranking():
    model, guide, gradient = ranking_pair()
    exact = Monitor(model, guide, TraceELBO("enumerate")).look(1)
    assert exact["gradient_variance"] == 0
    assert exact["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-9)
    noisy = Monitor(model, guide, TraceELBO("rebar"), draws=5)
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=noisy.elbo).step()
    record = noisy.look(1)["sites"]["order"]
    assert math.isfinite(record["baseline_fit"])
    assert record["temperature"] > 0


STRUCTURES = {
    "ranking": (PlackettLuce, (4,)),
    "matching": (SequentialMatching, (3, 3)),
    "subset": (lambda logits: KSubset(logits, 2), (4,)),
    "tree": (Arborescence, (4, 4)),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_entropy_and_dead_latents_of_structures(kind):
    """A structure that is the same whatever the data are is a dead latent variable; `.to_event` makes two of them."""
    make, shape = STRUCTURES[kind]
    torch.manual_seed(0)
    same, other = torch.randn(shape).expand(5, *shape), 5 * torch.randn(5, *shape)
    together = torch.stack([same, other], 1)

    def law():
        return make(together).to_event(1)

    def program():
        with pyro.plate("data", 5):
            pyro.sample("z", law())

    def model():
        with pyro.plate("data", 5):
            pyro.sample("z", make(torch.zeros_like(together)).to_event(1))

    record = Monitor(model, program, TraceELBO("rloo", num_particles=2)).look(1)["sites"]["z"]
    each = make(together)
    log_q = each.log_prob(each.enumerate_support())
    assert record["entropy"] == pytest.approx(float(-(log_q.exp() * log_q).sum(0).mean()), rel=1e-4)
    assert record["latents"] == 2
    assert record["dead_latents"] == 1


def test_the_monitor_on_a_ranking_too_large_to_list():
    logits = 5 * torch.randn(4, 40, generator=torch.Generator().manual_seed(0))

    def model():
        with pyro.plate("data", 4):
            order = pyro.sample("z", PlackettLuce(torch.zeros(4, 40)))
            pyro.sample("x", dist.Normal(order[..., 0] / 40.0, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", PlackettLuce(pyro.param("logits", logits)))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    record = Monitor(model, guide, TraceELBO("rloo", num_particles=2)).look(1)["sites"]["z"]
    assert math.isnan(record["entropy"])
    assert (record["latents"], record["dead_latents"]) == (1, 0)
