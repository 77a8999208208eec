"""The importance-weighted bound at logits up to 50: weights many orders of magnitude apart, in either precision."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_discrete import VIMCO, ReweightedWakeSleep, TraceIWELBO
from pyro_discrete.estimators.base import Surrogate
from pyro_discrete.testing import LOGITS, compare_precisions
from pyro_discrete.testing.extremes import bernoulli_extremes, extreme_programs, forced_expectation
from pyro_discrete.testing.small_programs.program import BERNOULLI, Pair, leaf, program

SPECS = {"vimco": "vimco", "vimco-arithmetic": VIMCO("arithmetic"), "rws": "reweighted_wake_sleep", "disarm": "disarm"}


@program(BERNOULLI)
def with_a_continuous_site(dtype):
    """A bit at each logit of the grid and a continuous variable beside it, whose scale goes from small to large."""
    phi, loc = leaf(LOGITS, dtype), leaf([0.05 * logit for logit in LOGITS], dtype)
    spread = leaf([-0.02 * logit for logit in LOGITS], dtype)

    def model():
        with pyro.plate("logits", len(LOGITS)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
            c = pyro.sample("c", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=torch.full((len(LOGITS),), 1.7, dtype=dtype))

    def guide():
        with pyro.plate("logits", len(LOGITS)):
            pyro.sample("z", dist.Bernoulli(logits=phi))
            pyro.sample("c", dist.Normal(loc, spread.exp()))

    return Pair(model, guide, (), {"phi": phi, "loc": loc, "spread": spread})


def compared(make, program, unlikely):
    found = compare_precisions(make, program, calls=8, unlikely=unlikely)
    print(found)
    assert found.finite
    assert found.skipped <= 0.2 * found.draws
    return found.error


@pytest.mark.filterwarnings("ignore:TraceIWELBO bounds all data jointly")
@pytest.mark.parametrize("unlikely", [False, True], ids=["likely", "unlikely"])
@pytest.mark.parametrize("plates", [("logits",), ()], ids=["each", "jointly"])
@pytest.mark.parametrize("name", SPECS)
def test_extreme_logits(name, plates, unlikely):
    """Float32 gradients are those of float64 under the same noise, draw by draw, to rounding: one bound for each logit,
    and one for all together, in which unlikely draws make the weights hundreds of nats apart."""
    for each in extreme_programs():
        if name == "disarm" and each is not bernoulli_extremes:
            continue

        def make():
            return TraceIWELBO(SPECS[name], num_particles=3, datum_plates=plates)

        assert compared(make, each, unlikely) < 4


@pytest.mark.parametrize("unlikely", [False, True], ids=["likely", "unlikely"])
@pytest.mark.parametrize("name", SPECS)
def test_extreme_logits_beside_doubly_reparameterised_sites(name, unlikely):
    def make():
        return TraceIWELBO({"z": SPECS[name]}, num_particles=3, dreg=True)

    assert compared(make, with_a_continuous_site, unlikely) < 4


def exact_bound_gradient(particles):
    """Of minus the bound of each logit, from its definition: the sum over all K-tuples of bits, in float64."""
    phi = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    prior, datum = torch.tensor([0.7, 0.3], dtype=torch.float64).log(), torch.tensor(1.7, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=particles):
        log_q = torch.stack([logsigmoid(phi if bit else -phi) for bit in bits])
        log_p = torch.stack([prior[bit] + dist.Normal(float(bit), 1.0).log_prob(datum) for bit in bits])
        log_w = log_p.unsqueeze(-1) - log_q
        total = total + (log_q.sum(0).exp() * (log_w.logsumexp(0) - math.log(particles))).sum()
    return torch.autograd.grad(-total, phi)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_mean_of_vimco_over_all_draws_at_extreme_logits(mean, particles, dtype):
    """The mean over every K-tuple of draws of a bit, at logits up to 50, is the exact gradient to rounding."""

    def make():
        return TraceIWELBO(VIMCO(mean), num_particles=particles)

    found, _ = forced_expectation(make, particles, dtype)
    assert (found - exact_bound_gradient(particles)).abs().max().item() <= 10 * torch.finfo(dtype).eps


class ByDivision(ReweightedWakeSleep):
    """The planted error: weights are divided by their sum, not normalised as logarithms."""

    def surrogate(self, draw, cost):
        own = draw.weights.own.exp()
        return Surrogate(-draw.weights.scale * own / (own + draw.weights.others.exp()) * draw.score)


@pytest.mark.filterwarnings("ignore:TraceIWELBO bounds all data jointly")
def test_planted_weights_that_overflow_are_seen():
    def make():
        return TraceIWELBO(ByDivision(), num_particles=3, datum_plates=())

    found = compare_precisions(make, bernoulli_extremes, unlikely=True)
    assert not found.finite or found.error > 4
