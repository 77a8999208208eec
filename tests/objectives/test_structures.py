"""Structures under the bound of several particles and the expected reward, enumerated, against sums over all values."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceExpectation, TraceIWELBO
from pyro_discrete.diagnostics import exact
from pyro_discrete.distributions import Arborescence, GibbsMatching, KSubset, LinearChain, PlackettLuce

DOUBLE = torch.float64

STRUCTURES = {
    "ranking": (PlackettLuce, (3,)),
    "subset": (lambda logits: KSubset(logits, 2), (4,)),
    "matching": (GibbsMatching, (3, 3)),
    "chain": (LinearChain, (3, 2, 2)),
    "tree": (Arborescence, (3, 3)),
}


def pair_of(kind):
    """A structure whose value is read by a curved function, a bit that depends on it, and an observation of both."""
    make, shape = STRUCTURES[kind]
    number = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=DOUBLE)
    phi = (1.1 * (2.3 * number).sin()).reshape(shape).requires_grad_()
    prior = make(torch.zeros(shape, dtype=DOUBLE))
    size = prior.event_shape.numel()

    def read(value):
        total = (value * torch.linspace(0.3, 1.4, size, dtype=DOUBLE)).sum(-1)
        return total.cos() + 0.3 * total

    def model():
        number = read(pyro.sample("z", prior))
        h = pyro.sample("h", dist.Bernoulli(logits=number))
        pyro.sample("x", dist.Normal(number + h, 1.0), obs=torch.tensor(0.8, dtype=DOUBLE))

    def guide():
        z = pyro.sample("z", make(phi))
        pyro.sample("h", dist.Bernoulli(logits=0.7 * read(z)))

    return model, guide, phi, make, read


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_expected_reward_is_the_sum_over_all_values(kind, entropy_weight):
    _, guide, phi, make, read = pair_of(kind)

    def model():
        z = pyro.sample("z", make(torch.zeros_like(phi)))
        h = pyro.sample("h", dist.Bernoulli(torch.tensor(0.5, dtype=DOUBLE)))
        pyro.factor("reward", read(z) * (1 + h))

    law = make(phi)
    every = law.enumerate_support(expand=False)
    number = read(every)
    bits = torch.tensor([0.0, 1.0], dtype=DOUBLE)[:, None]
    log_q = law.log_prob(every) + dist.Bernoulli(logits=0.7 * number).log_prob(bits)
    expected = -(log_q.exp() * (number * (1 + bits) - entropy_weight * log_q)).sum()
    elbo = TraceExpectation("enumerate", entropy_weight=entropy_weight)
    assert elbo.loss_and_grads(model, guide) == pytest.approx(expected.item(), rel=1e-9)
    assert phi.grad is not None
    torch.testing.assert_close(phi.grad, torch.autograd.grad(expected, phi)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_bound_of_two_particles_is_that_of_all_pairs_of_values(kind):
    """20 means of 50 estimates: Student's t with 19 degrees of freedom passes 8 with a probability of 2e-7, for each of
    some 30 numbers."""
    model, guide, phi, *_ = pair_of(kind)
    right = exact.BoundOracle(2)(model, guide)
    pyro.set_rng_seed(0)
    elbo, found, losses = TraceIWELBO("enumerate", num_particles=2, num_outer_samples=50), [], []
    for _ in range(20):
        phi.grad = None
        losses.append(elbo.loss_and_grads(model, guide))
        found.append(phi.grad)
    for mean, values in (
        (torch.tensor(right.loss, dtype=DOUBLE), torch.tensor(losses, dtype=DOUBLE)),
        (right.gradients["phi"], torch.stack(found)),
    ):
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - mean).abs() <= 8 * error + 1e-9).all()
