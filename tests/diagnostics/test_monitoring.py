"""The monitor: what it reports against what is known, and that it leaves training as it was."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import SVI
from torch import nn

from pyro_discrete import NVIL, RLOO, Enumerate, GumbelSoftmax, LinearDecay, Reinforce, TraceELBO, fit
from pyro_discrete.diagnostics import Monitor
from pyro_discrete.errors import SettingError

X = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def pair(seed=0):
    pyro.clear_param_store()
    torch.manual_seed(seed)
    encoder, decoder = nn.Linear(3, 4), nn.Linear(4, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return model, guide, encoder


@pytest.mark.parametrize("estimator", [NVIL(), NVIL(learning_rate=1e-2)])
def test_training_goes_on_as_if_nobody_had_looked(estimator):
    def train(watched):
        model, guide, encoder = pair()
        elbo = TraceELBO(estimator)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
        monitor = Monitor(model, guide, elbo, every=2)
        losses = []
        for _ in range(6):
            losses.append(svi.step(X))
            if watched:
                monitor(X)
        return losses, encoder.weight.detach().clone(), elbo.state_dict(), monitor

    plain, watched = train(False), train(True)
    assert plain[0] == watched[0]
    assert torch.equal(plain[1], watched[1])
    assert all(torch.equal(v, watched[2][k]) for k, v in plain[2].items() if torch.is_tensor(v))
    assert watched[3].history["step"].values.tolist() == [2, 4, 6]


def test_entropy_and_dead_latents_are_those_of_the_guide():
    model, guide, encoder = pair()
    with torch.no_grad():
        encoder.weight[:2] = 0.0  # two units that do not look at the data
        encoder.weight[2:] *= 10
        encoder.bias[:] = torch.tensor([0.0, 3.0, 0.0, 0.0])
    record = Monitor(model, guide, TraceELBO("disarm")).look(1, X)["sites"]["z"]
    assert record["dead_latents"] == 2
    assert record["latents"] == 4
    assert record["entropy"] == pytest.approx(float(dist.Bernoulli(logits=encoder(X)).entropy().mean().detach()))


@pytest.mark.parametrize("categorical", [dist.Categorical, dist.OneHotCategorical])
def test_dead_latents_of_categorical_sites(categorical):
    logits = torch.tensor([[[5.0, 0, 0], [1.0, 0, 0]], [[0.0, 5.0, 0], [1.0, 0, 0]]])

    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", categorical(logits=torch.zeros(2, 3)).to_event(1))

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", categorical(logits=logits).to_event(1))

    record = Monitor(model, guide, TraceELBO("reinforce")).look(1)["sites"]["z"]
    assert (record["dead_latents"], record["latents"]) == (1, 2)


def test_baseline_fit_is_zero_for_the_mean_and_negative_without_one():
    """RLOO's baseline is the mean of the other particles: with many of them R² is near zero for one datum."""
    model, guide, _ = pair()
    one = X[:1]
    fit = Monitor(model, guide, TraceELBO(RLOO(), num_particles=500)).look(1, one)["sites"]["z"]["baseline_fit"]
    assert fit == pytest.approx(0.0, abs=0.01)
    without = Monitor(model, guide, TraceELBO(Reinforce(), num_particles=500)).look(1, one)
    assert without["sites"]["z"]["baseline_fit"] < -1


def test_nvil_learns_its_baseline_and_the_fit_says_so():
    model, guide, _ = pair()
    elbo = TraceELBO(NVIL(learning_rate=3e-2))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-6}), loss=elbo)
    monitor = Monitor(model, guide, elbo, every=150, draws=20)
    for _ in range(300):
        svi.step(X)
        monitor(X)
    early = Monitor(model, guide, TraceELBO(NVIL()), draws=20).look(1, X)["sites"]["z"]["baseline_fit"]
    assert early < 0 < float(monitor.history["baseline_fit"].sel(step=300, site="z"))


def test_noise_is_zero_for_an_exact_gradient_and_temperature_is_read(tmp_path):
    model, guide, _ = pair()
    exact = Monitor(model, guide, TraceELBO(Enumerate())).look(1, X)
    assert exact["gradient_variance"] == 0
    assert exact["signal_to_noise"] == math.inf
    soft = Monitor(model, guide, TraceELBO(GumbelSoftmax(temperature=0.4)))
    soft.look(10, X)
    soft.look(20, X)
    assert soft.history["temperature"].sel(site="z").values.tolist() == [0.4, 0.4]
    assert math.isnan(soft.history["baseline_fit"].values[0, 0])
    soft.plot(tmp_path / "monitor.png")
    assert (tmp_path / "monitor.png").stat().st_size > 10_000


def test_the_temperature_of_a_schedule_is_that_of_its_step():
    model, guide, _ = pair()
    elbo = TraceELBO(GumbelSoftmax(temperature=LinearDecay(1.0, 0.2, 8)))
    svi, monitor = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo), Monitor(model, guide, elbo, every=4)
    for _ in range(8):
        svi.step(X)
        monitor(X)
    assert monitor.history["temperature"].sel(site="z").values.tolist() == pytest.approx([0.6, 0.2])


def test_fit_calls_it_and_keeps_its_records_in_the_checkpoint(tmp_path):
    model, guide, _ = pair()
    elbo = TraceELBO("rloo", num_particles=2)
    settings = {"lr": 0.01, "progress": False, "checkpoint": tmp_path / "run.pt", "seed": 0}
    monitor = Monitor(model, guide, elbo, every=3)
    fit(model, guide, X, elbo, steps=6, callbacks=[monitor], **settings)
    assert monitor.history["step"].values.tolist() == [3, 6]
    again = Monitor(model, guide, elbo, every=3)
    fit(model, guide, X, elbo, steps=9, callbacks=[again], resume=True, **settings)
    assert again.history["step"].values.tolist() == [3, 6, 9]
    xr.testing.assert_equal(again.history.isel(step=slice(2)), monitor.history)


def test_bad_settings_are_refused():
    model, guide, _ = pair()
    with pytest.raises(SettingError, match="draws=1"):
        Monitor(model, guide, TraceELBO("nvil"), draws=1)


def test_many_sites_are_drawn_in_the_order_of_their_numbers(tmp_path):
    def model(x):
        z = pyro.sample("z_0", dist.Bernoulli(0.3))
        for i in range(1, 12):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.2 + 0.5 * z))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        for i in range(12):
            pyro.sample(f"z_{i}", dist.Bernoulli(logits=pyro.param(f"logits_{i}", torch.zeros(()))))

    x, elbo = torch.tensor(0.3), TraceELBO("reinforce")
    elbo.loss_and_grads(model, guide, x)
    monitor = Monitor(model, guide, elbo, every=1)
    for looks in range(2):  # one look alone has an axis from the start on as well
        monitor(x)
        assert monitor.history["site"].values.tolist() == [f"z_{i}" for i in range(12)]
        figure = monitor.plot(tmp_path / f"{looks}.png")
        panels = [axes for axes in figure.axes if axes.get_ylabel().startswith("entropy")]
        assert [text.get_text() for text in panels[0].get_yticklabels()] == [f"z_{i}" for i in range(12)]
        assert all(axes.get_legend() is None for axes in figure.axes[1:])
        assert panels[0].get_xlim()[0] == 0
