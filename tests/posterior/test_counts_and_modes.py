"""Counts without a last value, and continuous sites whose mean is infinite or not known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoIAFNormal

from pyro_discrete import DiscretePosterior
from pyro_discrete.errors import EnumerationError
from pyro_discrete.posterior.mixtures import MixtureOfDraws
from pyro_discrete.posterior.modes import centre

t = torch.tensor


COUNTS = {
    "poisson": dist.Poisson,
    "geometric": lambda m: dist.Geometric(1 / (1 + m)),
    "negative binomial": lambda m: dist.NegativeBinomial(2.0, m / (m + 2)),
    "gamma poisson": lambda m: dist.GammaPoisson(2.0, 2.0 / m),
    "zero inflated": lambda m: dist.ZeroInflatedPoisson(2 * m, gate=t(0.5)),
    "binomial": lambda m: dist.Binomial(400, m / 400),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("seed", range(2))
def test_a_count_is_averaged_over_what_its_rate_reads(name, seed):
    """The mean of 0.75 x 1 + 0.25 x 9 is 3; summed out exactly, so that it is the same with any number of draws."""

    def program():
        b = pyro.sample("b", dist.Bernoulli(t(0.25)))
        with pyro.plate("data", 3):
            pyro.sample("z", COUNTS[name]((1.0 + 8.0 * b) * t([1.0, 1.0, 0.5])))

    pyro.set_rng_seed(seed)
    found = DiscretePosterior(program, program, 10).marginals()["z"]
    values = torch.arange(401.0)
    if isinstance(found, MixtureOfDraws):
        probabilities = found.log_prob(values.unsqueeze(-1).expand(401, 3)).exp().T
        assert torch.allclose(found.mean, t([3.0, 3.0, 1.5]), atol=1e-4)
        drawn = found.sample((4000,))
        assert ((drawn.mean(0) - found.mean) / (found.variance / 4000).sqrt()).abs().max() < 5
        by_hand = (probabilities * values.square()).sum(-1) - found.mean.square()
        if name != "geometric":
            assert torch.allclose(found.variance, by_hand, rtol=0.02)
    else:
        probabilities = found.probs
    assert torch.allclose((probabilities * values).sum(-1).float(), t([3.0, 3.0, 1.5]), rtol=1e-3)
    pair = [COUNTS[name](m * t([1.0, 1.0, 0.5])) for m in (1.0, 9.0)]
    exact = sum(w * fn.log_prob(values[:5, None].expand(5, 3)).exp() for w, fn in zip((0.75, 0.25), pair, strict=True))
    assert torch.allclose(probabilities[:, :5].float(), exact.T, atol=1e-5)


def test_a_count_whose_rate_reads_nothing_stays_what_it_is():
    def program():
        pyro.sample("b", dist.Bernoulli(t(0.25)))
        pyro.sample("z", dist.Poisson(t([2.0, 3.0])).to_event(1))

    found = DiscretePosterior(program, program, 20).marginals()["z"]
    assert torch.equal(found.base_dist.rate, t([2.0, 3.0]))
    assert found.event_shape == (2,)


def test_counts_behind_a_branch_or_a_continuous_site_are_averaged_over_draws():
    """A thousand draws; the mean of the rates has a standard error of 4 / sqrt(1000) at most."""

    def branch():
        b = pyro.sample("b", dist.Bernoulli(t(0.5)))
        pyro.sample("z", dist.Poisson(t(9.0) if b.item() else t(1.0)))

    def continuous():
        s = pyro.sample("s", dist.Uniform(1.0, 9.0))
        pyro.sample("z", dist.Poisson(s))

    for program in (branch, continuous):
        for seed in range(2):
            pyro.set_rng_seed(seed)
            found = DiscretePosterior(program, program, 1000).marginals()["z"]
            assert abs(float(found.mean) - 5.0) < 5.5 * 4 / 1000**0.5


def test_sites_behind_a_count_are_averaged_over_its_draws():
    def program():
        k = pyro.sample("k", dist.Poisson(t(2.0)))
        with pyro.plate("data", 2):
            pyro.sample("u", dist.Bernoulli(k / (k + t([1.0, 2.0]))))

    k = torch.arange(60.0)
    exact = (dist.Poisson(t(2.0)).log_prob(k).exp() * (k / (k + t([[1.0], [2.0]])))).sum(-1)
    pyro.set_rng_seed(0)
    found = DiscretePosterior(program, program, 4000).marginals()["u"].probs
    assert torch.allclose(found.float(), exact, atol=5.5 * 0.35 / 4000**0.5)


def test_the_mode_of_a_count():
    for make, mode in (
        (lambda: dist.Poisson(t(2.5)), 2.0),
        (lambda: dist.Poisson(t(1000.5)), 1000.0),
        (lambda: dist.Geometric(t(0.3)), 0.0),
        (lambda: dist.NegativeBinomial(t(4.0), t(0.5)), 2.0),
    ):

        def guide(make=make):
            z = pyro.sample("z", make())
            with pyro.plate("data", 2):
                pyro.sample("j", dist.Poisson(t([[0.5, 3.5], [1.5, 7.5]])).to_event(1))
            return z

        def model(guide=guide):
            z = guide()
            pyro.sample("x", dist.Normal(z, 1.0), obs=t(3.0))

        for program in (model, guide):
            best = DiscretePosterior(program, guide).most_probable()
            assert best["z"] == mode
            assert torch.equal(best["j"], t([[0.0, 3.0], [1.0, 7.0]]))


@pytest.mark.parametrize("item", [True, False])
def test_the_joint_mode_of_a_count_and_what_hangs_on_it(item):
    def program():
        b = pyro.sample("b", dist.Bernoulli(t(0.55)))
        k = pyro.sample("k", dist.Poisson(1.0 + 5.0 * (b.item() if item else b) + t(0.0)))
        pyro.sample("u", dist.Bernoulli((k / 4).clamp(0.05, 0.95)))

    scores = {}
    for b in range(2):
        for k in range(40):
            for u in range(2):
                p = min(max(k / 4, 0.05), 0.95)
                rate = 1.0 + 5.0 * b
                log_p = k * math.log(rate) - rate - math.lgamma(k + 1) + math.log(0.55 if b else 0.45)
                scores[b, k, u] = log_p + math.log(p if u else 1 - p)
    best = DiscretePosterior(program, program).most_probable()
    assert (int(best["b"]), int(best["k"]), int(best["u"])) == max(scores, key=scores.__getitem__)


def test_a_count_that_cannot_be_gone_through_is_refused_for_its_own_reason():
    def program(total, chances):
        pyro.sample("z", dist.Multinomial(total, chances))

    posterior = DiscretePosterior(program, program)
    assert posterior.most_probable(5, t([0.2, 0.8]))["z"].tolist() == [1.0, 4.0]
    with pytest.raises(EnumerationError, match=r"'z' \(Multinomial\) has more values than the 1048576"):
        posterior.most_probable(60, torch.full((12,), 1 / 12))


EXPONENTIAL = dist.transforms.ExpTransform()
NARROW = dist.Normal(torch.zeros(2), 0.1)
SCALES = {
    "half Cauchy": lambda: dist.HalfCauchy(t(1.0)),
    "Cauchy": lambda: dist.Cauchy(t(0.5), t(0.1)),
    "Pareto": lambda: dist.Pareto(t(0.1), t(0.8)),
    "Student": lambda: dist.StudentT(t(1.0), t(0.5), t(0.1)),
    "half Cauchy event": lambda: dist.HalfCauchy(torch.ones(2)).to_event(1),
    "transformed": lambda: dist.TransformedDistribution(NARROW, [EXPONENTIAL]).to_event(1),
    "spline": lambda: dist.TransformedDistribution(NARROW.to_event(1), [dist.transforms.Spline(2)]),
    "inverse gamma": lambda: dist.InverseGamma(t(0.5), t(0.5)),
}


@pytest.mark.parametrize("name", SCALES)
def test_modes_beside_a_site_without_a_finite_or_a_closed_mean(name):
    obs = t([0.1, 2.9])

    def model():
        s = pyro.sample("s", SCALES[name]())
        s = s.mean(-1, keepdim=True) if s.dim() else s
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(t(0.5)))
            pyro.sample("x", dist.Normal(3.0 * z, s.abs() + 0.1), obs=obs)

    def guide():
        pyro.sample("s", SCALES[name]())

    found = [DiscretePosterior(model, guide).most_probable()["z"].tolist() for _ in range(2)]
    assert found == [[0.0, 1.0]] * 2  # the nearer of the two means, at every finite scale


def test_modes_beside_a_flow():
    def model():
        s = pyro.sample("s", dist.LogNormal(t(0.0), t(0.3)).expand([2]).to_event(1))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(t(0.5)))
            pyro.sample("x", dist.Normal(3.0 * z, s.mean(-1, keepdim=True).clamp(0.1, 3.0)), obs=t([0.1, 2.9]))

    pyro.set_rng_seed(0)
    flow = AutoIAFNormal(poutine.block(model, expose=["s"]))
    flow()
    assert DiscretePosterior(model, flow).most_probable()["z"].tolist() == [0.0, 1.0]


def test_centres():
    assert centre(dist.Normal(t(2.0), 1.0)) == 2
    assert torch.allclose(centre(dist.Cauchy(t([1.0, -2.0]), 1.0)), t([1.0, -2.0]))
    assert torch.allclose(centre(dist.HalfCauchy(t(3.0))), t(3.0))  # the median of |X| is its scale
    mixed = centre(dist.Pareto(t(1.0), t([0.5, 2.0])))  # 2^(1 / a), where the mean a / (a - 1) is infinite
    assert torch.allclose(mixed, t([4.0, 2.0]))
    matrix = centre(dist.LKJCholesky(3, t(1.0)))  # no mean: a draw near the middle, with rows of length one
    assert torch.allclose((matrix @ matrix.T).diagonal(), torch.ones(3), atol=1e-5)
    assert torch.equal(matrix, centre(dist.LKJCholesky(3, t(1.0))))
