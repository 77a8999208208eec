"""The way into ArviZ: groups, dims and coords; log-likelihoods and weights against sums by hand; k-hat."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

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


@pytest.mark.filterwarnings("ignore")
def test_arviz_reads_it(data):
    summary = az.summary(data, var_names=["mean", "z"])
    assert {"mean", "z[0]", "z[2]"} <= set(summary.index)
    assert np.isfinite(az.loo(data).elpd_loo)
    assert len(az.compare({"one": data, "two": data})) == 2
    az.plot_ppc(data, num_pp_samples=5)


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
