"""The draws of an MCMC run in the place of a guide's: answers for every one of them, against closed forms."""

from inspect import signature

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.indexing import Vindex

from pyro_discrete import DiscretePosterior, collapse, relabel, to_inference_data
from pyro_discrete.errors import SettingError, SiteMatchError, SiteShapeError

X = torch.tensor([-2.0, 1.9, 2.2])


def mixture(x=None, size=3):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=x)


def draws(count, seed=0):
    torch.manual_seed(seed)
    return {"w": dist.Dirichlet(torch.ones(2)).sample((count,)), "locs": 3 * torch.randn(count, 2)}


def of_z(given):
    """Each datum's label given every draw, `[draws, data, 2]`."""
    return (given["w"].log()[:, None] + dist.Normal(given["locs"][:, None], 1.0).log_prob(X[:, None])).softmax(-1)


def test_marginals_modes_and_samples_for_every_draw():
    given = draws(400)
    posterior = DiscretePosterior(mixture, samples=given)
    expected = of_z(given)
    torch.testing.assert_close(posterior.marginals(X)["z"].probs.float(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(posterior.most_probable(X)["z"], expected.argmax(-1))
    pyro.set_rng_seed(0)
    found = posterior.samples(X)["z"]
    assert found.shape == (400, 3)
    spread = (expected[..., 1] * expected[..., 0]).sum(0).sqrt() / 400  # 5 standard errors
    assert ((found.double().mean(0) - expected[..., 1].mean(0)).abs() < 5 * spread + 1e-6).all()
    assert posterior.predictive(X)["x"].shape == (400, 3)
    assert "samples of" in repr(posterior)
    assert DiscretePosterior(collapse(mixture), samples=given).marginals(X)["z"].probs.shape == (400, 3, 2)


def test_many_draws_go_in_several_runs(monkeypatch):
    given = draws(50)
    monkeypatch.setattr("pyro_discrete.posterior.discrete_posterior.ELEMENTS_AT_ONCE", 100)
    found = DiscretePosterior(mixture, samples=given).marginals(X)["z"].probs
    torch.testing.assert_close(found.float(), of_z(given), rtol=1e-4, atol=1e-5)


def by_item(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    n = pyro.sample("n", dist.Poisson(m.exp()))
    pyro.sample("x", dist.Normal(float(n.item()), 1.0), obs=x)


def test_a_program_that_takes_no_rows_is_asked_draw_by_draw():
    m = torch.linspace(0.0, 1.0, 4)
    found = DiscretePosterior(by_item, samples={"m": m}).marginals(torch.tensor(4.0))["n"].probs
    n = torch.arange(found.shape[-1])
    expected = dist.Poisson(m.exp()[:, None]).log_prob(n) + dist.Normal(n, 1.0).log_prob(torch.tensor(4.0))
    torch.testing.assert_close(found.float(), expected.softmax(-1), rtol=1e-4, atol=1e-6)


def chain(x):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.9, 0.1], [0.2, 0.8]])[z]))
        pyro.sample(f"x{t}", dist.Normal(m * z, 1.0), obs=x[t])


def test_chains_for_every_draw():
    x, m = torch.tensor([0.1, 2.4, 1.9, -0.3]), torch.tensor([0.5, 2.0, -1.0])
    posterior = DiscretePosterior(chain, samples={"m": m})
    found, best = posterior.marginals(x), posterior.most_probable(x)
    move = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    paths = torch.cartesian_prod(*[torch.arange(2)] * 4)
    for s, mean in enumerate(m):
        score = dist.Normal(mean * paths, 1.0).log_prob(x).sum(-1) + move[0][paths[:, 0]]
        score = score + sum(move[paths[:, t], paths[:, t + 1]] for t in range(3))
        weights = score.softmax(0)
        for t in range(4):
            assert found[f"z{t}"].probs[s, 1].item() == pytest.approx((weights * paths[:, t]).sum().item(), abs=1e-5)
            assert best[f"z{t}"][s] == paths[score.argmax(), t]


def test_a_continuous_site_that_depends_on_a_discrete_one():
    def model(y):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        u = pyro.sample("u", dist.Normal(3.0 * z, 1.0))
        pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    u = torch.tensor([-1.0, 1.5, 2.0])
    found = DiscretePosterior(model, samples={"u": u}).marginals(torch.tensor(0.3))["z"].probs
    odds = (0.3 / 0.7) * (dist.Normal(3.0, 1.0).log_prob(u) - dist.Normal(0.0, 1.0).log_prob(u)).exp()
    torch.testing.assert_close(found.float(), odds / (1 + odds))


def test_of_an_mcmc_run_and_into_arviz():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(collapse(mixture)), num_samples=12, warmup_steps=10, disable_progbar=True)
    mcmc.run(X)
    given = mcmc.get_samples()
    found = DiscretePosterior(mixture, samples=mcmc).marginals(X)["z"].probs
    torch.testing.assert_close(found.float(), of_z(given), rtol=1e-4, atol=1e-5)
    data = to_inference_data(mixture, None, X, samples=mcmc)
    assert dict(data.posterior["z"].sizes) == {"chain": 1, "draw": 12, "data": 3}
    np.testing.assert_array_equal(data.posterior["locs"].values[0], given["locs"].numpy())
    assert [*data.sample_stats] == ["lp"]
    each = given["w"].log()[:, None] + dist.Normal(given["locs"][:, None], 1.0).log_prob(X[:, None])
    np.testing.assert_allclose(data.log_likelihood["x"].values[0], each.logsumexp(-1).numpy(), rtol=1e-4)
    prior = dist.Dirichlet(torch.ones(2)).log_prob(given["w"]) + dist.Normal(0.0, 3.0).log_prob(given["locs"]).sum(-1)
    lp = prior + each.logsumexp(-1).sum(-1)
    np.testing.assert_allclose(data.sample_stats["lp"].values[0], lp.numpy(), rtol=1e-4)


def test_chains_stay_apart():
    given = draws(30)
    grouped = {n: v.reshape(3, 10, *v.shape[1:]) for n, v in given.items()}
    data = to_inference_data(mixture, None, X, samples=grouped)
    assert dict(data.posterior["z"].sizes) == {"chain": 3, "draw": 10, "data": 3}
    np.testing.assert_array_equal(data.posterior["w"].values.reshape(30, 2), given["w"].numpy())
    assert DiscretePosterior(mixture, samples=grouped).samples(X)["z"].shape == (30, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda given: {"w": given["w"]}, SiteMatchError, "no draws of 'locs'"),
        (lambda given: {**given, "loc": given["locs"]}, SiteMatchError, "'loc', which is no latent site.*'locs'"),
        (lambda given: {**given, "locs": given["locs"][:, :1]}, SiteShapeError, r"'locs'.*\(5, 1\).*\(2,\)"),
        (lambda given: {**given, "locs": given["locs"][:2]}, SettingError, "as many draws of each site"),
        (lambda given: 3, SettingError, "samples=3 given"),
        (lambda given: {}, SettingError, "an MCMC run, or a dict"),
    ],
)
def test_draws_that_are_not_the_models(change, error, words):
    with pytest.raises(error, match=words):
        DiscretePosterior(mixture, samples=change(draws(5))).marginals(X)


def test_a_guide_or_samples():
    with pytest.raises(SettingError, match="guide and samples given"):
        DiscretePosterior(mixture, lambda x: None, samples=draws(5))
    for guide, samples in ((None, None), (lambda x: None, draws(5))):
        with pytest.raises(SettingError, match="a guide is expected, or None"):
            to_inference_data(mixture, guide, X, samples=samples)


# --------------------------------------------------------------------------------------------------- label switching


def switched(count=60, seed=0):
    """Draws of a mixture of three, their components under other names from draw to draw."""
    rng = np.random.default_rng(seed)
    labels = np.array([0] * 5 + [1] * 7 + [2] * 6)
    means, found = np.array([-4.0, 0.0, 5.0]), {"z": [], "locs": [], "w": [], "move": []}
    for s in range(count):
        names = rng.permutation(3) if s else np.arange(3)  # component k is called names[k]
        order = np.argsort(names)
        noisy = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, 3, len(labels)), labels)
        found["z"].append(names[noisy])
        found["locs"].append((means + 0.1 * rng.normal(size=3))[order])
        found["w"].append(np.array([0.25, 0.4, 0.35])[order])
        found["move"].append(np.arange(9.0).reshape(3, 3)[order][:, order])
    return {n: torch.as_tensor(np.stack(v)) for n, v in found.items()}, labels


def test_components_keep_their_names():
    given, labels = switched()
    before = {n: v.clone() for n, v in given.items()}
    found = relabel(given)
    assert (found["locs"].mean(0) - torch.tensor([-4.0, 0.0, 5.0])).abs().max() < 0.1
    assert torch.equal(found["w"], torch.tensor([0.25, 0.4, 0.35], dtype=torch.double).expand(60, 3))
    assert torch.equal(found["move"], torch.arange(9.0, dtype=torch.double).reshape(3, 3).expand(60, 3, 3))
    assert (found["z"] == torch.as_tensor(labels)).double().mean() > 0.9
    assert found["z"].dtype == torch.int64
    for name, value in before.items():
        assert torch.equal(given[name], value)


def test_r_hat_after_relabelling():
    given, _ = switched(100)
    grouped = {n: v.reshape(2, 50, *v.shape[1:]).numpy() for n, v in given.items()}
    grouped["locs"][1] = grouped["locs"][1][:, [2, 0, 1]]
    grouped["z"][1] = np.array([1, 2, 0])[grouped["z"][1]]
    groups = {"posterior": grouped}
    data = az.from_dict(**groups) if "posterior" in signature(az.from_dict).parameters else az.from_dict(groups)
    found = relabel(data)
    assert az.rhat(found, var_names=["locs"])["locs"].max() < 1.1
    assert type(found) is type(data)
    np.testing.assert_array_equal(data.posterior["locs"].values, grouped["locs"])
    names = {"locs": "locs_dim_0", "w": ["w_dim_0"], "move": ["move_dim_0", "move_dim_1"]}
    again = relabel(data.posterior, "z", components=names)
    np.testing.assert_array_equal(again["move"].values, found.posterior["move"].values)


def of_posterior(given, points):
    """Each point's label given every draw, `[draws, points, components]`."""
    each = given["w"].log()[:, None] + dist.Normal(given["locs"][:, None], 1.0).log_prob(points[:, None])
    return each.softmax(-1)


@pytest.mark.parametrize("chains", [1, 2])
def test_a_posterior_is_relabelled_by_the_probabilities_of_labels(chains):
    given, labels = switched()
    points = torch.as_tensor(np.array([-4.0, 0.0, 5.0])[labels])
    shape = (60,) if chains == 1 else (2, 30)

    def model(points):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3).double()))
        locs = pyro.sample("locs", dist.Normal(torch.zeros(3).double(), 5.0).to_event(1))
        with pyro.plate("data", len(points)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=points)

    draws = {n: given[n].reshape(*shape, 3) for n in ("w", "locs")}
    posterior = DiscretePosterior(collapse(model), samples=draws)
    found = relabel(posterior, args=(points,))
    renamed = {n: v.reshape(60, 3) for n, v in found.draws.values.items()}
    assert found.draws.values["locs"].shape == (*shape, 3)
    assert (renamed["locs"] - torch.tensor([-4.0, 0.0, 5.0])).abs().max() < 0.5
    assert torch.equal(renamed["w"], torch.tensor([0.25, 0.4, 0.35], dtype=torch.double).expand(60, 3))
    torch.testing.assert_close(found.marginals(points)["z"].probs, of_posterior(renamed, points), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.most_probable(points)["z"], torch.as_tensor(labels).expand(60, -1))
    assert torch.equal(draws["w"].reshape(60, 3), given["w"])
    assert posterior.draws.values["w"] is not found.draws.values["w"]
    again = relabel(posterior, "z", components={"locs": -1, "w": 1 if chains == 1 else -1}, args=(points,))
    assert torch.equal(again.draws.values["w"], found.draws.values["w"])


def test_bits_and_chains_of_a_posterior():
    """Labels that are bits, and two along a chain whose moves are components twice."""
    rng = np.random.default_rng(1)
    order = torch.as_tensor(np.stack([rng.permutation(2) if s else np.arange(2) for s in range(20)]))
    locs = torch.gather(torch.tensor([-2.0, 3.0]).expand(20, 2), 1, order)
    move = torch.tensor([[0.9, 0.1], [0.3, 0.7]])[order[:, :, None], order[:, None, :]]

    def chain(x):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        a = pyro.sample("a", dist.Categorical(torch.ones(2) / 2))
        b = pyro.sample("b", dist.Categorical(Vindex(move)[..., a, :]))
        pyro.sample("x", dist.Normal(Vindex(locs)[..., a], 1.0), obs=x[0])
        pyro.sample("y", dist.Normal(Vindex(locs)[..., b], 1.0), obs=x[1])

    x = torch.tensor([-2.0, 2.8])
    found = relabel(DiscretePosterior(chain, samples={"locs": locs, "move": move}), args=(x,)).draws.values
    assert torch.equal(found["locs"], torch.tensor([-2.0, 3.0]).expand(20, 2))
    assert torch.equal(found["move"], torch.tensor([[0.9, 0.1], [0.3, 0.7]]).expand(20, 2, 2))

    def bits(x):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(Vindex(locs)[..., z.long()], 1.0), obs=x)

    found = relabel(DiscretePosterior(bits, samples={"locs": locs}), args=(x[0],)).draws.values
    assert torch.equal(found["locs"], torch.tensor([-2.0, 3.0]).expand(20, 2))


def test_components_that_a_program_tells_apart_are_not_renamed():
    def model(x):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))
            pyro.sample("x", dist.Normal(Vindex(locs)[..., z], 1.0), obs=x)

    draws = {"locs": torch.tensor([[-2.0, 2.0], [2.0, -2.0], [-2.1, 1.9]])}
    with pytest.raises(SettingError, match=r"'locs' renamed, the labels 'z' do not follow.*fixed table"):
        relabel(DiscretePosterior(model, samples=draws), args=(torch.tensor([-1.0, 0.1, 2.0]),))
    with pytest.raises(SettingError, match="without samples="):
        relabel(DiscretePosterior(mixture, lambda x: None), args=(X,))
    with pytest.raises(SettingError, match="no labels 'q'"):
        relabel(DiscretePosterior(mixture, samples=draws_of_two()), "q", args=(X,))
    with pytest.raises(SettingError, match="there is no 'loc'"):
        relabel(DiscretePosterior(mixture, samples=draws_of_two()), components={"loc": 1}, args=(X,))
    with pytest.raises(SettingError, match="args and kwargs are for"):
        relabel(draws_of_two(), args=(X,))


def draws_of_two():
    return {"w": torch.tensor([[0.3, 0.7]]), "locs": torch.tensor([[-2.0, 2.0]])}


def test_other_labels_are_renamed_along():
    given, _ = switched()
    given["last"] = given["z"][:, -1]
    with pytest.raises(SettingError, match="variables of integers are 'z', 'last'"):
        relabel(given)
    found = relabel(given, "z", components={"locs": -1, "last": None})
    assert torch.equal(found["last"], found["z"][:, -1])
    assert torch.equal(found["w"], given["w"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda given: relabel(3), "3 given"),
        (lambda given: relabel(given, "zz"), "there is no 'zz'.*'z'"),
        (lambda given: relabel(given, "locs"), "no whole numbers"),
        (lambda given: relabel(given, components={"locs": 0}), "behind that of the draws"),
        (lambda given: relabel(given, components={"loc": 1}), "there is no 'loc'"),
        (lambda given: relabel({**given, "q": torch.zeros(60, 4)}), r"sizes \[3, 4\].*components="),
        (lambda given: relabel({"z": given["z"], "locs": given["locs"][:, :2]}, components={"locs": 1}), "room for"),
        (lambda given: relabel({**given, "z": given["z"] - 1}), "negative"),
    ],
)
def test_what_cannot_be_relabelled(call, words):
    with pytest.raises(SettingError, match=words):
        call(switched()[0])


def test_arguments_in_the_place_of_a_site_are_an_error():
    with pytest.raises(SettingError, match=r"relabel: site=.*a site's name expected.*args=\(\.\.\.\)"):
        relabel(DiscretePosterior(mixture, samples=draws(3)), X)
