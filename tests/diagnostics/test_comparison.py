"""Comparison of estimators on a pair: against exact gradients and closed-form variances, with nothing changed."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.util import get_rng_state
from torch import nn

from pyro_discrete import DisARM, TraceELBO
from pyro_discrete.diagnostics import compare_estimators
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Surrogate
from tests.support.pairs import OwnCount

TARGET, LOGIT = 0.3, 0.7


def factor_pair():
    """One Bernoulli under f(b) = (b - t)^2, whose variances are known in closed form."""
    phi = nn.Parameter(torch.tensor(LOGIT, dtype=torch.float64))

    def model():
        b = pyro.sample("b", dist.Bernoulli(logits=phi.detach()))
        pyro.factor("f", -((b - TARGET) ** 2))

    def guide():
        pyro.sample("b", dist.Bernoulli(logits=phi))

    return model, guide


def data_pair():
    encoder, decoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), nn.Linear(2, 3)
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])

    def model(x):
        bias = pyro.param("bias", torch.zeros(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z) + bias).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    return model, guide, x, encoder, decoder


@pytest.mark.statistical
def test_variance_of_reinforce_and_disarm_is_the_closed_form():
    """2,000 draws: a variance's relative error is near 1/sqrt(1000); 20% is more than six of these."""
    model, guide = factor_pair()
    found = compare_estimators(model, guide, estimators=["reinforce", "disarm"], draws=2000, progress=False)
    p = 1 / (1 + np.exp(-LOGIT))
    d, m = 1 - 2 * TARGET, max(p, 1 - p)
    # the cost holds log q - log p too, which is zero here as both have the same logits
    gradient = d * p * (1 - p)
    reinforce = p * (1 - p) * ((1 - p) * (1 - TARGET) ** 4 + p * TARGET**4) - gradient**2
    disarm = d**2 * m**2 * (1 - m) * (0.5 - (1 - m))
    assert float(found["gradient_norm"].item()) == pytest.approx(gradient, rel=1e-6)
    variance = found["variance"].sum("parameter")
    assert float(variance.sel(estimator="reinforce")) == pytest.approx(reinforce, rel=0.2)
    assert float(variance.sel(estimator="disarm")) == pytest.approx(disarm, rel=0.2)
    assert found.recommendation == 'TraceELBO("disarm")'


class HalvedDisARM(DisARM):
    """A planted error: half the estimate."""

    def surrogate(self, draw, cost):
        right = super().surrogate(draw, cost)
        return Surrogate(0.5 * right.loss, right.auxiliary)


def test_a_planted_bias_is_seen_and_not_recommended():
    model, guide = factor_pair()
    estimators = {"wrong": HalvedDisARM(), "right": DisARM()}
    found = compare_estimators(model, guide, estimators=estimators, draws=400, progress=False)
    assert found.bias_seen.values.tolist() == [True, False]
    assert found.best == "right"
    # and against a sampled reference, which the wrong one cannot be where the other has less variance
    assert float(found["bias"].sel(estimator="wrong").sum()) == pytest.approx(
        0.5 * float(found["gradient_norm"].sum()), rel=0.2
    )


def test_every_estimator_that_serves_the_pair_is_measured_and_the_rest_left_out():
    model, guide = factor_pair()
    found = compare_estimators(model, guide, draws=3, warm_up=2, progress=False)
    assert {"enumerate", "reinforce", "rloo", "rebar", "gumbel_softmax"} <= set(found["estimator"].values.tolist())
    assert "does not serve site 'b'" in found.left_out["carms"]
    assert found["evaluations"].sel(estimator="rloo") == 2
    for label, code in found.code.items():
        assert isinstance(eval(code, {"TraceELBO": TraceELBO}), TraceELBO), label
    assert found.reference == "exact"


def test_parameters_gradients_buffers_store_and_random_states_stay():
    model, guide, x, encoder, decoder = data_pair()
    pyro.clear_param_store()
    encoder[0].weight.grad = torch.ones_like(encoder[0].weight)
    before = {n: t.clone() for m in (encoder, decoder) for n, t in m.state_dict(prefix=f"{id(m)}.").items()}
    states = get_rng_state()
    found = compare_estimators(model, guide, x, estimators=["nvil", "rloo"], draws=5, warm_up=3, progress=False)
    after = get_rng_state()
    assert torch.equal(after["torch"], states["torch"])
    assert after["random"] == states["random"]
    assert (after["numpy"][1] == states["numpy"][1]).all()
    assert not list(pyro.get_param_store())
    for module in (encoder, decoder):
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict(prefix=f"{id(module)}.").items())
    assert bool((encoder[0].weight.grad == 1).all())
    assert {"encoder.0.weight", "encoder.1.bias", "decoder.weight", "bias"} <= set(found["parameter"].values.tolist())


@pytest.mark.statistical
def test_without_an_exact_gradient_a_long_run_is_the_reference():
    """A count without an end, of whose tail no bound is known. Fixed seed; a false alarm at bias_z > 10 is below 1e-4
    for each parameter."""
    rate = nn.Parameter(torch.tensor(0.4))

    def model():
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=torch.tensor(3.0))

    def guide():
        pyro.sample("n", OwnCount(rate.exp()))

    found = compare_estimators(model, guide, estimators=["reinforce", "rloo"], draws=300, progress=False)
    assert found.reference == "1200 draws of rloo"
    assert not bool(found.bias_seen.any())
    assert bool((found["bias_error"] > 0).all())


def test_table_and_plot_show_every_estimator(tmp_path):
    model, guide = factor_pair()
    found = compare_estimators(model, guide, estimators=["enumerate", "disarm", "arm"], draws=5, progress=False)
    text = str(found)
    assert all(name in text for name in ("enumerate", "disarm", "arm", "Recommended"))
    figure = found.plot(tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(shown) == ["arm", "disarm", "enumerate"]
    assert shown[-1] == "enumerate"
    of_all, of_each = found.table(), found.table(per=10, unit="nats per image")
    assert "(objective)²" in str(of_all.caption)
    assert "(nats per image)²" in str(of_each.caption)
    variances = [[float(cell) for cell in list(table.columns[4].cells)[1:]] for table in (of_all, of_each)]
    assert variances[0] == pytest.approx([100 * variance for variance in variances[1]], rel=0.01)


def test_bad_settings_are_refused():
    model, guide = factor_pair()
    with pytest.raises(SettingError, match="draws=1"):
        compare_estimators(model, guide, draws=1)
    with pytest.raises(SettingError, match="no estimator serves"):
        compare_estimators(model, guide, estimators=["carms"], progress=False)
