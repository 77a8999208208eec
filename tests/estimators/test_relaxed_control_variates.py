"""REBAR, RELAX and double control variates against exact numbers: quadrature over the noise, finite differences under
common random numbers. Only the laws of relaxed draws are compared by
sampling (error probability 2e-6 in all).
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from pyro_discrete import REBAR, RELAX, RODEO, DoubleCV, TraceELBO
from pyro_discrete.draws import noise as conditional
from pyro_discrete.families import Family
from pyro_discrete.testing import Oracle
from tests.support.relaxed_pairs import bent, bits, decoy

LOGITS = [-50.0, -8.0, -1.0, 0.0, 0.3, 4.0, 50.0]


# The law of a relaxed draw, given the hard one


@pytest.mark.parametrize("hard", [0.0, 1.0])
@pytest.mark.parametrize("logit", LOGITS[1:-1])
def test_a_conditional_logistic_inverts_the_conditional_distribution_function(logit, hard):
    """It is that law exactly: the distribution function of z, given its sign, returns the uniform number."""
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    logit = torch.tensor(logit, dtype=torch.float64)
    z = conditional.conditional_logistic(logit, torch.tensor(hard, dtype=torch.float64), u)
    assert bool(((z > 0) == bool(hard)).all())
    if hard:
        torch.testing.assert_close((logit - z).sigmoid() / logit.sigmoid(), 1 - u)
    else:
        torch.testing.assert_close((z - logit).sigmoid() / (-logit).sigmoid(), 1 - u)


@pytest.mark.parametrize("logit", LOGITS)
def test_a_conditional_logistic_has_the_right_mean_and_slope(logit):
    """E[z | z > 0] is softplus(logit) / p; dz/dlogit is that of the inverse distribution function."""
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    for hard, side in ((1.0, 1.0), (0.0, -1.0)):
        at = torch.tensor(side * logit, dtype=torch.float64)
        z = conditional.conditional_logistic(side * at, torch.tensor(hard, dtype=torch.float64), u)
        assert side * z.mean().item() == pytest.approx((F.softplus(at) / at.sigmoid()).item(), abs=2e-5, rel=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("hard", [0.0, 1.0])
def test_a_conditional_logistic_in_float32_is_that_of_float64(logit, hard):
    u = torch.tensor([1.5e-8, 1e-7, 1e-3, 0.3, 0.9, 0.999, 1 - 6e-8])
    found = []
    for dtype in (torch.float32, torch.float64):
        at = torch.full_like(u, logit, dtype=dtype).requires_grad_()
        z = conditional.conditional_logistic(at, torch.tensor(hard, dtype=dtype), u.to(dtype))
        (slope,) = torch.autograd.grad(z.sum(), at)
        assert bool(z.isfinite().all())
        assert bool(slope.isfinite().all())
        found.append((z.double(), slope.double()))
    for narrow, wide in zip(*found, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-6)


def kolmogorov(first, second):
    """Their two-sample statistic, over the value that it exceeds with a probability of 1e-7."""
    joined = torch.cat([first, second]).sort().values
    both = [torch.searchsorted(x.sort().values, joined, right=True) / len(x) for x in (first, second)]
    scale = math.sqrt((len(first) + len(second)) / (len(first) * len(second)))
    return (both[0] - both[1]).abs().max().item() / (scale * math.sqrt(-math.log(1e-7 / 2) / 2))


def pair(law):
    """A hard draw, the noise behind it, and other noise given it."""
    z = law.perturb()
    return law.read(z), z, law.perturb_given(law.read(z))


@pytest.mark.statistical
def test_a_draw_given_the_hard_one_is_distributed_as_the_draw_behind_it():
    """The draws behind one hard value are those that rejection keeps; 17 comparisons at 1e-7 each."""
    logits = torch.tensor([0.8, -1.0, 0.1], dtype=torch.float64).expand(60_000, 3)
    hard, z, given = pair(conditional.GumbelNoise(logits))
    for category in range(3):
        kept = hard[:, category] > 0
        assert bool((given[kept].argmax(-1) == category).all())
        for of in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 2], lambda x: x[:, 0] - x[:, 2]):
            assert kolmogorov(of(z[kept]), of(given[kept])) < 1
    hard, z, given = pair(conditional.LogisticNoise(logits))
    for bit in (0, 1):
        kept = hard[:, 0] == bit
        assert kolmogorov(z[kept, 0], given[kept, 0]) < 1


# The mean of the estimate, by quadrature over its two uniform numbers


def parabola(phi, target=0.45):
    """Minimise (b - target)^2 for one bit."""

    def model():
        b = pyro.sample("b", dist.Bernoulli(logits=torch.zeros_like(phi)))
        pyro.factor("reward", -((b - target) ** 2))

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=phi))

    return model, guide


def quadrature(monkeypatch, estimator, probability, nodes=400):
    """The mean of the gradient over a grid of noise, and the exact one; `probability` is a multiple of 1 / nodes."""
    phi = torch.tensor(probability, dtype=torch.float64).logit().requires_grad_()
    u = (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    first, second = u.repeat_interleave(nodes), u.repeat(nodes)
    model, guide = parabola(phi)
    elbo = TraceELBO(estimator, num_particles=nodes * nodes)
    exact = Oracle()(model, guide).gradients["phi"].item()
    elbo.loss(model, guide)  # plans
    monkeypatch.setattr(conditional, "logistic_like", lambda x: (first.log() - (-first).log1p()).reshape(x.shape))
    monkeypatch.setattr(conditional, "uniform_like", lambda x: second.reshape(x.shape))
    elbo.loss_and_grads(model, guide)
    return phi.grad.item(), exact


ANYWHERE = {
    "rebar": REBAR,
    "rebar, far from the start": lambda: REBAR(temperature=2.5, eta=0.2),
    "rebar, sharp": lambda: REBAR(temperature=0.2, eta=3.0),
    "relax": lambda: RELAX(network=bent()),
    "relax, far from the start": lambda: RELAX(temperature=1.7, eta=0.1, network=bent()),
    "relax as a black box": lambda: RELAX(temperature=0.3, black_box=True, network=bent()),
}


@pytest.mark.parametrize("probability", [0.5, 0.8])
@pytest.mark.parametrize("make", ANYWHERE.values(), ids=ANYWHERE)
def test_the_mean_of_the_estimate_is_exact_wherever_its_parameters_are(monkeypatch, make, probability):
    mean, exact = quadrature(monkeypatch, make(), probability)
    assert mean == pytest.approx(exact, abs=2e-4)


def test_the_published_gradient_of_a_fair_bit(monkeypatch):
    mean, exact = quadrature(monkeypatch, REBAR(temperature=0.5), 0.5)
    assert exact == pytest.approx(0.025)
    assert mean == pytest.approx(0.025, abs=1e-4)


def test_the_decoy_has_the_mean_it_is_known_for(monkeypatch):
    monkeypatch.setattr(conditional, "conditional_logistic", decoy)
    mean, _ = quadrature(monkeypatch, REBAR(temperature=0.5), 0.5)
    assert mean == pytest.approx(0.0619, abs=5e-4)


# What trains their parameters


def reward(phi, one_hot=False):
    """A curved reward of one event, whose logits are the parameter itself; and one bit that depends on it."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.ones_like(phi)) if one_hot else bits(torch.zeros_like(phi)))
        h = pyro.sample("h", dist.Bernoulli(0.3))
        order = torch.arange(1, 1 + phi.shape[-1]).to(phi)
        pyro.factor("reward", -((z * order).sum(-1) - 0.7 - h).square())

    def guide():
        z = pyro.sample("z", dist.OneHotCategorical(logits=phi) if one_hot else bits(phi))
        pyro.sample("h", dist.Bernoulli(logits=1.5 * z[..., 0] - 0.4 * z[..., 1]))

    return model, guide


def squared_gradient(elbo, pair, phi, seed):
    """The sum of squares of the estimate, whose parts see the same noise for the same seed."""
    torch.manual_seed(seed)
    phi.grad = None
    elbo.loss_and_grads(*pair)
    return phi.grad.square().sum().item()


@pytest.mark.parametrize("one_hot", [False, True], ids=["bits", "one-hot"])
@pytest.mark.parametrize(
    ("make", "particles"),
    [
        (lambda: REBAR(temperature=0.6, eta=0.8), 1),
        (lambda: RELAX(temperature=0.6, eta=0.8, network=bent()), 1),
        (lambda: RELAX(temperature=0.6, black_box=True, network=bent()), 1),
        (lambda: DoubleCV(alpha=-0.3), 3),
        (lambda: RODEO(alpha=0.5, beta=-0.7, hidden=10), 3),
    ],
    ids=["rebar", "relax", "black box", "double_cv", "rodeo"],
)
def test_the_auxiliary_gradient_is_that_of_the_squared_gradient(make, particles, one_hot):
    """Each parameter (its first entry) against central differences of the very estimate, common random numbers."""
    if one_hot and Family.ONE_HOT not in make().families:
        return
    phi = torch.tensor([0.4, -0.8, 0.1], dtype=torch.float64, requires_grad=True)
    elbo = TraceELBO({"z": make().double(), "h": "enumerate"}, num_particles=particles)
    pair = reward(phi, one_hot)
    squared_gradient(elbo, pair, phi, 0)
    own = dict(elbo.estimators["z"].named_parameters())
    assert own
    for seed in range(3):
        for parameter in own.values():
            parameter.grad = None
        squared_gradient(elbo, pair, phi, seed)
        found = {name: parameter.grad.flatten()[0].item() for name, parameter in own.items()}
        for name, parameter in own.items():
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.flatten()[0] += step
                sides.append(squared_gradient(elbo, pair, phi, seed))
                with torch.no_grad():
                    parameter.flatten()[0] -= step
            assert found[name] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(
    "make", [REBAR, RELAX, lambda: RELAX(black_box=True), DoubleCV], ids=["rebar", "relax", "black box", "double_cv"]
)
def test_an_impossible_category_is_as_if_it_were_not_there(make):
    """30 estimates at every one of four logits: false alarms in 3e-5 of the runs, by Student's t."""
    logits = torch.tensor([0.3, 0.0, -0.4, 0.2, 0.1], requires_grad=True)
    impossible = torch.tensor([0.0, -torch.inf, 0.0, 0.0, 0.0])

    def model():
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])))
        pyro.sample("x", dist.Normal(0.3 * k**2, 1.0), obs=torch.tensor(0.5))

    def guide():
        pyro.sample("k", dist.Categorical(logits=logits + impossible))

    def estimate(elbo):
        logits.grad = None
        elbo.loss_and_grads(model, guide)
        return logits.grad.clone()

    exact = estimate(TraceELBO("enumerate"))
    elbo = TraceELBO(make(), num_particles=50)
    estimates = torch.stack([estimate(elbo) for _ in range(30)])
    assert all(p.grad.isfinite().all() for p in elbo.parameters())
    assert (estimates[:, 1] == 0).all()
    possible = impossible == 0
    error = (estimates.mean(0) - exact)[possible]
    assert (error.abs() < 6.0 * estimates.std(0)[possible] / 30**0.5).all()
