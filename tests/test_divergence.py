"""KL terms in closed form and annealed: the same mean, exactly, with less noise.

Means are exact (every joint value is forced on the draws), but for the contract's, which alarms falsely with a
probability of at most 1e-5.
"""

from __future__ import annotations

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.messenger import Messenger

from pyro_discrete import LinearDecay, TraceELBO
from pyro_discrete.dependencies import Dependencies
from pyro_discrete.diagnostics.exact import exact_gradient, exact_loss
from pyro_discrete.errors import SettingError
from pyro_discrete.testing import assert_contract, check_elbo, programs
from tests.support.forced import Forced, mean_gradient

DATA = torch.tensor(0.8, dtype=torch.float64)


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
    monkeypatch.setattr("pyro_discrete.switches.find_dependencies", lambda pair: Dependencies())
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
