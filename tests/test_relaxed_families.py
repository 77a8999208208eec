"""Every family that `relax` and the relaxed estimators serve: values, log-masses, wrappers, extremes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_discrete import ExponentialDecay, GumbelSoftmax, ReinMax, SoftIndex, StraightThrough, TraceELBO, relax
from pyro_discrete.errors import SettingError, UnknownSiteError, UnsupportedSiteError
from pyro_discrete.relaxations import Relaxed
from pyro_discrete.relaxations.soft_index import SoftBit
from tests.pairs import gradients

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


def several():
    a = pyro.sample("a.0", dist.Bernoulli(0.5))
    b = pyro.sample("a.1", dist.Categorical(torch.ones(3)))
    c = pyro.sample("c", dist.Categorical(torch.ones(3)))
    return a, b, c


@pytest.mark.parametrize(
    ("sites", "soft"),
    [
        (None, "abc"),
        ("a.0", "a"),
        ("a.*", "ab"),
        (["a.1", "c"], "bc"),
        (lambda site: site.family.value == "Categorical", "bc"),
        (lambda site: site.name.endswith("0"), "a"),
    ],
)
def test_the_handler_relaxes_the_sites_it_is_told_to(sites, soft):
    for values in (relax(several, temperature=0.5, sites=sites)(), _around(relax(temperature=0.5, sites=sites))):
        found = "".join(n for n, v in zip("abc", values, strict=True) if isinstance(v, SoftIndex))
        assert found == soft
    assert not any(isinstance(v, SoftIndex) for v in several())


def _around(handler):
    with handler:
        return several()


def test_the_handler_says_what_it_was_told_wrongly():
    with pytest.raises(UnknownSiteError, match="'b' matches no latent site"):
        relax(several, temperature=0.5, sites=["c", "b"])()
    with pytest.raises(SettingError, match="no temperature is given for site 'c'"):
        relax(several, temperature={"a.*": 0.5}, sites="*")()
    with pytest.raises(SettingError, match="temperature=-1"):
        relax(several, temperature={"a.*": -1.0})


def test_temperatures_by_site_and_by_step():
    def program():
        return pyro.sample("z", dist.Categorical(torch.ones(2))), pyro.sample("y", dist.Categorical(torch.ones(2)))

    handler = relax(temperature={"z": ExponentialDecay(1.0, 0.1, rate=0.5), "y": 0.3})
    seen = []
    for _ in range(3):
        with handler:
            trace = pyro.poutine.trace(program).get_trace()
        seen.append([float(trace.nodes[n]["fn"].temperature) for n in "zy"])
    assert seen == [[pytest.approx(torch.tensor(-0.5 * i).exp().item()), 0.3] for i in range(3)]
    assert handler.step == 3


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_over_a_guide_alone_pyros_own_distribution_scores_the_soft_value(family):
    make = {
        "bernoulli": lambda t: dist.Bernoulli(logits=t[..., 0]),
        "categorical": lambda t: dist.Categorical(logits=t),
    }
    table = real(0.0, 1.0, 2.0)

    def model():
        z = pyro.sample("z", make(real(0.3, -0.2, 0.1)))
        pyro.sample("x", dist.Normal(table[z.long()], 1.0), obs=real(0.7)[0])

    def guide():
        pyro.sample("z", make(pyro.param("t", real(0.1, 0.2, -0.5))))

    found = []
    for pair in (
        (model, relax(guide, temperature=0.5)),
        (relax(model, temperature=0.5), relax(guide, temperature=0.5)),
    ):
        pyro.clear_param_store()
        torch.manual_seed(0)
        loss = Trace_ELBO().loss_and_grads(*pair)
        found.append((loss, gradients()["t"]))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_other_sites_are_enumerated_beside_relaxed_ones():
    """By this ELBO (a local expectation) and by Pyro's, whose enumerated sites the handler leaves alone.

    The enumerated site's gradient is exact given the relaxed value; the relaxed one's sees a draw of the other here, and
    its sum there.
    """
    table, both = real([0.0, 1.0], [2.0, -1.0], [0.5, 3.0]), {"enumerate": "parallel"}

    def model():
        z = pyro.sample("z", dist.Categorical(logits=real(0.3, -0.2, 0.1)))
        c = pyro.sample("c", dist.Categorical(logits=real(0.1, 0.4)), infer=both)
        pyro.sample("x", dist.Normal(pyro.ops.indexing.Vindex(table)[z, c], 1.0), obs=real(0.7)[0])

    def guide():
        pyro.sample("z", dist.Categorical(logits=pyro.param("z_logits", real(0.1, 0.2, -0.5))))
        pyro.sample("c", dist.Categorical(logits=pyro.param("c_logits", real(0.1, 0.2))), infer=both)

    pyro.clear_param_store()
    torch.manual_seed(0)
    TraceELBO({"z": GumbelSoftmax(0.5), "c": "enumerate"}).loss_and_grads(model, guide)
    ours = gradients()
    torch.manual_seed(0)
    with relax(temperature=0.5):
        TraceEnum_ELBO(max_plate_nesting=0).loss_and_grads(model, guide)
    theirs = gradients()
    torch.testing.assert_close(ours["c_logits"], theirs["c_logits"])
    assert (ours["z_logits"] - theirs["z_logits"]).abs().max() < 0.1


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
