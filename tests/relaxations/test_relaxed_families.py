"""Every family that `relax` and the relaxed estimators serve: values, log-masses, wrappers, extremes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_discrete import GumbelSoftmax, ReinMax, SoftIndex, StraightThrough, TraceELBO, relax
from pyro_discrete.errors import SettingError, UnsupportedSiteError
from pyro_discrete.relaxations import Relaxed
from pyro_discrete.relaxations.soft_index import SoftBit
from tests.support.pairs import gradients

REAL = torch.float64


def real(*values):
    return torch.tensor(values, dtype=REAL)


FAMILIES = {
    "bernoulli": (dist.Bernoulli(logits=real(0.3, -1.0)), {}),
    "categorical": (dist.Categorical(logits=real([0.3, -1.0, 0.4], [0.0, 0.2, 1.0])), {}),
    "one_hot": (dist.OneHotCategorical(logits=real([0.3, -1.0, 0.4], [0.0, 0.2, 1.0])), {}),
    "ordered": (dist.OrderedLogistic(real(0.3, -0.4), real(-1.0, 0.5, 1.5)), {}),
    "binomial": (dist.Binomial(3, logits=real(0.3, -1.0)), {}),
    "binomials": (dist.Binomial(real(3.0, 1.0), logits=real(0.3, -1.0)), {}),
    "multinomial": (dist.Multinomial(4, logits=real([0.3, -1.0, 0.4], [0.0, 0.2, 1.0])), {}),
    "poisson": (dist.Poisson(real(0.8, 2.0)), {"truncation": 25}),
    "geometric": (dist.Geometric(real(0.5, 0.7)), {"truncation": 60}),
    "negative_binomial": (dist.NegativeBinomial(2.0, logits=real(-0.5, -1.0)), {"truncation": 60}),
}


def relaxed(name, hard=False, temperature=0.3):
    base, infer = FAMILIES[name]
    return base, Relaxed(base, temperature, hard, name, infer)


@pytest.mark.parametrize("name", FAMILIES)
def test_hard_forward_draws_are_draws_of_the_distribution_scored_as_it_scores_them(name):
    torch.manual_seed(0)
    base, fn = relaxed(name, hard=True)
    value = fn.rsample((20_000,))
    plain = value.hard() if isinstance(value, SoftIndex) and not isinstance(value, SoftBit) else value * 1
    assert value.shape == base.shape((20_000,))
    assert plain.dtype == base.sample().dtype
    torch.testing.assert_close(fn.log_prob(value), base.log_prob(plain.detach()), atol=1e-9, rtol=1e-9)
    scale = plain.double().std(0) / 20_000**0.5
    expected = (
        base.mean
        if name not in ("categorical", "ordered")
        else (base.probs * torch.arange(base.probs.shape[-1])).sum(-1)
    )
    assert ((plain.double().mean(0) - expected).abs() < 5 * scale).all()  # 22 comparisons: 1.3e-5 together


@pytest.mark.parametrize("name", FAMILIES)
def test_soft_draws_are_linear_mixtures_of_hard_ones_in_value_and_log_mass(name):
    base, fn = relaxed(name, temperature=0.7)
    value = fn.rsample()
    assert value.requires_grad is False or name  # parameters here are constants
    if isinstance(value, SoftIndex):
        w, k = value.weights, value.values
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))
        unchecked = type(base).__new__(type(base))
        unchecked.__dict__.update(base.__dict__, _validate_args=False)
        masses = torch.stack([unchecked.log_prob(torch.full(base.batch_shape, float(v)).to(REAL)) for v in k], -1)
        expected = torch.where(w > 0, w * masses.clamp(min=torch.finfo(REAL).min), 0.0).sum(-1)
        torch.testing.assert_close(fn.log_prob(value), expected)
    elif name == "multinomial":
        torch.testing.assert_close(value.sum(-1), real(4.0, 4.0))
        assert (value >= 0).all()
    else:
        assert ((value >= 0) & (value <= 1)).all()


def counts(prior_rate=1.5):
    """A count under a count: the model's prior depends on a relaxed value, and its likelihood on the other."""
    levels = pyro.param("levels", lambda: real(0.5, 1.0, 2.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=real(0.0, 0.0, 0.0)))
            n = pyro.sample("n", dist.Poisson(levels.exp()[z]))
            m = pyro.sample("m", dist.Binomial(4, logits=0.2 * n))
            pyro.sample("x", dist.Normal(0.5 * n + m, 1.0), obs=x)

    def guide(x):
        logits, rates = pyro.param("logits", torch.zeros(3, 3, dtype=REAL)), pyro.param("rates", real(0.1, 0.2, 0.3))
        slope = pyro.param("slope", real(0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=logits))
            n = pyro.sample("n", dist.Poisson(rates.exp()[z]), infer={"truncation": 15})
            pyro.sample("m", dist.Binomial(4, logits=slope * n))

    return model, guide, (real(1.0, 2.0, 3.0),)


def wrapped():
    """`.to_event`, `.mask` and `.expand` around integers and counts."""

    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Categorical(logits=real(0.0, 1.0, 0.0)).expand([2, 3]).to_event(1))
            k = pyro.sample("k", dist.Poisson(real(1.0)).expand([2]).mask(torch.tensor([True, False])))
            pyro.sample("x", dist.Normal(real(0.0, 1.0, 3.0)[z].sum(-1) + k, 1.0), obs=x)

    def guide(x):
        logits, rate = pyro.param("logits", torch.zeros(2, 3, 3, dtype=REAL)), pyro.param("rate", real(0.1, 0.2))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Categorical(logits=logits).to_event(1))
            kept = dist.Poisson(rate.exp()).mask(torch.tensor([True, False]))
            pyro.sample("k", kept, infer={"truncation": 15})

    return model, guide, (real(1.0, 2.0),)


@pytest.mark.parametrize("estimator", [GumbelSoftmax(0.2), StraightThrough(), ReinMax()], ids=lambda e: e.name)
@pytest.mark.parametrize("build", [counts, wrapped])
@pytest.mark.parametrize("particles", [1, 400])
def test_estimators_run_on_counts_near_the_exact_loss_with_finite_gradients(build, estimator, particles):
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide, args = build()
    elbo = TraceELBO(estimator, num_particles=particles)
    loss = elbo.loss_and_grads(model, guide, *args)
    found = gradients()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in found.values())
    if particles > 1:
        spread = 15.0 if build is wrapped else 4.0  # standard deviation of the loss, as measured
        exact = TraceELBO("reinforce", num_particles=4_000).loss(model, guide, *args)
        hard = TraceELBO(estimator, num_particles=4_000).loss(model, guide, *args)
        assert hard == pytest.approx(exact, abs=5 * spread * (2 / 4_000) ** 0.5)
        assert loss == pytest.approx(exact, abs=5 * spread * (1 / 4_000 + 1 / 400) ** 0.5 + 1)  # and some bias


@pytest.mark.parametrize("build", [counts, wrapped])
def test_the_handler_gives_the_estimators_gradient_on_counts(build):
    found = []
    for run in (
        lambda m, g, a: TraceELBO(GumbelSoftmax(0.5)).loss_and_grads(m, g, *a),
        lambda m, g, a: Trace_ELBO().loss_and_grads(*(relax(f, temperature=0.5) for f in (m, g)), *a),
    ):
        pyro.clear_param_store()
        model, guide, args = build()
        torch.manual_seed(1)
        run(model, guide, args)
        found.append(gradients())
    torch.testing.assert_close(*found)


def test_a_relaxed_count_has_little_bias_where_the_cost_is_linear():
    """The gradient of E[n] in the rate of a Poisson is one: a softmax of low temperature comes close."""
    torch.manual_seed(0)
    rate = real(2.0).requires_grad_()
    draws = Relaxed(dist.Poisson(rate.expand(40_000)), 0.1, infer={"truncation": 20}).rsample()
    (draws * 1.0).mean().backward()
    assert rate.grad.item() == pytest.approx(1.0, abs=0.1)


def test_a_count_without_an_end_is_refused_and_a_bad_statement_too():
    for infer, error, words in (
        ({}, UnsupportedSiteError, "'n' is Poisson.*truncation"),
        ({"truncation": 0}, SettingError, "'n'.*largest count"),
        ({"truncation": 2.5}, SettingError, "'n'.*largest count"),
    ):
        with pytest.raises(error, match=words), relax(temperature=0.5):
            pyro.sample("n", dist.Poisson(2.0), infer=infer)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("categories", [2, 10_000])
def test_numbers_stay_finite(categories, temperature, hard):
    """Single precision, networks in bfloat16, logits far apart, categories without probability on both sides."""
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    encoder, table = torch.nn.Linear(4, categories), torch.nn.Parameter(torch.randn(categories))
    absent = torch.arange(categories) == 1 if categories > 2 else torch.zeros(categories, dtype=torch.bool)
    prior = torch.zeros(categories).masked_fill(absent, -torch.inf).log_softmax(-1)

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(logits=prior))
            pyro.sample("x", dist.Normal(table[z], 1.0), obs=x[:, 0])

    def guide():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = 50 * encoder(x)
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Categorical(logits=logits.float().masked_fill(absent, -torch.inf)))

    for elbo in (Trace_ELBO(), TraceELBO(GumbelSoftmax(temperature))):
        for p in (*encoder.parameters(), table):
            p.grad = None
        if isinstance(elbo, Trace_ELBO):
            with relax(temperature=temperature, hard=hard):
                loss = elbo.differentiable_loss(model, guide)
        else:
            loss = elbo.differentiable_loss(model, guide)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in (*encoder.parameters(), table))
    with relax(temperature=temperature, hard=hard):
        weights = pyro.poutine.trace(guide).get_trace().nodes["z"]["value"].weights
    assert (weights >= 0).all()
    assert (weights.detach().sum(-1) - 1).abs().max() < 1e-5
    assert (weights[..., absent] == 0).all()


def trials(x, n):
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Binomial(n, logits=real(0.0, 0.5)))
        pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)


def trials_guide(x, n):
    with pyro.plate("data", 2):
        pyro.sample("z", dist.Binomial(n, logits=pyro.param("phi", real(0.1, -0.3))))


@pytest.mark.parametrize("make", [GumbelSoftmax, ReinMax], ids=lambda cls: cls.name)
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.filterwarnings("ignore:compile. the program no longer gives")
def test_a_binomial_is_captured_without_a_truncation(make, changing):
    """Bit for bit as the program gives it, where the data have more trials than before as well."""
    batches = [4] * 5 if not changing else [real(*n) for n in ((4, 3), (4, 2), (2, 2), (6, 1), (6, 6), (6, 2), (3, 3))]
    found = []
    for compile in (False, "graph"):
        pyro.clear_param_store()
        elbo, losses = TraceELBO(make(), num_particles=3, compile=compile), []
        for step, n in enumerate(batches):
            torch.manual_seed(step)
            losses.append(elbo.loss_and_grads(trials, trials_guide, real(1.0, 2.0), n))
        found.append((losses, gradients()))
        if compile:
            assert elbo.captures.count == 1
            assert not elbo.captures.reason
    torch.testing.assert_close(*found, rtol=0, atol=0)
