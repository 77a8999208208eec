"""Marginals, joint samples, most probable values and predictions, against brute force over all joint values.

Frequencies of samples are compared at 5 standard errors or more: a false alarm has a probability below 1e-5 in all.
"""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate, infer_discrete

from pyro_discrete import DiscretePosterior, to_inference_data
from pyro_discrete.errors import EnumerationError, SettingError, SiteMatchError, UnsupportedSiteError
from pyro_discrete.sums.elimination import random_value
from pyro_discrete.sums.enumerated_sites import Marginalise

START, TABLE = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]])
LOCS = torch.tensor([-1.0, 0.2, 1.5])
X = torch.tensor([-0.8, 0.1, 1.2, 1.4, -0.3])


def hmm(x):
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(START if z is None else TABLE[z]))
        pyro.sample(f"x{t}", dist.Normal(LOCS[z], 0.8), obs=x[t])


def brute_force(x):
    """The posterior probability of every path `[paths]`, and the paths `[paths, len(x)]`."""
    paths = torch.tensor(list(itertools.product(range(3), repeat=len(x))))
    log_p = START.log()[paths[:, 0]] + dist.Normal(LOCS[paths], 0.8).log_prob(x).sum(1)
    log_p = log_p + TABLE.log()[paths[:, :-1], paths[:, 1:]].sum(1)
    return log_p.softmax(0), paths


def viterbi(x):
    """The most probable path, by the textbook's recursion."""
    score, back = START.double().log() + dist.Normal(LOCS, 0.8).log_prob(x[0]), []
    for value in x[1:]:
        through = score.unsqueeze(1) + TABLE.double().log()
        score, best = through.max(0)
        score = score + dist.Normal(LOCS, 0.8).log_prob(value)
        back.append(best)
    path = [int(score.argmax())]
    for best in reversed(back):
        path.append(int(best[path[-1]]))
    return path[::-1]


def test_a_chain():
    probability, paths = brute_force(X)
    posterior = DiscretePosterior(hmm, num_samples=20_000)
    marginals, samples, best = posterior.marginals(X), posterior.samples(X), posterior.most_probable(X)
    for t in range(len(X)):
        exact = torch.stack([probability[paths[:, t] == k].sum() for k in range(3)])
        assert torch.allclose(marginals[f"z{t}"].probs, exact.double(), atol=1e-6)
    drawn = torch.stack([samples[f"z{t}"] for t in range(len(X))], -1)
    frequency = torch.stack([(drawn == path).all(-1).double().mean() for path in paths])
    error = ((frequency - probability) / (probability * (1 - probability) / 20_000).sqrt().clamp(min=1e-4)).abs()
    assert error.max() < 5.5
    assert [int(best[f"z{t}"]) for t in range(len(X))] == paths[probability.argmax()].tolist() == viterbi(X)


@pytest.mark.parametrize("length", [40, 300])
def test_long_chains(length):
    torch.manual_seed(3)
    x = torch.randn(length)
    best = DiscretePosterior(hmm).most_probable(x)
    assert [int(best[f"z{t}"]) for t in range(length)] == viterbi(x)


def test_as_pyro_where_the_user_annotates():
    marked = config_enumerate(hmm)
    pyros = TraceEnum_ELBO(max_plate_nesting=0).compute_marginals(marked, lambda x: None, X)
    ours = DiscretePosterior(hmm).marginals(X)
    for name, marginal in pyros.items():
        assert torch.allclose(ours[name].probs.float(), marginal.probs, atol=1e-5)
    decoded = infer_discrete(marked, first_available_dim=-1, temperature=0)
    trace = pyro.poutine.trace(decoded).get_trace(X)
    best = DiscretePosterior(hmm).most_probable(X)
    assert all(trace.nodes[name]["value"] == value for name, value in best.items())


def test_chains_of_second_order_in_a_plate_with_masked_ends():
    torch.manual_seed(0)
    x, lengths = torch.randn(6, 2), torch.tensor([6, 3])

    def model(x):
        with pyro.plate("chains", 2):
            before = last = torch.zeros(2).long()
            for t in pyro.markov(range(len(x)), history=2):
                with pyro.poutine.mask(mask=t < lengths):
                    logits = 0.8 * last.float() - 1.1 * before.float() + 0.3
                    before, last = last, pyro.sample(f"z{t}", dist.Bernoulli(logits=logits)).long()
                    pyro.sample(f"x{t}", dist.Normal(2.0 * last, 1.0), obs=x[t])

    paths = torch.tensor(list(itertools.product(range(2), repeat=6)))
    padded = torch.cat([torch.zeros(len(paths), 2), paths], 1)
    prior_terms = dist.Bernoulli(logits=0.8 * padded[:, 1:-1] - 1.1 * padded[:, :-2] + 0.3).log_prob(paths.float())
    prior = prior_terms.sum(1)
    marginals, best = DiscretePosterior(model).marginals(x), DiscretePosterior(model).most_probable(x)
    for chain, length in enumerate(lengths):
        seen = dist.Normal(2.0 * paths, 1.0).log_prob(x[:, chain])[:, :length].sum(1)
        probability = (prior + seen).softmax(0)
        for t in range(6):
            assert marginals[f"z{t}"].probs[chain] == pytest.approx(float(probability @ paths[:, t].float()), abs=1e-5)
        whole = prior_terms[:, :length].sum(1) + seen  # up to the chain's end
        assert whole.max() > whole[whole < whole.max()].max() + 1e-3
        path = paths[whole.argmax()]
        assert [int(best[f"z{t}"][chain]) for t in range(length)] == path[:length].tolist()


def test_a_masked_end_has_no_say_in_the_path(monkeypatch):
    """A chain whose end is masked, and would go on longer from 1; planted: a maximum over the end's prior too."""
    table, there = torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([True, False, False])

    def model():
        z = torch.tensor(0)
        for t in range(3):
            with pyro.poutine.mask(mask=there[t]):
                z = pyro.sample(f"z{t}", dist.Categorical(table[z]))
                pyro.sample(f"x{t}", dist.Normal(2.0 * z, 1.0), obs=torch.tensor(0.8))

    # z0 = 0: 0.5 N(0.8; 0, 1) = 0.145, and 1: 0.5 N(0.8; 2, 1) = 0.097; times the likeliest end, 0.065 and 0.079
    assert int(DiscretePosterior(model).most_probable()["z0"]) == 0

    def whole(*given, masked, by_parts):
        return Marginalise(*given, masked=False, by_parts=by_parts)

    monkeypatch.setattr("pyro_discrete.posterior.discrete_posterior.Marginalise", whole)
    assert int(DiscretePosterior(model).most_probable()["z0"]) == 1


def mixed(x):
    style = pyro.sample("style", dist.OneHotCategorical(torch.tensor([0.3, 0.7])))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        y = pyro.sample("y", dist.Bernoulli(torch.tensor([0.2, 0.7])).to_event(1))
        k = pyro.sample("k", dist.Binomial(2, 0.5))
        pyro.sample("x", dist.Normal(2 * z - y.sum(-1) + style[..., 0] + level + k, 1.0), obs=x)
        pyro.sample("flag", dist.Bernoulli(0.2 + 0.6 * z), obs=torch.ones(len(x)))


def guide(x):
    style = pyro.sample("style", dist.OneHotCategorical(torch.tensor([0.8, 0.2])))
    pyro.sample("level", dist.Delta(torch.tensor(0.1)))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * style[..., 1]))


def posterior_given(style, z, x):
    """The posterior of y (its two bits) and k, given a value of each of the guide's sites: `[2, 2, 3]`."""
    y0, y1, k = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), torch.arange(3.0), indexing="ij")
    log_p = dist.Bernoulli(0.2).log_prob(y0) + dist.Bernoulli(0.7).log_prob(y1) + dist.Binomial(2, 0.5).log_prob(k)
    log_p = log_p + dist.Normal(2 * z - y0 - y1 + style + 0.1 + k, 1.0).log_prob(x)
    return log_p.flatten().softmax(0).reshape(2, 2, 3)


def test_sites_of_the_guide_beside_sites_of_the_model_alone():
    torch.manual_seed(1)
    x = torch.tensor([0.4, -1.3])
    draws = 20_000
    posterior = DiscretePosterior(mixed, guide, num_samples=draws)
    marginals, samples = posterior.marginals(x), posterior.samples(x)
    assert torch.allclose(marginals["style"].probs, torch.tensor([0.8, 0.2]).double())
    assert torch.allclose(marginals["z"].probs, torch.tensor([0.3, 0.3]).double())
    assert samples.keys() == {"style", "z", "y", "k"}
    assert samples["y"].shape == (draws, 2, 2)
    for i in range(2):
        expected = 0.0
        for style, z in itertools.product((0, 1), (0, 1)):
            q = (0.8, 0.2)[1 - style]
            q *= (0.2 + 0.5 * (1 - style)) if z else (0.8 - 0.5 * (1 - style))
            expected = expected + q * posterior_given(style, z, x[i]).double()
        assert torch.allclose(marginals["y"].base_dist.probs[i, 0], expected.sum((1, 2))[1], atol=0.01)
        assert torch.allclose(marginals["k"].probs[i], expected.sum((0, 1)), atol=0.01)
        joint = [(samples["y"][:, i] == torch.tensor([a, b])).all(-1) for a in (0.0, 1.0) for b in (0.0, 1.0)]
        frequency = torch.stack([(y & (samples["k"][:, i] == k)).double().mean() for y in joint for k in range(3)])
        assert torch.allclose(frequency, expected.flatten(), atol=5.5 * 0.5 / draws**0.5)
    best = posterior.most_probable(x)
    assert best["style"].tolist() == [1.0, 0.0]
    assert best["z"].tolist() == [0.0, 0.0]
    for i in range(2):
        at = posterior_given(1, 0, x[i]).flatten().argmax()
        assert [*best["y"][i].tolist(), best["k"][i].item()] == [int(at) // 6, int(at) // 3 % 2, int(at) % 3]


def test_predictions_and_programs_without_leading_dims():
    torch.manual_seed(2)
    x = torch.tensor([0.4, -1.3])
    new = DiscretePosterior(mixed, guide, num_samples=20_000).predictive(x)
    assert new["flag"].shape == (20_000, 2)
    assert new.keys() == {"x", "flag"}
    assert torch.allclose(new["flag"].mean(0), torch.tensor([0.38, 0.38]), atol=0.02)  # 0.2 + 0.6 q(z)

    def branching(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        scale = 0.5 if z.item() > 0.5 else 1.5
        y = pyro.sample("y", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(y + z, scale), obs=x[0])

    def bit(x):
        pyro.sample("z", dist.Bernoulli(0.5))

    found = DiscretePosterior(branching, bit, num_samples=60)
    assert found.samples(x)["y"].shape == (60,)
    assert found.predictive(x)["x"].shape == (60,)
    assert 0 < found.marginals(x)["y"].probs < 1


def test_a_guide_too_large_to_sum_over_is_averaged_over_its_draws():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(30)).to_event(1))
        pyro.sample("w", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(3.0))

    def guide():
        w = pyro.sample("w", dist.Bernoulli(0.25))
        pyro.sample("z", dist.Bernoulli((0.1 + 0.4 * w).unsqueeze(-1) * torch.ones(30)).to_event(1))

    torch.manual_seed(0)
    found = DiscretePosterior(model, guide, num_samples=4_000).marginals()
    assert torch.allclose(found["z"].base_dist.probs, torch.tensor(0.2), atol=0.02)


def test_most_probable_values_of_events_too_large_for_a_table():
    """Bits and ternary values that nothing hangs on are found one by one; those that another site reads are not."""
    logits = torch.linspace(-2, 2, 30)
    table = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))

    def guide(reads_bits):
        scale = pyro.sample("scale", dist.Normal(3.0, 0.1))
        a = pyro.sample("a", dist.Bernoulli(0.7))
        with pyro.plate("data", 4):
            bits = pyro.sample("bits", dist.Bernoulli(logits=logits * scale).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=bits[..., 0] if reads_bits else 4 * a - 1))
            pyro.sample("threes", dist.Categorical(logits=table[0]).to_event(1))
        return b

    def model(reads_bits):
        scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Bernoulli(0.5))
        with pyro.plate("data", 4):
            bits = pyro.sample("bits", dist.Bernoulli(0.5 * torch.ones(30)).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(0.5))
            threes = pyro.sample("threes", dist.Categorical(logits=table[1]).to_event(1))
            own = pyro.sample("own", dist.Categorical(logits=torch.stack([bits.sum(-1), threes.sum(-1) + 0.0], -1)))
            pyro.sample("x", dist.Normal(own * scale + a + b, 1.0), obs=torch.zeros(4))

    best = DiscretePosterior(model, guide).most_probable(False)
    assert torch.equal(best["bits"], (logits > 0).float().expand(4, 30))
    assert torch.equal(best["threes"], table[0].argmax(-1).expand(4, 12))
    assert (best["a"], best["b"].tolist()) == (1, [1.0] * 4)
    log_p = torch.stack([best["bits"].sum(-1), best["threes"].sum(-1) + 0.0], -1).log_softmax(-1)
    log_p = log_p + dist.Normal(torch.tensor([0.0, 3.0]) + best["a"] + best["b"][:, None], 1.0).log_prob(
        torch.zeros(())
    )
    assert torch.equal(best["own"], log_p.argmax(-1))
    with pytest.raises(EnumerationError, match="'bits'"):
        DiscretePosterior(model, guide).most_probable(True)


def test_a_draw_that_ignores_its_shares_is_caught(monkeypatch):
    """Planted: values drawn evenly, where the posterior is not even."""

    def evenly(table, dim):
        return random_value(torch.zeros_like(table) + 0 * table, dim)

    probability, paths = brute_force(X)
    monkeypatch.setattr("pyro_discrete.posterior.discrete_posterior.random_value", evenly)
    samples = DiscretePosterior(hmm, num_samples=2_000).samples(X)
    exact = float(probability @ (paths[:, 0] == 0).float())
    assert abs((samples["z0"] == 0).float().mean() - exact) > 0.1


def test_what_is_refused():
    def continuous(x):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with pytest.raises(SettingError, match="num_samples=0"):
        DiscretePosterior(hmm, num_samples=0)
    with pytest.raises(SiteMatchError, match=r"'loc' is latent in the model.*Draw it in the guide"):
        DiscretePosterior(continuous).marginals(X)


class Scored(dist.TorchDistribution):
    """A density that nothing can be drawn from."""

    arg_constraints: dict = {}  # noqa: RUF012
    support = dist.constraints.real  # type: ignore[assignment]

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, ())

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).log_prob(value)

    def expand(self, batch_shape, _instance=None):
        return Scored(self.loc.expand(batch_shape))


@pytest.mark.parametrize("drawn", [True, False])
def test_data_that_cannot_be_drawn_anew(drawn):
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", Scored(z), obs=torch.tensor(0.5))

    def guide():
        if drawn:
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))

    posterior = DiscretePosterior(model, guide)
    assert posterior.samples()["z"].shape == (100,)
    with pytest.raises(UnsupportedSiteError, match=r"no new data can be drawn from 'y' \(Scored\)"):
        posterior.predictive()
    with pytest.warns(UserWarning, match=r"posterior_predictive is left out: no new data .* 'y' \(Scored\)"):
        data = to_inference_data(model, guide, num_samples=5)
    assert data["posterior"]["z"].shape == (1, 5)
    assert "posterior_predictive" not in data


@pytest.mark.parametrize("drawn", [True, False])
def test_what_weighs_the_guides_terms_leaves_its_draws_alone(drawn):
    """A scale of the guide that another draw decides: `y` and `z` are drawn as they are without it."""
    p_y = torch.tensor([0.2, 0.3, 0.5])
    p_z = torch.tensor([0.6, 0.3, 0.9])  # of z = 1, by y

    def model():
        pyro.sample("y", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide():
        y = pyro.sample("y", dist.Categorical(p_y))
        with poutine.scale(scale=1.0 + y if drawn else 3.0):
            pyro.sample("z", dist.Bernoulli(p_z[y]))

    posterior = DiscretePosterior(model, guide)
    torch.testing.assert_close(posterior.marginals()["z"].probs, (p_y * p_z).sum().double())
    assert {name: float(value) for name, value in posterior.most_probable().items()} == {"y": 2.0, "z": 1.0}
