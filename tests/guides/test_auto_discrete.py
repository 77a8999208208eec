"""The guide made from a model: exact gradients under several estimators, known answers, and whatever a plate can do.

Behind that, what it tells, how it starts, what networks of it read, and its errors.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import Tensor, nn

from pyro_discrete import AutoDiscreteMeanField, TraceELBO
from pyro_discrete.errors import SettingError, SiteShapeError, UnsupportedSiteError
from pyro_discrete.guides.variational import Table
from tests.support.auto_programs import (
    AMORTIZE,
    LEVELS,
    PROGRAMS,
    X,
    bits,
    brute_force,
    categories,
    gradients,
    made,
    mixture,
    posterior,
    train,
)


@pytest.mark.parametrize("amortize", AMORTIZE)
@pytest.mark.parametrize("program", PROGRAMS)
def test_exact_gradients_are_those_of_brute_force(program: str, amortize: str) -> None:
    model = PROGRAMS[program]
    x = X[:1] if program == "categories" else X
    guide = made(model, x, amortize=AMORTIZE[amortize])
    truth = brute_force(model, guide, x)
    assert truth
    for name, gradient in gradients(TraceELBO("enumerate"), model, guide, x).items():
        assert torch.allclose(gradient.double(), truth[name].double(), atol=1e-4), name


@pytest.mark.statistical
@pytest.mark.parametrize("amortize", AMORTIZE)
@pytest.mark.parametrize(
    ("program", "estimator"),
    [("bits", "disarm"), ("bits", "reinforce"), ("categories", "rloo"), ("chain", "rloo"), ("inner mask", "reinforce")],
)
def test_sampled_gradients_agree_with_exact_ones(program: str, estimator: str, amortize: str) -> None:
    """40 means of 400 particles; |z| < 5 for at most 60 numbers: a false alarm in 4e-5 of all seeds a case."""
    model = PROGRAMS[program]
    guide = made(model, amortize=AMORTIZE[amortize])
    truth = gradients(TraceELBO("enumerate"), model, guide, X)
    elbo = TraceELBO(estimator, num_particles=400)
    draws = [gradients(elbo, model, guide, X) for _ in range(40)]
    for name, exact in truth.items():
        found = torch.stack([draw[name] for draw in draws]).double()
        error = found.std(0) / math.sqrt(len(draws)) + 1e-5
        assert ((found.mean(0) - exact).abs() / error).max() < 5, name


@pytest.mark.parametrize("amortize", AMORTIZE)
@pytest.mark.parametrize("program", ["bits", "chain"])
def test_relaxed_estimators_train_it(program: str, amortize: str) -> None:
    model = PROGRAMS[program]
    guide = made(model, amortize=AMORTIZE[amortize])
    elbo = TraceELBO("gumbel_softmax")
    assert all(torch.isfinite(g).all() for g in gradients(elbo, model, guide, X).values())
    assert any(g.any() for g in gradients(elbo, model, guide, X).values())


@pytest.mark.parametrize(("estimator", "tolerance"), [("enumerate", 0.01), ("rloo", 0.05), ("gumbel_softmax", 0.12)])
def test_free_logits_find_the_posterior(estimator: str, tolerance: float) -> None:
    guide = AutoDiscreteMeanField(mixture)
    train(mixture, guide, X, estimator=estimator, steps=300, lr=0.05)
    assert torch.allclose(guide.marginals()["k"], posterior(X), atol=tolerance)
    assert torch.equal(guide.mode()["k"], guide.marginals()["k"].argmax(-1))


def test_a_network_finds_the_posterior_and_serves_other_data() -> None:
    x = torch.linspace(-3, 4, 40)
    guide = AutoDiscreteMeanField(mixture, amortize=20)
    svi = SVI(mixture, guide, pyro.optim.Adam({"lr": 0.04}), TraceELBO("enumerate"))
    for step in range(300):
        svi.step(x[torch.randperm(40)[: 20 + step % 3]])  # batches of another size each time
    new = torch.tensor([-2.2, 0.1, 0.9, 2.7, 3.3])
    assert torch.allclose(guide.marginals(new)["k"], posterior(new), atol=0.05)
    assert guide(new)["k"].shape == (5,)


def subsampled(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=2) as index:
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("x", dist.Normal(LEVELS[k], 1.0), obs=x[index])


def test_free_logits_of_a_subsampled_plate() -> None:
    x = torch.linspace(-2, 3, 7)
    guide = AutoDiscreteMeanField(subsampled)
    guide(x)
    assert guide.marginals()["k"].shape == (7, 3)
    before = guide.marginals()["k"]
    TraceELBO("enumerate").loss_and_grads(subsampled, guide, x)
    (logits,) = guide.parameters()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).sum() == 2
    assert torch.equal(before, guide.marginals()["k"])
    for rate in (0.1, 0.03, 0.01):
        train(subsampled, guide, x, steps=200, lr=rate)
    assert torch.allclose(guide.marginals()["k"], posterior(x), atol=0.03)


def test_a_network_reads_the_subsample_that_the_model_gets() -> None:
    x = torch.linspace(-2, 3, 7)
    guide = AutoDiscreteMeanField(subsampled, amortize=20)
    train(subsampled, guide, x, steps=350, lr=0.04)
    full = AutoDiscreteMeanField(mixture, amortize=20)
    full(x)
    full.networks.load_state_dict(guide.networks.state_dict())
    assert torch.allclose(full.marginals(x)["k"], posterior(x), atol=0.1)


def given(x: Tensor, index: Tensor) -> None:
    with pyro.plate("data", 7, subsample=index):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("x", dist.Normal(LEVELS[k], 1.0), obs=x[index])


@pytest.mark.parametrize("amortize", [False, 5])
def test_a_subsample_of_ones_own(amortize: bool | int) -> None:
    x, index = torch.linspace(-2, 3, 7), torch.tensor([1, 4, 5])
    guide = AutoDiscreteMeanField(
        given, amortize=amortize, create_plates=lambda x, index: pyro.plate("data", 7, subsample=index, dim=-1)
    )
    guide(x, index)
    TraceELBO("enumerate").loss_and_grads(given, guide, x, index)
    if amortize is False:
        (logits,) = guide.parameters()
        assert logits.grad is not None
        assert logits.grad.any(-1).nonzero().flatten().tolist() == [1, 4, 5]
    TraceELBO("enumerate").loss_and_grads(given, guide, x, torch.tensor([0, 6]))


def gaussian_mixture(x: Tensor) -> None:
    means = pyro.sample("means", dist.Normal(0.0, 4.0).expand([2]).to_event(1))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(means[..., 0] * (1 - z) + means[..., 1] * z, 0.5), obs=x)


@pytest.mark.parametrize(("continuous", "amortize"), [(AutoNormal, False), (AutoDelta, 16)])
def test_mixed_programs(continuous: Any, amortize: bool | int) -> None:
    """The continuous sites have one of Pyro's guides; two clusters that do not overlap are told apart."""
    labels = torch.bernoulli(torch.full((60,), 0.3))
    x = torch.where(labels == 1, 2.0, -2.0) + 0.5 * torch.randn(60)
    init = {"init_scale": 1.0}
    guide = AutoDiscreteMeanField(gaussian_mixture, amortize=amortize, continuous=continuous, **init)
    assert set(guide(x)) == {"means", "share", "z"}
    train(gaussian_mixture, guide, x, estimator="rloo", steps=300, lr=0.1)
    found = guide.mode(x)["z"]
    agreement = (found == labels).double().mean()
    assert max(agreement, 1 - agreement) > 0.97
    median = guide.median(x)
    assert sorted(median["means"].tolist()) == pytest.approx([-2.0, 2.0], abs=0.25)
    assert median["z"].shape == (60,)


def test_a_part_of_a_list_of_guides() -> None:
    x = torch.tensor([-2.0, 2.1, 1.9])
    guide = AutoGuideList(gaussian_mixture)
    guide.append(AutoDiscreteMeanField(gaussian_mixture, continuous=None))
    guide.append(AutoNormal(poutine.block(gaussian_mixture, hide=["z"])))
    assert set(guide(x)) == {"means", "share", "z"}
    assert TraceELBO("rloo", num_particles=2).loss_and_grads(gaussian_mixture, guide, x) > 0
    assert set(guide.median(x)) == {"means", "share", "z"}


def test_scales_are_left_to_the_caller_as_in_pyros_guides() -> None:
    """A scale on the model's latent sites is not copied; around model and guide it anneals the KL terms, once."""

    def weighed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.25):
                y = pyro.sample("y", dist.Normal(0.0, 1.0)) if x.isnan().any() else 0.0
                z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * z + y, 1.0), obs=x)

    pyros = AutoNormal(poutine.block(weighed, hide=["z"]))
    assert poutine.trace(pyros).get_trace(X * math.nan).nodes["y"]["scale"] == 1.0
    guide = AutoDiscreteMeanField(weighed)
    assert poutine.trace(guide).get_trace(X).nodes["z"]["scale"] == 1.0
    q = guide.marginals()["z"]
    found = TraceELBO("enumerate").loss(weighed, poutine.scale(guide, 0.25), X)
    kl = torch.distributions.kl_divergence(dist.Bernoulli(q), dist.Bernoulli(0.3))
    fit = q * dist.Normal(2.0, 1.0).log_prob(X) + (1 - q) * dist.Normal(0.0, 1.0).log_prob(X)
    assert found == pytest.approx(float((0.25 * kl - fit).sum()), abs=1e-5)


def test_pyros_own_elbo_takes_it() -> None:
    guide = AutoDiscreteMeanField(mixture)
    guide(X)
    ours = TraceELBO("enumerate").loss(mixture, guide, X)
    values = torch.tensor([Trace_ELBO().loss(mixture, guide, X) for _ in range(300)])
    assert abs(values.mean() - ours) < 5 * values.std() / math.sqrt(len(values))


# What it tells, how it starts, what networks of it read, and its errors


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


@pytest.mark.parametrize("amortize", [False, True])
def test_a_plate_that_states_no_size_is_as_large_as_what_is_drawn_in_it(amortize: bool) -> None:
    def of(size: int | None) -> Any:
        def model(x: Tensor) -> None:
            with pyro.plate("data", size):
                z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.3)))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        return model

    x, losses = torch.tensor([0.2, -1.0, 1.4, 0.9]), []
    for size in (None, 4):
        torch.manual_seed(0)
        guide = AutoDiscreteMeanField(of(size), amortize=amortize)
        losses.append(TraceELBO("enumerate").loss_and_grads(of(size), guide, x))
        assert guide.marginals(x)["z"].shape == (4,)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    guide = AutoDiscreteMeanField(of(None), amortize=amortize)
    guide(x)
    if amortize:
        assert guide(x[:3])["z"].shape == (3,)
    else:
        with pytest.raises(SiteShapeError, match=r"Site 'z' has batch shape \(3,\) and had \(4,\).*amortize=True"):
            guide(x[:3])


def test_continuous_sites_in_a_plate_that_states_no_size_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)))
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z + mean, 1.0), obs=x)

    with pytest.raises(
        SiteShapeError, match=r"Site 'mean' is continuous and in the plate 'data'.*plate\('data', size\)"
    ):
        AutoDiscreteMeanField(model)(torch.zeros(3))


def test_a_model_that_is_refused_is_refused_for_the_same_reason_again():
    """An ELBO runs the guide several times before it gives up."""

    def model():
        pyro.sample("n", dist.Poisson(torch.tensor(2.0)))

    guide = AutoDiscreteMeanField(model)
    for run in (guide, guide, lambda: TraceELBO().loss(model, guide)):
        with pytest.raises(UnsupportedSiteError, match="Site 'n' is Poisson, for whose values this guide has no table"):
            run()
