"""Guides that observe data: one bound whatever the estimator, without these sites' log q, and one warning."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_discrete import Enumerate, TraceELBO, TraceExpectation, TraceIWELBO, to_inference_data
from pyro_discrete.diagnostics import Oracle, pareto_k
from pyro_discrete.errors import SiteMatchError
from pyro_discrete.planning.plan import Elementwise, Jointly

DATA = torch.tensor([1.0, 0.0, 1.0])


class Program:
    """`a` moves the draw of z, `p` the density of what the guide observes, `both` is in both."""

    def __init__(self, family="Bernoulli", event=False, plated=True):
        self.family, self.event, self.plated = family, event, plated
        self.a, self.p = torch.tensor(0.3, requires_grad=True), torch.tensor(-0.2, requires_grad=True)
        self.both = torch.tensor(0.4, requires_grad=True)

    def likelihood(self, at):
        return dist.Bernoulli(logits=at) if self.family == "Bernoulli" else dist.Normal(at, 0.3)

    def sites(self, prior, at, observed_first):
        shape = (len(DATA), 2) if self.event else (len(DATA),)
        fn = dist.Bernoulli(logits=prior.expand(shape))
        if observed_first:
            pyro.sample("t", self.likelihood(at(torch.zeros(len(DATA)))), obs=DATA)
        z = pyro.sample("z", fn.to_event(1) if self.event else fn)
        if not observed_first:
            pyro.sample("t", self.likelihood(at(z.sum(-1) if self.event else z)), obs=DATA)

    def model(self):
        with pyro.plate("data", len(DATA)):
            self.sites(torch.tensor(-0.4), lambda z: 1.2 * z - 0.5, False)

    def guide(self):
        with pyro.plate("data", len(DATA)):
            prior = self.a + self.both * (DATA.unsqueeze(-1) if self.event else DATA)
            self.sites(prior, lambda zero: self.p + self.both + zero, True)

    def exact(self):
        """The bound by its definition, and its gradient in a and both."""
        q = torch.stack([1 - (self.a + self.both * DATA).sigmoid(), (self.a + self.both * DATA).sigmoid()])
        prior = torch.tensor([1 - torch.tensor(-0.4).sigmoid(), torch.tensor(-0.4).sigmoid()])
        total = 0.0
        for first in (0, 1):
            for second in (0, 1) if self.event else (None,):
                values = [v for v in (first, second) if v is not None]
                weight = torch.stack([q[v] for v in values]).prod(0)
                log_p = sum(prior[v].log() for v in values)
                log_p = log_p + self.likelihood(torch.tensor(1.2 * sum(values) - 0.5)).log_prob(DATA)
                total = total - (weight * (log_p - weight.log())).sum()
        return total, torch.stack(torch.autograd.grad(total, [self.a, self.both]))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("family", ["Bernoulli", "Normal"])
@pytest.mark.parametrize("event", [False, True], ids=["scalar", "event"])
@pytest.mark.parametrize("estimator", ["auto", "enumerate", Enumerate()])
def test_exact_sums_have_the_bound_and_its_gradient(family, event, estimator):
    program = Program(family, event)
    loss, slopes = program.exact()
    elbo = TraceELBO(estimator)
    assert elbo.loss(program.model, program.guide) == pytest.approx(float(loss), rel=1e-5)
    assert elbo.loss_and_grads(program.model, program.guide) == pytest.approx(float(loss), rel=1e-5)
    assert torch.allclose(torch.stack([program.a.grad, program.both.grad]), slopes, atol=1e-5)
    assert program.p.grad is None or program.p.grad == 0
    oracle = Oracle()(program.model, program.guide)
    assert oracle.loss == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("way", ["element by element", "jointly"])
def test_other_ways_of_exact_sums(way):
    """The loss and the gradient are those of the guide without its observation."""
    a, p, slopes, losses = torch.tensor(0.3, requires_grad=True), torch.tensor(0.1, requires_grad=True), [], []
    size = (9,) if way == "element by element" else (2,)
    x = torch.linspace(-1, 1, size[0])

    def observe():
        pyro.sample("t", dist.Normal(p, 0.1).expand(size).to_event(1), obs=x)

    def apart(logits):
        return pyro.sample("z", dist.Bernoulli(logits=logits.expand(size)).to_event(1))

    def crossed(logits):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=logits))
        pyro.sample("y", dist.Bernoulli(logits=z.mean(-1, keepdim=z.dim() > 1) - logits))

    draw = apart if way == "element by element" else crossed

    def model():
        if way == "element by element":
            pyro.sample("t", dist.Normal(apart(torch.tensor(0.2)), 1.0).to_event(1), obs=x)
            return
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.tensor(0.2)))
        y = pyro.sample("y", dist.Bernoulli(logits=torch.tensor(-0.1)))
        z = z.mean(-1, keepdim=z.dim() > 1)
        pyro.sample("t", dist.Normal((z + y).unsqueeze(-1) + x, 1.0).to_event(1), obs=x)

    for observed in (False, True):
        a.grad = None

        def guide(observed=observed):
            if observed:
                observe()
            draw(a)

        elbo = TraceELBO("enumerate")
        losses.append(elbo.loss_and_grads(model, guide))
        slopes.append(a.grad)
        assert type(elbo.plan.way) is (Elementwise if way == "element by element" else Jointly)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*slopes, atol=1e-6)
    assert p.grad is None or p.grad == 0


@pytest.mark.parametrize("estimator", ["rloo", "nvil", "rebar", "gumbel_softmax", "disarm", "indecater"])
def test_sampled_estimates_have_the_same_loss(estimator):
    """Five standard errors of 20,000 losses."""
    pyro.set_rng_seed(0)
    program = Program()
    loss, _ = program.exact()
    found = TraceELBO(estimator, num_particles=20_000).loss(program.model, program.guide)
    assert found == pytest.approx(float(loss), abs=5 * 2.0 / 20_000**0.5)


def test_on_the_bound_and_for_a_reward():
    pyro.set_rng_seed(0)
    program = Program()
    prior = torch.tensor([1 - torch.tensor(-0.4).sigmoid(), torch.tensor(-0.4).sigmoid()])
    given = torch.stack([program.likelihood(torch.tensor(1.2 * z - 0.5)).log_prob(DATA) for z in (0, 1)])
    evidence = -(given + prior.log().unsqueeze(-1)).logsumexp(0).sum()
    bound = TraceIWELBO("vimco", num_particles=5_000).loss(program.model, program.guide)
    assert bound == pytest.approx(float(evidence), abs=0.05)
    q = (program.a + program.both * DATA).sigmoid()
    reward = -((1 - q) * given[0] + q * given[1]).sum()
    for estimator in ("enumerate", "rloo"):
        found = TraceExpectation(estimator, num_particles=2 if estimator == "enumerate" else 5_000)
        assert found.loss(program.model, program.guide) == pytest.approx(float(reward), abs=0.05)


def test_a_factor_stays_in_log_q():
    def model():
        pyro.sample("z", dist.Bernoulli(0.4))

    def guide():
        z = pyro.sample("z", dist.Bernoulli(0.7))
        pyro.factor("w", 0.5 * z, has_rsample=False)

    q, p = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    expected = float((q * (q / p).log()).sum() + 0.5 * 0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TraceELBO("enumerate").loss(model, guide) == pytest.approx(expected, abs=1e-5)
        assert TraceELBO("rloo", num_particles=20_000).loss(model, guide) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("estimator", ["enumerate", "rloo"])
def test_one_warning_names_the_sites_and_the_parameters_left_alone(estimator):
    program = Program()
    elbo = TraceELBO(estimator, num_particles=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        elbo.loss(program.model, program.guide)
        for _ in range(3):
            elbo.loss_and_grads(program.model, program.guide)
    (text,) = (str(w.message) for w in told if "observes" in str(w.message))
    assert "'t'" in text
    assert "Trace_ELBO" in text
    assert "No other term reads" in text
    assert program.p.grad is None or program.p.grad == 0


def test_its_params_and_modules_are_named():
    reader = nn.Linear(1, 1)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("t", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide():
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("t", dist.Normal(reader(torch.ones(1))[0], scale), obs=torch.tensor(0.3))
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))

    with pytest.warns(UserWarning, match=r"No other term reads reader.bias, reader.weight, scale, which"):
        TraceELBO("enumerate").loss(model, guide)


def test_captured():
    program = Program()
    loss, slopes = program.exact()
    elbo = TraceELBO("enumerate", compile="graph")
    for _ in range(4):
        program.a.grad = program.both.grad = None
        assert elbo.loss_and_grads(program.model, program.guide) == pytest.approx(float(loss), rel=1e-5)
        assert torch.allclose(torch.stack([program.a.grad, program.both.grad]), slopes, atol=1e-5)
    assert elbo.captures is not None
    assert elbo.captures.count == 1


@pytest.mark.parametrize("estimator", ["auto", "enumerate", "rloo"])
def test_a_site_that_is_latent_in_the_model_is_no_match(estimator):
    def model():
        t = pyro.sample("t", dist.Bernoulli(0.3))
        pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * t))

    def guide():
        pyro.sample("t", dist.Bernoulli(0.6), obs=torch.tensor(1.0))
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(SiteMatchError, match="'t' is observed in the guide but latent in the model"):
        TraceELBO(estimator, num_particles=2).loss(model, guide)


def test_importance_weights_leave_it_out_too():
    """Of the exact posterior all weights are one, whatever density the guide has of the data."""
    x = torch.tensor([0.4, -0.2])

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("t", dist.Normal(z, 1.0), obs=x)

    def guide():
        odds = torch.tensor(0.4).logit() + dist.Normal(1.0, 1.0).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
        with pyro.plate("data", 2):
            pyro.sample("t", dist.Normal(0.0, 0.01), obs=x)
            pyro.sample("z", dist.Bernoulli(logits=odds))

    data = to_inference_data(model, guide, num_samples=20)
    assert data.posterior_predictive["t"].shape[-1] == 2
    given = torch.stack([dist.Normal(k, 1.0).log_prob(x) + math.log(p) for k, p in ((0.0, 0.6), (1.0, 0.4))])
    bound = TraceIWELBO("vimco", num_particles=2).loss(model, guide)
    assert bound == pytest.approx(-float(given.logsumexp(0).sum()), rel=1e-5)
    assert pareto_k(model, guide, num_samples=100) is not None
