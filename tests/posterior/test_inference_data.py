"""The way into ArviZ: groups, dims and coords; log-likelihoods and weights against sums by hand; k-hat."""

from __future__ import annotations

import itertools
import math
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import DiscretePosterior
from pyro_discrete.diagnostics import pareto_k, to_inference_data
from pyro_discrete.errors import SettingError, SiteMatchError

X = torch.tensor([[0.3, -0.2], [1.4, 0.9], [2.0, 1.0]])
OFFSET = torch.tensor([0.0, 0.1, 0.2])


def model(x, offset):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal((mean + z + offset).unsqueeze(-1) + torch.zeros(2), 1.0).to_event(1), obs=x)


def guide(x, offset):
    pyro.sample("mean", dist.Normal(0.2, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.6, 0.8])))


@pytest.fixture(scope="module")
def data():
    pyro.set_rng_seed(0)
    return to_inference_data(
        model, guide, X, OFFSET, num_samples=300, dims={"x": ["axis"]}, coords={"axis": ["a", "b"]}
    )


def test_groups_have_named_dims_and_coords(data):
    assert dict(data.posterior["z"].sizes) == {"chain": 1, "draw": 300, "data": 3}
    assert dict(data.posterior["mean"].sizes) == {"chain": 1, "draw": 300}
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "data", "axis")
    assert data.observed_data["x"].dims == ("data", "axis")
    assert data.observed_data["x"]["axis"].values.tolist() == ["a", "b"]
    assert data.constant_data["offset"].values.tolist() == pytest.approx(OFFSET.tolist())
    assert "x" not in data.constant_data


def test_log_likelihood_and_weights_are_the_sums_by_hand(data):
    mean, z = (torch.as_tensor(data.posterior[name].values[0]).float() for name in ("mean", "z"))
    likelihood = dist.Normal((mean[:, None] + z + OFFSET)[..., None], 1.0).log_prob(X).sum(-1)
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], likelihood, atol=1e-5)
    log_p = dist.Normal(0.0, 1.0).log_prob(mean) + dist.Bernoulli(0.4).log_prob(z).sum(-1) + likelihood.sum(-1)
    log_q = dist.Normal(0.2, 0.5).log_prob(mean) + dist.Bernoulli(torch.tensor([0.2, 0.6, 0.8])).log_prob(z).sum(-1)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], log_p, rtol=1e-5)
    np.testing.assert_allclose(data.sample_stats["log_weight"].values[0], log_p - log_q, rtol=1e-4, atol=1e-5)


def test_predictions_follow_the_draws_they_are_made_from(data):
    """300 draws of three data: the correlation's standard error is 0.03; prior draws would have none."""
    z, x = data.posterior["z"].values[0].ravel(), data.posterior_predictive["x"].mean("axis").values[0].ravel()
    assert np.corrcoef(z, x)[0, 1] > 0.2


def elpd(found):
    """As ArviZ 1 names it, or versions before."""
    return found.elpd if hasattr(found, "elpd") else found.elpd_loo


@pytest.mark.filterwarnings("ignore")
def test_arviz_reads_it(data):
    summary = az.summary(data, var_names=["mean", "z"])
    assert {"mean", "z[0]", "z[2]"} <= set(summary.index)
    assert np.isfinite(elpd(az.loo(data)))
    assert len(az.compare({"one": data, "two": data})) == 2
    if hasattr(az, "plot_ppc"):
        az.plot_ppc(data, num_pp_samples=5)
    else:  # ArviZ 1
        az.plot_ppc_dist(data, num_samples=5)


def test_a_subsample_gives_its_indices_and_a_mask_gives_zero():
    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            with poutine.mask(mask=index > 0):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def its_guide(x):
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("z", dist.Bernoulli(0.5))

    pyro.set_rng_seed(1)
    x = torch.tensor([0.0, 1.0, 2.0])
    found = to_inference_data(subsampled, its_guide, x, num_samples=4)
    index = found.posterior["z"]["data"].values
    assert len(index) == 2
    assert set(index) <= {0, 1, 2}
    np.testing.assert_allclose(found.observed_data["x"].values, x[index])
    np.testing.assert_array_equal(found.log_likelihood["x"].sel(data=index[index == 0]).values, 0.0)


def test_programs_that_take_no_leading_dim_run_one_draw_at_a_time():
    def flat(x):
        z = pyro.sample("z", dist.Bernoulli(0.4 * torch.ones(2)).to_event(1))
        pyro.sample("x", dist.Normal(z.view(2)[0] * 2, 1.0), obs=x)

    def its_guide(x):
        pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))

    found = to_inference_data(flat, its_guide, torch.tensor(1.0), num_samples=50)
    z = torch.as_tensor(found.posterior["z"].values[0]).float()
    np.testing.assert_allclose(
        found.log_likelihood["x"].values[0], dist.Normal(2 * z[:, 0], 1.0).log_prob(torch.tensor(1.0)), rtol=1e-5
    )


@pytest.mark.statistical
def test_k_hat_tells_a_good_guide_from_a_narrow_one():
    """The posterior is N(1/2, 1/2); weights of a guide half as wide have an infinite variance. Fixed seed."""

    def simple():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def good():
        pyro.sample("z", dist.Normal(0.5, 1.05 * math.sqrt(0.5)))

    def narrow():
        pyro.sample("z", dist.Normal(0.5, 0.35 * math.sqrt(0.5)))

    pyro.set_rng_seed(0)
    assert pareto_k(simple, good, num_samples=4000) < 0.5
    assert pareto_k(simple, narrow, num_samples=4000) > 0.7


def test_k_hat_of_each_datum():
    found = pareto_k(model, guide, X, OFFSET, num_samples=200, plate="data")
    assert found.dims == ("data",)
    assert found.shape == (3,)
    with pytest.raises(SettingError, match="no plate named 'dat'"):
        pareto_k(model, guide, X, OFFSET, num_samples=200, plate="dat")
    with pytest.raises(SettingError, match="25 draws"):
        pareto_k(model, guide, X, OFFSET, num_samples=20)


def only_the_mean(x, offset):
    pyro.sample("mean", dist.Normal(0.2, 0.5))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
@pytest.mark.parametrize("rows", [True, False])
def test_sites_of_the_model_alone_are_summed_out_and_drawn(rows, monkeypatch):
    """False alarms below 1e-6: the mean of z is within 5.5 standard errors of its posterior probability's."""
    if not rows:
        monkeypatch.setattr("pyro_discrete.posterior.draws.check_rows", lambda *a: False)
    pyro.set_rng_seed(0)
    draws = 2_000 if rows else 40
    data = to_inference_data(model, only_the_mean, X, OFFSET, num_samples=draws)
    mean, z = (torch.as_tensor(data.posterior[name].values[0]).float() for name in ("mean", "z"))
    value = torch.arange(2.0)[:, None, None]
    each = dist.Normal((mean[:, None] + value + OFFSET)[..., None], 1.0).log_prob(X).sum(-1)
    each = each + dist.Bernoulli(0.4).log_prob(value)  # [value, draw, datum]
    likelihood, probability = each.logsumexp(0), each.softmax(0)[1]
    assert data.log_likelihood["x"].dims == ("chain", "draw", "data")
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], likelihood, atol=1e-5)
    log_p = dist.Normal(0.0, 1.0).log_prob(mean) + likelihood.sum(-1)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], log_p, rtol=1e-5)
    log_weight = log_p - dist.Normal(0.2, 0.5).log_prob(mean)
    np.testing.assert_allclose(data.sample_stats["log_weight"].values[0], log_weight, rtol=1e-4, atol=1e-5)
    error = (probability * (1 - probability)).sum(0).sqrt() / draws
    assert ((z - probability).mean(0).abs() < 5.5 * error).all()
    assert data.posterior_predictive["x"].sizes["draw"] == draws
    assert az.loo(data, var_name="x").n_data_points == 3


def test_data_that_share_a_summed_site_have_one_log_likelihood():
    def model(x):
        with pyro.plate("chains", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with pyro.plate("data", 3, dim=-1):
                pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=x[:, :1])

    def alone(x):
        with pyro.plate("chains", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with pyro.plate("data", 3, dim=-1):
                pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    x, value = torch.randn(2, 3), torch.arange(2.0)[:, None, None]
    given = dist.Normal(2 * value, 1.0).log_prob(x).sum(-1, keepdim=True) + dist.Bernoulli(0.3).log_prob(value)
    for program, name in ((model, "x + y"), (alone, "x together")):
        data = to_inference_data(program, lambda x: None, x, num_samples=30)
        assert data.log_likelihood[name].sizes["chains"] == 2
        more = dist.Normal(value, 1.0).log_prob(x[:, :1]) if program is model else 0.0
        expected = (given + more).logsumexp(0).expand(30, 2, 1)
        np.testing.assert_allclose(data.log_likelihood[name].values[0], expected, atol=1e-5)


def test_k_hat_beside_sites_of_the_model_alone():
    pyro.set_rng_seed(0)
    assert pareto_k(model, only_the_mean, X, OFFSET, num_samples=4000) < 0.7
    with pytest.raises(SettingError, match="draws no site"):
        pareto_k(model_without_mean, lambda: None)
    with pytest.raises(SiteMatchError, match="'mean' is latent in the model but not drawn"):
        to_inference_data(model, lambda x, offset: None, X, OFFSET)


def model_without_mean():
    z = pyro.sample("z", dist.Bernoulli(0.4))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))


@pytest.mark.parametrize("read", [lambda b: b.item() > 0.5, lambda b: bool(b > 0.5)])
def test_each_draw_has_the_sites_of_its_own_branch(read):
    def branching():
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
        if read(b):
            c = pyro.sample("u", dist.Categorical(torch.tensor([0.7, 0.3])))
        else:
            c = pyro.sample("v", dist.Bernoulli(torch.tensor(0.6)))
            pyro.sample("y", dist.Normal(c, 1.0), obs=torch.tensor(0.2))
        pyro.sample("x", dist.Normal(b + c, 1.0), obs=torch.tensor(1.5))

    def its_guide():
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
        if read(b):
            pyro.sample("u", dist.Categorical(torch.tensor([0.5, 0.5])))
        else:
            pyro.sample("v", dist.Bernoulli(torch.tensor(0.5)))

    for seed in range(2):
        pyro.set_rng_seed(seed)
        data = to_inference_data(branching, its_guide, num_samples=60)
        b, u, v = (torch.as_tensor(data.posterior[n].values[0]).float() for n in ("b", "u", "v"))
        assert 10 < b.sum() < 50  # 5 standard deviations
        assert torch.equal(u.isnan(), b == 0)
        assert torch.equal(v.isnan(), b == 1)
        c = torch.where(b == 1, u, v)
        x = dist.Normal(b + c, 1.0).log_prob(torch.tensor(1.5))
        np.testing.assert_allclose(data.log_likelihood["x"].values[0], x, atol=1e-5)
        y = torch.where(b == 1, 0.0, dist.Normal(c, 1.0).log_prob(torch.tensor(0.2)))
        np.testing.assert_array_equal(np.isnan(data.log_likelihood["y"].values[0]), b == 1)
        prior = torch.where(b == 1, 0.4 * (0.7 - 0.4 * c), 0.6 * (0.4 + 0.2 * c)).log()
        np.testing.assert_allclose(data.sample_stats["lp"].values[0], prior + x + y, atol=1e-5)
        np.testing.assert_allclose(data.sample_stats["log_weight"].values[0], prior + x + y - math.log(0.25), atol=1e-5)
        assert data.posterior_predictive["x"].shape == (1, 60)


def nothing(*args):
    pass


def test_programs_summed_value_by_value():
    """A look-up that takes no enumerated dim, and sites that a plate's sum joins: as by hand."""
    table, x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 2.0, -1.0])

    def looked_up():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(torch.ones(4)))
            pyro.sample("x", dist.Normal(table.gather(-1, z[:, None])[:, 0], 1.0), obs=x)

    data = to_inference_data(looked_up, nothing, num_samples=30)
    expected = (dist.Normal(table, 1.0).log_prob(x[:, None]) - math.log(4)).logsumexp(-1)
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], expected.expand(30, 3), atol=1e-5)

    def read():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2.0 * z.item(), 1.0), obs=torch.tensor(0.7))

    data = to_inference_data(read, nothing, num_samples=30)
    both = dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor(0.7)) + torch.tensor([0.7, 0.3]).log()
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], both.logsumexp(0).expand(30), atol=1e-5)


def test_inference_mode():
    with torch.inference_mode():
        data = to_inference_data(model, only_the_mean, X, OFFSET, num_samples=20)
        assert np.isfinite(pareto_k(model, only_the_mean, X, OFFSET, num_samples=100))
    assert data.posterior["z"].shape == (1, 20, 3)


@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "bits", "Normal"])
def test_a_latent_of_each_datum_in_the_guide_is_warned_of(family):
    """Leave-one-out is far off there; where the guide leaves a discrete site to the model it is the log evidence."""
    pyro.set_rng_seed(0)
    y = torch.randn(20) + 2.0 * torch.bernoulli(torch.full((20,), 0.4))
    prior = {
        "Bernoulli": lambda: dist.Bernoulli(torch.tensor(0.4)),
        "Categorical": lambda: dist.Categorical(torch.tensor([0.6, 0.4])),
        "bits": lambda: dist.Bernoulli(torch.tensor([0.4])).to_event(1),
        "Normal": lambda: dist.Normal(0.0, 1.0),
    }[family]

    def program():
        with pyro.plate("data", 20):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(2.0 * (z.sum(-1) if family == "bits" else z), 1.0), obs=y)

    def its_guide():
        with pyro.plate("data", 20):
            pyro.sample("z", prior())

    with pytest.warns(UserWarning, match=r"log_likelihood is given draws of 'z'.*'data'.*az\.loo"):
        to_inference_data(program, its_guide, num_samples=30)
    if family != "Normal":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = to_inference_data(program, poutine.block(its_guide, hide=["z"]), num_samples=30)
        both = dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(y[:, None]) + torch.tensor([0.6, 0.4]).log()
        expected = both.logsumexp(-1)
        likelihood = next(iter(data.log_likelihood.data_vars.values())).values[0]
        np.testing.assert_allclose(likelihood, expected.expand(likelihood.shape), atol=1e-5)
        if hasattr(az, "psislw"):  # ArviZ 1 refuses weights that are all alike
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert elpd(az.loo(data)) == pytest.approx(float(expected.sum()), abs=1e-3)


def test_k_hat_of_each_datum_beside_a_site_of_the_model_alone():
    """As with the site summed out by hand, for the same draws."""

    def program(by_hand):
        with pyro.plate("data", 3):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            if by_hand:
                both = [dist.Normal(3.0 * c + w, 1.0).log_prob(X[:, 0]) + math.log(0.5) for c in range(2)]
                pyro.factor("x", torch.stack(both).logsumexp(0))
            else:
                z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z * 3.0 + w, 1.0), obs=X[:, 0])

    def its_guide(by_hand):
        with pyro.plate("data", 3):
            pyro.sample("w", dist.Normal(torch.zeros(3), 0.8))

    found = []
    for by_hand in (True, False):
        pyro.set_rng_seed(0)
        found.append(pareto_k(program, its_guide, by_hand, num_samples=1000, plate="data").values)
    np.testing.assert_allclose(*found, atol=0.25)


@pytest.mark.parametrize("off", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "Normal"])
def test_k_hat_of_weights_without_a_tail(family, off):
    """The exact posterior, or one that is off by so much in its logits or, in standard errors, its mean."""
    x, prior, locs = torch.tensor([-0.5, 0.9, 1.4, 2.2]), torch.tensor([0.2, 0.3, 0.5]), torch.tensor([-1.0, 0.0, 2.0])

    def posterior():
        if family == "Bernoulli":
            return dist.Bernoulli(logits=2 * x - 2 + off)
        if family == "Categorical":
            logits = prior.log() + dist.Normal(locs, 1.0).log_prob(x[:, None])
            return dist.Categorical(logits=logits + off * torch.tensor([0.0, 0.0, 1.0]))
        return dist.Normal(x / 2 + 0.2 * off, 0.5**0.5)

    def program():
        with pyro.plate("data", 4):
            if family == "Bernoulli":
                loc = 2 * pyro.sample("z", dist.Bernoulli(0.5))
            elif family == "Categorical":
                loc = locs[pyro.sample("z", dist.Categorical(prior))]
            else:
                loc = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def its_guide():
        with pyro.plate("data", 4):
            pyro.sample("z", posterior())

    pyro.set_rng_seed(0)
    assert (pareto_k(program, its_guide, num_samples=1000, plate="data") < 0.7).all()
    if off < 0.5:
        assert pareto_k(program, its_guide, num_samples=1000) < 0.7


def test_a_tail_that_is_there_keeps_its_k():
    """N(0, 1) proposed from N(0, s): the shape is 1 - s^2. A rare large weight of a discrete site is an alarm too."""

    def normal():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    for scale in (0.3, 0.4):

        def narrow(scale=scale):
            pyro.sample("z", dist.Normal(0.0, scale))

        pyro.set_rng_seed(0)
        assert abs(pareto_k(normal, narrow, num_samples=20_000) - (1 - scale**2)) < 0.25

    def bit():
        pyro.sample("z", dist.Bernoulli(0.4))

    def nearly_never():
        pyro.sample("z", dist.Bernoulli(0.002))

    pyro.set_rng_seed(0)  # drawn twice in a thousand, with 200 times the others' weight
    assert pareto_k(bit, nearly_never, num_samples=1000) > 0.7


@pytest.mark.parametrize("seed", range(4))
def test_a_site_that_the_model_lacks_in_a_branch_is_an_error_at_every_seed(seed):
    def lacking():
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
        if b.item() > 0.5:
            pyro.sample("u", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.tensor(1.5))

    def its_guide():
        pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("u", dist.Bernoulli(torch.tensor(0.3)))

    pyro.set_rng_seed(seed)
    with pytest.raises(SiteMatchError, match="'u' is drawn in the guide but is not in the model"):
        to_inference_data(lacking, its_guide, num_samples=60)


def test_sites_in_crossed_plates_are_summed_joint_value_by_joint_value():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def crossed():
        users, items = pyro.plate("users", 4, dim=-2), pyro.plate("items", 3, dim=-1)
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with users:
            a = pyro.sample("a", dist.Bernoulli(0.4))
        with items:
            b = pyro.sample("b", dist.Bernoulli(0.6))
        with users, items:
            pyro.sample("x", dist.Normal(a * b, 1.0), obs=x)
        pyro.sample("y", dist.Normal(g, 1.0), obs=torch.tensor(0.3))

    def its_guide():
        pyro.sample("g", dist.Delta(torch.tensor(0.5)))

    a, b = (torch.tensor(list(itertools.product((0.0, 1.0), repeat=n))) for n in (4, 3))
    joint = dist.Normal(a[:, None, :, None] * b[None, :, None, :], 1.0).log_prob(x).sum((-1, -2))
    joint = joint + dist.Bernoulli(0.4).log_prob(a).sum(-1)[:, None] + dist.Bernoulli(0.6).log_prob(b).sum(-1)
    p = joint.flatten().softmax(0).reshape(16, 8)
    found = DiscretePosterior(crossed, its_guide, 3).marginals()
    assert torch.allclose(found["a"].probs.flatten().float(), p.sum(1) @ a, atol=1e-5)
    assert torch.allclose(found["b"].probs.float(), p.sum(0) @ b, atol=1e-5)
    data = to_inference_data(crossed, its_guide, num_samples=3)
    evidence, y = joint.logsumexp((0, 1)), dist.Normal(0.5, 1.0).log_prob(torch.tensor(0.3))
    np.testing.assert_allclose(data.log_likelihood["x together"].values[0], evidence.expand(3), atol=1e-4)
    np.testing.assert_allclose(data.log_likelihood["y"].values[0], y.expand(3), atol=1e-5)
    log_p = evidence + y + dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.5))
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], log_p.expand(3), atol=1e-4)
