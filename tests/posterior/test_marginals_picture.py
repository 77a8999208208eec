"""Pictures of discrete posteriors show the probabilities that there are."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyro_discrete import DiscretePosterior
from pyro_discrete.diagnostics import picture_draws, to_inference_data
from pyro_discrete.errors import SettingError
from pyro_discrete.posterior.marginals_picture import picture_marginals

matplotlib = pytest.importorskip("matplotlib")

X = torch.tensor([0.1, 2.5, 2.6, -1.3, 0.2])


def chain(x):
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.tensor([[0.9, 0.1], [0.1, 0.9]])[z]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * z, 1.0), obs=x[t])


def kinds(x):
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    n = pyro.sample("n", dist.Poisson(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(0.1 * (z + k + n) + b, 1.0), obs=x)


def heights(axes):
    return torch.tensor([float(bar.get_height()) for bar in axes.patches])


def shown_map(axes):
    return torch.as_tensor(np.asarray(axes.images[0].get_array()))


def test_alike_sites_are_one_map(tmp_path):
    posterior = DiscretePosterior(chain)
    figure = posterior.plot(X, path=tmp_path / "chain.png")
    expected = torch.stack([posterior.marginals(X)[f"z_{t}"].probs for t in range(5)])
    torch.testing.assert_close(shown_map(figure.axes[0]), expected.T, rtol=1e-5, atol=1e-6)
    assert figure.axes[0].get_title() == "z_0 ... z_4 (5)"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [f"z_{t}" for t in range(5)]
    assert (tmp_path / "chain.png").stat().st_size > 0


def test_each_kind_of_site_has_its_panel():
    posterior = DiscretePosterior(kinds)
    found = posterior.marginals(X)
    k, n, z, b = posterior.plot(X).axes[:4]
    torch.testing.assert_close(heights(k), found["k"].probs.float(), rtol=1e-5, atol=1e-6)
    counts = found["n"].probs[: len(heights(n))].float()
    torch.testing.assert_close(heights(n), counts, rtol=1e-5, atol=1e-6)
    assert counts.sum() > 0.99
    torch.testing.assert_close(shown_map(z).float(), found["z"].probs.T.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heights(b), found["b"].probs.float(), rtol=1e-5, atol=1e-6)
    assert [axes.get_title() for axes in (k, n, z, b)] == ["k", "n", "z", "b"]


def test_sites_can_be_chosen_and_unknown_ones_are_refused():
    posterior = DiscretePosterior(kinds)
    assert [axes.get_title() for axes in posterior.plot(X, sites=["b"]).axes] == ["b"]
    with pytest.raises(SettingError, match=r"no discrete site 'bb'\. Did you mean 'b'"):
        posterior.plot(X, sites=["bb"])


def test_of_given_draws_the_mean_is_shown():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(m + z, 1.0), obs=x)

    posterior = DiscretePosterior(model, samples={"m": torch.randn(7)})
    expected = posterior.marginals(X)["z"].probs.mean(0)
    torch.testing.assert_close(shown_map(posterior.plot(X).axes[0]), expected.T, rtol=1e-5, atol=1e-6)


def test_counts_that_have_no_list_are_drawn_up_to_where_nearly_nothing_is_left():
    (axes,) = picture_marginals({"n": dist.Poisson(3.0), "y": dist.Normal(0.0, 1.0)}).axes
    found = heights(axes)
    torch.testing.assert_close(found, dist.Poisson(3.0).log_prob(torch.arange(float(len(found)))).exp())
    assert found.sum() > 0.995
    (axes,) = picture_marginals({"n": dist.Binomial(2, 0.5)}).axes
    torch.testing.assert_close(heights(axes), torch.tensor([0.25, 0.5, 0.25]))
    with pytest.raises(SettingError, match="no discrete site"):
        picture_marginals({"y": dist.Normal(0.0, 1.0)})


def test_draws_are_counted_chain_by_chain_and_nan_left_out():
    draws = xr.Dataset(
        {
            "k": (("chain", "draw"), [[0, 1, 1, 2], [1, 1, 1, 2]]),
            "z": (("chain", "draw", "data"), [[[1.0, 0.0]] * 4, [[1.0, np.nan]] * 4]),
            "m": (("chain", "draw"), [[0.1, 0.2, 0.3, 0.4]] * 2),
        }
    )
    figure = picture_draws({"posterior": draws})
    k, z = figure.axes
    assert [axes.get_title() for axes in (k, z)] == ["k", "z"]
    assert heights(k).tolist() == [0.125, 0.625, 0.25]
    assert [line.get_ydata().tolist() for line in k.lines] == [[0.25, 0.5, 0.25], [0.0, 0.75, 0.25]]
    assert heights(z).tolist() == [1.0, 0.0]
    assert z.get_xlabel() == "data"


def test_draws_on_the_axes_of_arviz():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = to_inference_data(kinds, lambda x: None, X, num_samples=50)
    if not hasattr(az, "plot_posterior"):
        pytest.skip("ArviZ 1 has other axes")
    axes = az.plot_posterior(data, var_names=["k", "n"], backend_kwargs={})
    figure = picture_draws(data, ["k", "n"], ax=axes)
    assert figure is axes[0].figure
    share = (data.posterior["k"].values == np.arange(3)[:, None, None]).mean((1, 2))
    np.testing.assert_allclose(
        [bar.get_height() for bar in axes[0].patches][: len(share)], share[: len(axes[0].patches)]
    )
    assert not axes[0].texts  # mean and interval are gone
    FigureCanvasAgg(figure).draw()
    with pytest.raises(SettingError, match="2 axes given, one for each of 1 variables"):
        picture_draws(data, ["k"], ax=axes)


def test_what_is_no_category_is_left_to_arviz():
    draws = {"posterior": xr.Dataset({"m": (("chain", "draw"), [[0.1, 0.2]])})}
    with pytest.raises(SettingError, match="no variable has whole numbers"):
        picture_draws(draws)
    with pytest.raises(SettingError, match="draws of 'm' are not whole numbers"):
        picture_draws(draws, ["m"])
    with pytest.raises(SettingError, match="no variable 'k'"):
        picture_draws(draws, ["k"])


def test_a_posterior_in_a_notebook_says_what_it_is_of():
    html = DiscretePosterior(chain)._repr_html_()
    assert "chain" in html
    assert "num_samples" in html
    assert repr(DiscretePosterior(chain)) == "DiscretePosterior(model=chain, guide=None, num_samples=100)"

    def model():
        pass

    model.__qualname__ = "<b>model</b>"
    assert "<b>" not in DiscretePosterior(model)._repr_html_()
    assert "draws" in DiscretePosterior(model, samples={"m": torch.zeros(3)})._repr_html_()
