"""The oracle against closed forms, Pyro's TraceEnum_ELBO where that is right, and finite differences."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta

from pyro_discrete import TraceELBO
from pyro_discrete.diagnostics import Oracle, exact_gradient, exact_loss
from pyro_discrete.testing import programs

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _fresh_store():
    with pyro.get_param_store().scope():
        yield


def bits(phi, count=()):
    """A guide whose only term in the bound is the weight: no log q (`fn.mask(False)` takes it out)."""

    def guide():
        fn = dist.Bernoulli(logits=phi.expand(count)) if count else dist.Bernoulli(logits=phi)
        pyro.sample("b", fn.mask(False).to_event(len(count)))

    return guide


def reward(function, count=()):
    def model():
        fn = dist.Bernoulli(torch.full(count, 0.5, dtype=DOUBLE)).mask(False).to_event(len(count))
        pyro.factor("reward", -function(pyro.sample("b", fn)))

    return model


@pytest.mark.parametrize("target", [0.499, 0.1, 0.9])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.0])
def test_scalar_closed_form(target, logit):
    phi = torch.tensor(logit, dtype=DOUBLE, requires_grad=True)
    p = phi.sigmoid().item()
    model = reward(lambda b: (b - target) ** 2)
    assert exact_gradient(model, bits(phi))["phi"].item() == pytest.approx((1 - 2 * target) * p * (1 - p), rel=1e-12)
    assert exact_loss(model, bits(phi)) == pytest.approx(p * (1 - target) ** 2 + (1 - p) * target**2, rel=1e-12)


def test_counts_up_to_their_stated_ends():
    """The mean of a Poisson is its rate, that of a count of a Multinomial its trials times the probability."""
    rate, logits = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True), torch.tensor([0.2, -0.5, 0.4], dtype=DOUBLE)
    logits.requires_grad_()

    def guide():
        pyro.sample("n", dist.Poisson(rate).mask(False), infer={"truncation": 25})
        pyro.sample("m", dist.Multinomial(3, logits=logits).mask(False))

    def model():
        n = pyro.sample("n", dist.Poisson(torch.tensor(1.0, dtype=DOUBLE)).mask(False))
        m = pyro.sample("m", dist.Multinomial(3, logits=torch.zeros(3, dtype=DOUBLE)).mask(False))
        pyro.factor("reward", n * n - 2 * m[..., 0])

    exact = Oracle()(model, guide)
    assert exact.assignments == 26 * 10
    mean = 3 * logits.softmax(-1)[0]
    assert exact.loss == pytest.approx(-(0.7 + 0.49 - 2 * mean.item()), rel=1e-12)
    assert exact.gradients["rate"].item() == pytest.approx(-2.4, rel=1e-12)
    torch.testing.assert_close(exact.gradients["logits"], torch.autograd.grad(2 * mean, logits)[0])


ENDLESS = {
    "poisson": lambda t: dist.Poisson(2.0 + t),
    "geometric": lambda t: dist.Geometric(logits=t - 1),
    "negative binomial": lambda t: dist.NegativeBinomial(torch.tensor(3.0, dtype=DOUBLE), logits=t - 0.5),
    "zero-inflated": lambda t: dist.ZeroInflatedPoisson(2.0 + t, gate=torch.tensor(0.2, dtype=DOUBLE)),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("last", [3, 30])
def test_a_count_of_the_guide_is_cut_at_its_stated_end(kind, last):
    """Loss and gradient are those of the distribution up to it, as under "enumerate"; the prior is not cut.

    Of two data up to 3, of one up to 30: the oracle runs the programs once for each joint value.
    """
    t, x = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True), torch.tensor([1.0, 2.5], dtype=DOUBLE)
    x = x if last < 10 else x[1:]
    make, prior = ENDLESS[kind], dist.Poisson(torch.tensor(2.5, dtype=DOUBLE))

    def model():
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", prior)
            pyro.sample("x", dist.Normal(n, torch.ones_like(x)), obs=x)
        with pyro.plate("own", 1):  # of the model alone
            m = pyro.sample("m", prior, infer={"truncation": last})
            pyro.sample("y", dist.Normal(m, torch.ones_like(x[:1])), obs=x[:1])

    def guide():
        with pyro.plate("data", len(x)):
            pyro.sample("n", make(t), infer={"truncation": last})

    n = torch.arange(last + 1, dtype=DOUBLE)
    log_q = make(t).log_prob(n).log_softmax(0)
    log_p = prior.log_prob(n)[:, None] + dist.Normal(n[:, None], torch.ones_like(x)).log_prob(x)
    loss = (log_q.exp()[:, None] * (log_q[:, None] - log_p)).sum() - log_p[:, 0].logsumexp(0)
    exact = Oracle()(model, guide)
    assert exact.loss == pytest.approx(loss.item(), rel=1e-9)
    assert exact.gradients["t"].item() == pytest.approx(torch.autograd.grad(loss, t)[0].item(), rel=1e-9)
    t.grad = None
    with warnings.catch_warnings():  # of the share that the last term has
        warnings.simplefilter("ignore")
        assert TraceELBO("enumerate").loss_and_grads(model, guide) == pytest.approx(exact.loss, rel=1e-9)
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(exact.gradients["t"].item(), rel=1e-6)


def test_scalar_gradient_as_printed():
    phi = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    gradient = exact_gradient(reward(lambda b: (b - 0.499) ** 2), bits(phi))["phi"]
    assert gradient.item() == pytest.approx(3.932e-4, rel=1e-4)


@pytest.mark.parametrize("count", [3, 8])
def test_mean_of_many_bits(count):
    """The 200-bit toy at fewer bits: the mean over d of a bit's gradient, (1 - 2 t) p (1 - p) / D."""
    theta = torch.full((count,), 0.5, dtype=DOUBLE, requires_grad=True)
    model = reward(lambda b: ((b - 0.499) ** 2).mean(-1), (count,))
    p = 1 / (1 + math.exp(-0.5))
    gradient = exact_gradient(model, bits(theta, (count,)))["phi"]
    assert gradient.tolist() == pytest.approx([0.002 * p * (1 - p) / count] * count, rel=1e-9)


@pytest.mark.parametrize(("logit", "gradient"), [(0.0, -0.0450), (-4.0, -0.003179)])
def test_three_bits_that_share_a_logit(logit, gradient):
    phi = torch.tensor(logit, dtype=DOUBLE, requires_grad=True)
    p0 = torch.tensor([0.6, 0.51, 0.48], dtype=DOUBLE)
    model = reward(lambda b: ((b - p0) ** 2).sum(-1), (3,))
    assert exact_gradient(model, bits(phi, (3,)))["phi"].item() == pytest.approx(gradient, rel=2e-4)


# The programs that TraceEnum_ELBO enumerates (no event dims, no continuous site, no random subsample) and gets right.
ENUMERABLE = {
    "crossing_plates",
    "fair_bernoulli",
    "masked_latent",
    "mixed_chain",
    "nested_plates",
    "one_bernoulli",
    "one_categorical",
    "one_hot_plate",
    "ragged_subsample",
    "reused_plate",
    "sequential_plate",
    "shared_parameters",
}


@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency")
@pytest.mark.parametrize("program", [p for p in programs() if p.name in ENUMERABLE], ids=lambda p: p.name)
def test_agrees_with_trace_enum(program):
    with program.running() as pair:
        elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
        loss = elbo.differentiable_loss(pair.model, config_enumerate(pair.guide), *pair.args)
        names = list(pair.parameters)
        gradients = torch.autograd.grad(loss, [pair.parameters[n] for n in names], allow_unused=True)
    assert loss.item() == pytest.approx(program.exact.loss, rel=1e-9)
    for name, gradient in zip(names, gradients, strict=True):
        expected = program.exact.gradients[name]
        torch.testing.assert_close(torch.zeros_like(expected) if gradient is None else gradient, expected)


@pytest.mark.parametrize("program", programs(), ids=lambda p: p.name)
def test_agrees_with_finite_differences(program):
    """The loss along a random direction, by a central difference of fourth order."""
    generator = torch.Generator().manual_seed(11)
    with program.running() as pair:
        directions = {n: torch.randn(p.shape, generator=generator, dtype=DOUBLE) for n, p in pair.parameters.items()}
        slope, step = 0.0, 1e-3
        for offset, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
            with torch.no_grad():
                for name, parameter in pair.parameters.items():
                    parameter += offset * step * directions[name]
            slope += weight / step * Oracle(nodes=program.nodes)(pair.model, pair.guide, *pair.args).loss
            with torch.no_grad():
                for name, parameter in pair.parameters.items():
                    parameter -= offset * step * directions[name]
    expected = sum((program.exact.gradients[n] * d).sum().item() for n, d in directions.items())
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["continuous_upstream", "continuous_downstream", "not_reparameterised"])
def test_quadrature_has_converged(name):
    program = next(p for p in programs() if p.name == name)
    with program.running() as pair:
        finer = Oracle(budget=100_000, nodes=program.nodes + 8)(pair.model, pair.guide, *pair.args)
    assert program.exact.loss == pytest.approx(finer.loss, abs=1e-9)
    found = {id(leaf): finer.gradients[n] for n, leaf in finer.parameters.items()}
    for key, leaf in pair.parameters.items():
        torch.testing.assert_close(program.exact.gradients[key], found[id(leaf)], rtol=0, atol=1e-9)


def test_normal_site_in_closed_form():
    """KL(N(m, s) || N(0, 1)) and its gradient."""
    m = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    s = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)

    def model():
        pyro.sample("y", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))

    def guide():
        pyro.sample("y", dist.Normal(m, s))

    exact = Oracle(nodes=3)(model, guide)
    assert exact.loss == pytest.approx(0.5 * (0.4**2 + 0.7**2 - 1) - math.log(0.4), rel=1e-12)
    assert exact.gradients["m"].item() == pytest.approx(0.7, rel=1e-12)
    assert exact.gradients["s"].item() == pytest.approx(0.4 - 1 / 0.4, rel=1e-12)


def test_model_site_absent_from_the_guide_is_summed_out():
    """A mixture in a subsampled plate, the assignment summed out: scale outside of the logarithm."""
    loc, weight = torch.tensor([-1.0, 0.8], requires_grad=True), torch.tensor([0.3, 0.9], requires_grad=True)
    data = torch.tensor([0.5, -1.2, 2.0])

    @config_enumerate
    def model():
        with pyro.plate("data", 6, subsample_size=3, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Categorical(logits=weight))
            pyro.sample("x", dist.Normal(loc[z], 0.7), obs=data)
        pyro.sample("other", dist.Normal(loc.sum(), 1.0), obs=torch.tensor(0.3))

    def guide():
        pass

    exact = Oracle()(model, guide)
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    expected = torch.autograd.grad(loss, [loc, weight])
    assert exact.loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(exact.gradients["loc"].float(), expected[0])
    torch.testing.assert_close(exact.gradients["weight"].float(), expected[1])


def test_every_subset_counts_alike():
    """Without latent sites the mean over subsets is the loss of the whole data set."""
    data = torch.tensor([0.3, 1.9, -2.0, 0.8], dtype=DOUBLE)
    loc = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)

    def model():
        with pyro.plate("data", 4, subsample_size=2) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[index])

    exact = Oracle()(model, lambda: None)
    assert exact.loss == pytest.approx(-dist.Normal(loc, 1.0).log_prob(data).sum().item(), rel=1e-12)
    assert exact.gradients["loc"].item() == pytest.approx((4 * loc - data.sum()).item(), rel=1e-12)


def test_mask_of_a_distribution_does_not_touch_the_weight():
    phi = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    model = reward(lambda b: 3 * b)
    assert exact_gradient(model, bits(phi))["phi"].item() == pytest.approx(
        (3 * phi.sigmoid() * (1 - phi.sigmoid())).item(), rel=1e-12
    )


def test_parameters_wherever_they_live():
    linear = torch.nn.Linear(1, 1)

    class Model(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.w = pyro.nn.PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

        def forward(self):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(self.w * z, 1.0), obs=torch.tensor(1.0))

    def guide():
        phi = pyro.param("phi", torch.tensor(0.3))
        pyro.sample("z", dist.Bernoulli(logits=phi * linear(torch.ones(1)).squeeze(-1)))

    gradients = exact_gradient(Model(), guide)
    assert {"phi", "linear.weight", "linear.bias"} <= set(gradients)
    assert len(gradients) == 4
    assert any("w" in name for name in set(gradients) - {"phi", "linear.weight", "linear.bias"})
    assert linear.weight.grad is None


def test_delta_sites_are_points():
    def model():
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(y, 1.0), obs=torch.tensor(1.0))

    guide = AutoDelta(model)
    guide()
    gradient = exact_gradient(model, guide)
    (value,) = gradient.values()
    location = next(guide.parameters()).item()
    assert value.item() == pytest.approx(location + location - 1.0, abs=1e-6)


def test_condition_and_structure_that_changes():
    a = torch.tensor(0.5, requires_grad=True)

    def model():
        if pyro.sample("a", dist.Bernoulli(0.5)).item():
            pyro.sample("b", dist.Bernoulli(0.2))
        pyro.sample("x", dist.Bernoulli(0.5))

    def guide():
        if pyro.sample("a", dist.Bernoulli(logits=a)).item():
            pyro.sample("b", dist.Bernoulli(0.3))

    exact = Oracle()(poutine.condition(model, data={"x": torch.tensor(1.0)}), guide)
    assert exact.assignments == 3
    p = a.sigmoid().item()
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    kl += p * (0.3 * math.log(0.3 / 0.2) + 0.7 * math.log(0.7 / 0.8))
    assert exact.loss == pytest.approx(kl - math.log(0.5), rel=1e-5)
