"""What the guide made from a model tells, how it starts, what networks of it read, and its errors."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_discrete import AutoDiscreteMeanField, TraceELBO
from pyro_discrete.errors import SettingError, SiteShapeError, UnsupportedSiteError
from pyro_discrete.guides.table import Table
from tests.support.auto_programs import AMORTIZE, X, bits, categories, made, mixture, posterior, train


def counts(x: Tensor, bound: int | None = 6) -> None:
    with pyro.plate("data", len(x)):
        infer = {} if bound is None else {"truncation": bound}
        n = pyro.sample("n", dist.Poisson(1.0), infer=infer)
        pyro.sample("x", dist.Normal(n, 0.5), obs=x)


def test_counts_up_to_a_stated_bound() -> None:
    x = torch.tensor([0.1, 2.4, 4.0])
    guide = AutoDiscreteMeanField(counts, init="prior")
    train(counts, guide, x, steps=500, lr=0.2)
    n = torch.arange(7.0)
    log_joint = dist.Poisson(1.0).log_prob(n) + dist.Normal(n, 0.5).log_prob(x.unsqueeze(-1))
    assert torch.allclose(guide.marginals()["n"], log_joint.softmax(-1), atol=0.02)
    exact = torch.tensor([0.0, 2.0, 4.0])
    assert torch.equal(guide.median()["n"], exact)
    low, high = guide.quantiles([0.001, 0.999])["n"]
    assert (low <= exact).all()
    assert (high >= exact).all()
    with pytest.raises(UnsupportedSiteError, match=r"Site 'n' is Poisson.*infer=\{\"truncation\": 20\}"):
        AutoDiscreteMeanField(lambda x: counts(x, None))(x)
    with pytest.raises(SettingError, match="'truncation': 0"):
        AutoDiscreteMeanField(lambda x: counts(x, 0))(x)


def test_quantiles_and_modes() -> None:
    guide = made(categories)
    quantiles = guide.quantiles([0.1, 0.9])
    assert set(quantiles) == {"n"}  # categories have no order
    assert quantiles["n"].shape == (2, 3)
    mode, drawn = guide.mode(), guide(X)
    for name in ("k", "h", "n"):
        assert mode[name].shape == drawn[name].shape
        assert mode[name].dtype == drawn[name].dtype
    marginals = guide.marginals()
    assert torch.equal(mode["h"].argmax(-1), marginals["h"].argmax(-1))
    bit = made(bits)
    assert torch.equal(bit.median()["z"], (bit.marginals()["z"] > 0.5).float())
    assert torch.equal(bit.quantiles([0.5])["z"][0], bit.median()["z"])


@pytest.mark.parametrize("amortize", AMORTIZE)
def test_starts(amortize: str) -> None:
    settings: dict[str, Any] = {"amortize": AMORTIZE[amortize], "init_scale": 0.0}
    close = 0.02 if amortize == "free" else 0.3  # what a network makes of the data comes on top
    prior = AutoDiscreteMeanField(mixture, init="prior", **settings)
    assert torch.allclose(prior.marginals(X)["k"][:, 0], torch.full((3,), 0.5), atol=close)
    pyro.clear_param_store()
    uniform = AutoDiscreteMeanField(mixture, **settings)
    uniform(X)
    assert torch.allclose(uniform.marginals(X)["k"], torch.full((3, 3), 1 / 3), atol=close)
    pyro.clear_param_store()
    own = AutoDiscreteMeanField(mixture, init=lambda site: torch.tensor([0.0, 0.0, 3.0]), **settings)
    own(X)
    assert (own.marginals(X)["k"][:, 2] > 0.7).all()


def test_state_is_saved_and_loaded() -> None:
    guide = made(bits)
    other = AutoDiscreteMeanField(bits)
    other(X)
    other.load_state_dict(guide.state_dict())
    for name, probabilities in guide.marginals().items():
        assert torch.equal(other.marginals()[name], probabilities)
    assert {n.removesuffix("_unconstrained") for n, _ in guide.named_parameters()} == {"logits.top", "logits.z"}


def test_a_network_and_an_input_of_ones_own() -> None:
    network = nn.Linear(2, 3)
    guide = AutoDiscreteMeanField(mixture, amortize=network, input=lambda x: torch.stack([x, x.square()], -1))
    train(mixture, guide, X, steps=300, lr=0.1)
    assert torch.allclose(guide.marginals(X)["k"], posterior(X), atol=0.03)
    new = torch.tensor([0.0, 1.0])
    assert guide(new)["k"].shape == (2,)
    assert TraceELBO("rloo", num_particles=2).loss_and_grads(mixture, guide, new) > 0


def global_code(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_global_site_reads_the_mean_of_the_data() -> None:
    guide = AutoDiscreteMeanField(global_code, amortize=True)
    guide(X)
    assert torch.allclose(guide.marginals(X)["z"], guide.marginals(X[[2, 0, 1]])["z"])
    assert torch.allclose(guide.marginals(X)["z"], guide.marginals(torch.cat([X, X]))["z"])


def observes_nothing() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.factor("f", z)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"amortize": 2.5}, SettingError, "amortize=2.5 given"),
        ({"amortize": -1}, SettingError, "amortize=-1 given"),
        ({"init": "zero"}, SettingError, "init='zero' given; 'uniform', 'prior'"),
        ({"init_scale": -1.0}, SettingError, "init_scale=-1.0 given"),
        ({"input": lambda x: x}, SettingError, "set amortize=True"),
        ({"amortize": nn.Linear(1, 4)}, SiteShapeError, r"made \(3, 4\) of \(3, 1\); \(3, 3\) is expected.*'k' \(3\)"),
        ({"init": lambda site: torch.zeros(5)}, SiteShapeError, r"site 'k' that do not broadcast to \(3, 3\)"),
        ({"amortize": True, "input": lambda x: 3.0}, SettingError, "input= returned float"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoDiscreteMeanField(mixture, **settings)(X)


def test_what_cannot_be() -> None:
    with pytest.raises(SettingError, match="observes nothing"):
        AutoDiscreteMeanField(observes_nothing, amortize=True)()
    with pytest.raises(SettingError, match="in different plates"):
        AutoDiscreteMeanField(bits, amortize=nn.Linear(1, 3))(X)
    guide = AutoDiscreteMeanField(mixture)
    guide(X)
    with pytest.raises(SiteShapeError, match=r"Plate 'data' has 2 elements and had 3.*site 'k'.*amortize=True"):
        guide(X[:2])
    network = AutoDiscreteMeanField(mixture, amortize=True)
    network(X)
    with pytest.raises(SettingError, match=r"give the arguments of the model"):
        network.marginals()


def test_a_table_is_a_distribution_over_its_values() -> None:
    table = Table(torch.tensor([0.0, 2.0, 3.0]), torch.randn(4, 3))
    assert torch.allclose(table.log_prob(table.enumerate_support()).exp().sum(0), torch.ones(4))
    assert table.log_prob(torch.tensor(1.0)).tolist() == [-math.inf] * 4
    drawn = table.sample((20_000,))
    # Six standard errors of a share: a false alarm in 2e-9 of all seeds and elements.
    for i, value in enumerate((0.0, 2.0, 3.0)):
        assert torch.allclose((drawn == value).double().mean(0), table.probs[:, i].double(), atol=6 * 0.5 / 141)
    assert table.expand([2, 4]).sample().shape == (2, 4)
