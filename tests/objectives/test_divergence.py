"""KL terms in closed form, weighed and annealed: the same mean, exactly, with less noise.

Behind that, the same terms beside sites that the model sums out: exact answers, or one clear refusal.

Means of hard draws are exact (every joint value is forced on the draws), but for the contract's, which alarms falsely
with a probability of at most 1e-5. Those of relaxed draws are compared with quadrature, within five standard errors of
40 calls' mean: error probability below 2e-5 a number, 12 numbers, under fixed seeds.
"""

from __future__ import annotations

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import kl_divergence
from torch.nn.functional import logsigmoid

from pyro_discrete import GumbelSoftmax, LinearDecay, TraceELBO, TraceExpectation
from pyro_discrete.diagnostics.exact import exact_gradient, exact_loss
from pyro_discrete.draws.soft_scores import log_density
from pyro_discrete.errors import EnumerationError, SettingError
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.testing import assert_contract, check_elbo, programs
from tests.support.forced import Forced, mean_gradient

DATA = torch.tensor(0.8, dtype=torch.float64)
DOUBLE = torch.float64
DATUM = torch.tensor(1.1, dtype=DOUBLE)
TEMPERATURE, PRIOR_TEMPERATURE = 0.7, 0.5


class Layers:
    """Two layers of bits, the guide from b to a or from a to b, the prior of b depending on a."""

    def __init__(self, from_data: bool) -> None:
        self.phi = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
        self.from_data = from_data

    def model(self):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
        b = pyro.sample("b", dist.Bernoulli(logits=1.7 * a - 0.6))
        pyro.sample("x", dist.Normal(b - 0.5 * a, 0.8), obs=DATA)

    def guide(self):
        if self.from_data:
            b = pyro.sample("b", dist.Bernoulli(logits=self.phi[1]))
            pyro.sample("a", dist.Bernoulli(logits=self.phi[0] + self.phi[2] * b))
        else:
            a = pyro.sample("a", dist.Bernoulli(logits=self.phi[0]))
            pyro.sample("b", dist.Bernoulli(logits=self.phi[1] + self.phi[2] * a))


def exact(pair):
    return next(iter(exact_gradient(pair.model, pair.guide).values()))


@pytest.mark.parametrize("from_data", [False, True])
def test_layers_keep_the_exact_mean(from_data):
    """A prior that reads what the guide drew from its own site keeps its sampled term, and the plan says so."""
    pair = Layers(from_data)
    elbo = TraceELBO(Forced(), analytic_kl=True)
    found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
    assert torch.allclose(found, exact(pair), rtol=1e-9)
    assert str(elbo.plan).count("KL term in closed form") == (1 if from_data else 2)
    assert ("its prior depends on what the guide draws from it" in str(elbo.plan)) is from_data


def test_a_planted_closed_form_of_a_prior_that_reads_the_draw_is_seen(monkeypatch):
    pair = Layers(from_data=True)
    elbo = TraceELBO(Forced(), analytic_kl=True)
    monkeypatch.setattr(Dependencies, "known", True)
    monkeypatch.setattr("pyro_discrete.inspection.wiring.find_dependencies", lambda pair: Dependencies())
    monkeypatch.setattr(Dependencies, "fit", lambda *args: True)
    found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
    assert (found - exact(pair)).abs().max() > 1e-2


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["reinforce", "disarm", "rebar"])
def test_the_contract_holds_with_closed_forms(name):
    """Masks, scales, plates, continuous sites, integers; error probability 1e-5."""
    known = {p.name: p for p in programs()}
    chosen = ["masked_latent", "scaled", "continuous_upstream", "separate_branches"]
    chosen += ["subsampled", "words_feed_documents", "local_feeds_global", "mixed_chain"] if name == "reinforce" else []

    def make(particles, vectorize):
        return TraceELBO(name, num_particles=particles, vectorize_particles=vectorize, analytic_kl=True)

    report = check_elbo(
        make, name=name, programs=[known[n] for n in chosen], dtypes=(torch.float64,), draws=1600, false_alarm=1e-5
    )
    assert_contract(report)
    assert not report.refused or name == "disarm"


def test_noise_is_saved():
    """A site whose likelihood hardly depends on it: most of the noise is that of the KL term."""
    phi = torch.zeros(4, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Normal(torch.full((4,), 2.0), 0.5).to_event(1))
        c = pyro.sample("c", dist.Bernoulli(torch.full((4,), 0.1)).to_event(1))
        pyro.sample("x", dist.Normal(0.01 * (z.sum(-1) + c.sum(-1)), 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("z", dist.Normal(phi, 1.0).to_event(1))
        pyro.sample("c", dist.Bernoulli(logits=phi).to_event(1))

    def spread(closed):
        torch.manual_seed(0)
        elbo, samples = TraceELBO("reinforce", analytic_kl=closed), []
        for _ in range(100):
            phi.grad = None
            elbo.loss_and_grads(model, guide)
            samples.append(phi.grad.clone())
        return torch.stack(samples).var(0).sum().item()

    assert spread(True) < 2e-2 * spread(False)


@pytest.mark.parametrize("estimator", [Forced(), "enumerate"])
@pytest.mark.parametrize("closed", [False, True])
def test_annealing_weighs_the_terms_of_the_guides_sites_alone(estimator, closed):
    """Against the bound written out: likelihood and half of the KL terms; and `loss()` is the bound itself."""
    pair = Layers(from_data=False)

    class Halved(Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in ("a", "b"):
                msg["scale"] = msg["scale"] * 0.5

    expected = next(iter(exact_gradient(Halved()(pair.model), Halved()(pair.guide)).values()))
    elbo = TraceELBO(estimator, analytic_kl=closed, kl_weight=0.5)
    if estimator == "enumerate":
        elbo.loss_and_grads(pair.model, pair.guide)
        found = pair.phi.grad
        assert elbo.loss(pair.model, pair.guide) == pytest.approx(exact_loss(pair.model, pair.guide))
    else:
        found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_a_schedule_is_followed_step_by_step_and_saved():
    pair = Layers(from_data=False)
    elbo = TraceELBO("enumerate", kl_weight=LinearDecay(1.0, 0.5, steps=2))
    plain = TraceELBO("enumerate")
    bound = plain.loss_and_grads(pair.model, pair.guide)
    losses = [elbo.loss_and_grads(pair.model, pair.guide) for _ in range(4)]
    assert losses[0] == pytest.approx(bound)
    assert losses[0] > losses[1] > losses[2] == losses[3]
    assert elbo.loss(pair.model, pair.guide) == pytest.approx(bound)
    again = TraceELBO("enumerate", kl_weight=LinearDecay(1.0, 0.5, steps=2))
    again.load_state_dict(elbo.state_dict())
    assert again.loss_and_grads(pair.model, pair.guide) == losses[3]
    assert pickle.loads(pickle.dumps(elbo)).kl_weight(1).item() == 0.75


def test_functions_and_numbers_are_weights():
    pair = Layers(from_data=False)
    first, second = (TraceELBO("enumerate", kl_weight=w) for w in (lambda step: 0.25 * (step + 1), 0.25))
    assert first.loss_and_grads(pair.model, pair.guide) == second.loss_and_grads(pair.model, pair.guide)
    for wrong in (-1.0, float("inf"), "much"):
        with pytest.raises(SettingError, match="kl_weight"):
            TraceELBO(kl_weight=wrong)
    for wrong in (-1.0, float("inf"), float("nan")):
        late = TraceELBO("enumerate", kl_weight=lambda step, wrong=wrong: 1.0 if step == 0 else wrong)
        late.loss_and_grads(pair.model, pair.guide)
        with pytest.raises(SettingError, match=f"kl_weight: its schedule gave {wrong} at step 1"):
            late.loss_and_grads(pair.model, pair.guide)


# Weighed, closed or relaxed, beside sites that the model sums out


class Pair:
    """A bit of the guide beside a bit of the model alone, which is above it or below it; with a datum or without."""

    def __init__(self, above, observed=True):
        self.phi = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
        self.above, self.observed = above, observed

    def log_priors(self, y):
        """Logits of z, and of y, as functions of the other's value."""
        return 1.5 * y - 0.4 if self.above else torch.tensor(-0.4, dtype=DOUBLE)

    def model(self):
        if self.above:
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)))
            z = pyro.sample("z", dist.Bernoulli(logits=self.log_priors(y)))
        else:
            z = pyro.sample("z", dist.Bernoulli(logits=self.log_priors(None)))
            y = pyro.sample("y", dist.Bernoulli(logits=0.8 - 1.5 * z))
        if self.observed:
            pyro.sample("x", dist.Normal(z + 0.5 * y, 0.7), obs=DATUM)

    def guide(self):
        pyro.sample("z", dist.Bernoulli(logits=self.phi))

    def log_joint(self, z, y, log_p_z):
        """log p(y) + log p(x | z, y), and log p(z | y) by `log_p_z(its logit)`; `[...]` as z."""
        logit = math.log(0.3 / 0.7) * torch.ones_like(z) if self.above else 0.8 - 1.5 * z
        of_y = logsigmoid(logit if y else -logit)
        of_x = dist.Normal(z + 0.5 * y, 0.7).log_prob(DATUM)
        return of_y, of_x, log_p_z(self.log_priors(torch.tensor(float(y), dtype=DOUBLE)))

    def cost(self, z, log_q, log_p_z, weight=1.0):
        """Minus the objective at z `[...]`, the model's own bit summed out."""
        parts = [self.log_joint(z, y, log_p_z) for y in (0, 1)]
        if self.above:
            return weight * log_q - torch.stack([sum(part) for part in parts]).logsumexp(0)
        marginal = torch.stack([of_y + of_x for of_y, of_x, _ in parts]).logsumexp(0)
        return weight * (log_q - parts[0][2]) - marginal

    def exact(self, weight=1.0):
        """Its gradient, by the sum over both bits."""
        phi, total = self.phi.detach().clone().requires_grad_(), torch.zeros((), dtype=DOUBLE)
        for z in (0.0, 1.0):
            value, sign = torch.tensor(z, dtype=DOUBLE), 2 * z - 1
            log_q = logsigmoid(sign * phi)
            cost = self.cost(value, log_q, lambda logit, sign=sign: logsigmoid(sign * logit), weight)
            total = total + log_q.exp() * cost
        return torch.autograd.grad(total, phi)[0]

    def relaxed(self, weight=1.0):
        """Loss and gradient of the relaxed objective, with densities of relaxed bits, by quadrature."""
        phi = self.phi.detach().clone().requires_grad_()
        u = torch.linspace(-50, 50, 200_001, dtype=DOUBLE)
        log_q = log_density(u, phi.expand_as(u), TEMPERATURE, one_hot=False)

        def log_p_z(logit):
            return log_density(u, torch.as_tensor(logit).expand_as(u), PRIOR_TEMPERATURE, one_hot=False)

        total = torch.trapezoid(log_q.exp() * self.cost(u.sigmoid(), log_q, log_p_z, weight), u)
        return total.item(), torch.autograd.grad(total, phi)[0].item()


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("estimator", [Forced(), "enumerate"])
def test_weighed_and_closed_terms_above_a_site_that_is_summed_out(estimator, closed, weight):
    pair = Pair(above=False)
    elbo = TraceELBO(estimator, analytic_kl=closed, kl_weight=weight)
    if estimator == "enumerate":
        elbo.loss_and_grads(pair.model, pair.guide)
        found = pair.phi.grad
    else:
        found = mean_gradient(elbo, pair.model, pair.guide, ["z"], pair.phi)
        assert ("KL term in closed form" in str(elbo.plan)) is closed
    torch.testing.assert_close(found, pair.exact(weight), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("estimator", [Forced(), "enumerate"])
def test_a_prior_that_is_summed_out_is_not_closed_and_the_plan_says_so(estimator, closed):
    pair = Pair(above=True)
    elbo = TraceELBO(estimator, analytic_kl=closed)
    if estimator == "enumerate":
        elbo.loss_and_grads(pair.model, pair.guide)
        found = pair.phi.grad
    else:
        found = mean_gradient(elbo, pair.model, pair.guide, ["z"], pair.phi)
        reason = "KL term sampled (its prior depends on a site of the model alone, which is summed out)"
        assert (reason in str(elbo.plan)) is closed
    torch.testing.assert_close(found, pair.exact(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["reinforce", "enumerate", "disarm", "gumbel_softmax"])
def test_a_prior_that_is_summed_out_is_not_weighed(estimator):
    """The sum of a weighed and an unweighed log-probability is no marginal likelihood."""
    pair = Pair(above=True)
    with pytest.raises(EnumerationError, match=r"Sites 'y' of the model alone.*the scales of these differ.*kl_weight"):
        TraceELBO(estimator, kl_weight=0.5).loss_and_grads(pair.model, pair.guide)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize(
    ("kl", "closed"), [("analytic", False), ("analytic", True), ("linear", True)], ids=["analytic", "both", "closed"]
)
def test_analytic_divergences_of_relaxed_sites_are_weighed_exactly_draw_by_draw(kl, closed, weight):
    """Without a datum the objective is the weighed divergence alone: what is summed out below adds up to one."""
    pair = Pair(above=False, observed=False)
    elbo = TraceELBO(GumbelSoftmax(TEMPERATURE, kl=kl), num_particles=3, analytic_kl=closed, kl_weight=weight)
    loss = elbo.loss_and_grads(pair.model, pair.guide)
    q, p = dist.Bernoulli(logits=pair.phi), dist.Bernoulli(logits=torch.tensor(-0.4, dtype=DOUBLE))
    exact = weight * kl_divergence(q, p)
    assert loss == pytest.approx(exact.item())
    torch.testing.assert_close(pair.phi.grad, torch.autograd.grad(exact, pair.phi)[0])


@pytest.mark.statistical
@pytest.mark.parametrize(("above", "weight"), [(False, 1.0), (False, 0.5), (True, 1.0)])
def test_relaxed_densities_beside_a_site_that_is_summed_out(above, weight):
    """Loss and gradient of the relaxed objective, where the sum is over y given a relaxed z or z's own density."""
    pair, losses, gradients = Pair(above), [], []
    torch.manual_seed(0)
    estimator = GumbelSoftmax(TEMPERATURE, kl="relaxed", prior_temperature=PRIOR_TEMPERATURE)
    elbo = TraceELBO(estimator, num_particles=2_000, kl_weight=weight)
    for _ in range(40):
        pair.phi.grad = None
        losses.append(elbo.loss_and_grads(pair.model, pair.guide))
        gradients.append(pair.phi.grad.item())
    for found, exact in zip((losses, gradients), pair.relaxed(weight), strict=True):
        sample = torch.tensor(found, dtype=DOUBLE)
        assert abs(sample.mean().item() - exact) < 5 * sample.std().item() / math.sqrt(len(sample))


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_analytic_divergence_is_linear_where_the_prior_is_summed_out(vectorize):
    """Inside the logarithm of a sum the log-mass at the probabilities is no divergence."""
    found = []
    for kl in ("analytic", "linear"):
        pair = Pair(above=True)
        torch.manual_seed(0)
        elbo = TraceELBO(GumbelSoftmax(TEMPERATURE, kl=kl), num_particles=3, vectorize_particles=vectorize)
        found.append((elbo.loss_and_grads(pair.model, pair.guide), pair.phi.grad.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_two_divergences_are_one_too_many():
    pair = Pair(above=False)
    for spec, where in ((GumbelSoftmax(kl="relaxed"), ""), ({"z": GumbelSoftmax(kl="relaxed")}, "'z'.*")):
        with pytest.raises(SettingError, match=f"kl=relaxed.*{where}Leave out analytic_kl, or use kl='linear'"):
            TraceELBO(spec, analytic_kl=True).loss_and_grads(pair.model, pair.guide)
    guided = Pair(above=False)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("reward", -z)

    losses = [TraceExpectation(GumbelSoftmax(kl=kl)) for kl in ("relaxed", "linear")]
    found = []
    for elbo in losses:
        torch.manual_seed(0)
        found.append(elbo.loss_and_grads(model, guided.guide))
    assert found[0] == found[1]  # where no prior counts, nothing is scored twice
