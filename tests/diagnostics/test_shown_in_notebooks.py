"""What comparisons, monitors and results of training show in a notebook and at a prompt."""

from __future__ import annotations

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.diagnostics import Monitor, compare_estimators
from pyro_discrete.training import fit

X = torch.tensor([0.3, 1.8, 0.9, -0.4])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.5)) * x))


def words(html: str) -> list[str]:
    return re.sub(r"<[^>]+>", " ", html).replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").split()


@pytest.fixture(scope="module")
def compared():
    pyro.clear_param_store()
    estimators = {"<b>rloo</b>": "rloo", "exact": "enumerate", "bound": "vimco"}
    return compare_estimators(model, guide, X, estimators=estimators, draws=5, warm_up=0, progress=False)


def test_a_comparison_shows_the_same_numbers_everywhere(compared) -> None:
    html = compared._repr_html_()
    assert "<b>rloo" not in html
    assert html.count("font-weight: bold") == 9  # the cells of the one that is recommended
    assert repr(compared) == str(compared)
    printed = str(compared).split()
    for label in ("<b>rloo</b>", "exact"):
        rows = [
            told[i : i + 9]
            for told in (words(html), printed)
            for i in range(len(told))
            if told[i : i + 2] == [label, "5"]
        ]
        assert len(rows) == 2
        assert rows[0] == rows[1]
    assert "left out (`left_out` says why): bound" in html


def test_a_monitor_and_a_result_of_training(tmp_path) -> None:
    pyro.clear_param_store()
    elbo = TraceELBO("rloo", num_particles=2)
    monitor = Monitor(model, guide, elbo, every=4)
    assert repr(monitor) == "Monitor(every=4, draws=2; 0 looks)"
    assert "0 looks" in monitor._repr_html_()
    result = fit(
        model, guide, X, elbo, lr=0.1, steps=8, log_every=2, seed=0, validation_data=X, validate_every=4,
        callbacks=[monitor], progress=False,
    )  # fmt: skip
    assert repr(monitor).startswith("Monitor(every=4, draws=2; 2 looks, at step 8: signal/noise")
    assert "gradient variance" in monitor._repr_html_()
    assert "<td" in monitor._repr_html_()
    said = repr(result)
    assert said.startswith("FitResult(step=8, stopped='steps', loss=")
    assert f"best_step={result.best_step}" in said
    assert said.endswith("parameters=1 of 1 numbers)")
    assert words(result._repr_html_())[:3] == ["FitResult", "step", "8"]
    pytest.importorskip("matplotlib")
    (axes,) = result.plot(tmp_path / "fit.png").axes
    assert axes.lines[0].get_ydata().tolist() == result.history["loss"].values.tolist()
    assert axes.lines[1].get_xdata().tolist() == [4, 8]
    assert (tmp_path / "fit.png").stat().st_size > 0


def test_a_rate_that_changes_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    pyro.clear_param_store()
    halved = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    result = fit(model, guide, X, "enumerate", lr=0.1, steps=4, log_every=1, scheduler=halved, progress=False)
    _, rate = result.plot().axes
    assert rate.lines[0].get_ydata().tolist() == result.history["lr"].values.tolist()
