"""The expected reward: its exact gradient, by the sum over all joint values, whatever the reward is made of."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import LinearDecay, TraceExpectation
from pyro_discrete.errors import SettingError, SiteMatchError
from tests.support.forced import Forced, mean_gradient

TABLE = np.array([[0.3, -1.2], [2.0, 0.7]])


class Pair:
    """Two dependent bits and a reward from a table, by NumPy or by torch."""

    def __init__(self, reward: str = "numpy", in_model: tuple[str, ...] = ("a", "b")) -> None:
        self.phi = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
        self.reward, self.in_model = reward, in_model

    def model(self):
        draws = [pyro.sample(name, dist.Bernoulli(torch.tensor(0.1))) for name in self.in_model]
        if self.reward == "numpy":
            f = torch.as_tensor(TABLE[tuple(d.numpy().astype(int) for d in draws)])
        elif self.reward == "branch":
            f = torch.tensor(float(TABLE[1 if draws[0] > 0.5 else 0][int(draws[1])]))
        else:
            f = torch.as_tensor(TABLE)[tuple(d.long() for d in draws)]
        pyro.factor("reward", f)

    def guide(self):
        a = pyro.sample("a", dist.Bernoulli(logits=self.phi[0]))
        pyro.sample("b", dist.Bernoulli(logits=self.phi[1] + self.phi[2] * a))

    def exact(self, entropy_weight=0.0):
        """Minus the objective's gradient, from its definition."""
        phi = self.phi.detach().clone().requires_grad_()
        total = 0.0
        for a, b in itertools.product((0.0, 1.0), repeat=2):
            log_q = dist.Bernoulli(logits=phi[0]).log_prob(torch.tensor(a, dtype=phi.dtype))
            log_q = log_q + dist.Bernoulli(logits=phi[1] + phi[2] * a).log_prob(torch.tensor(b, dtype=phi.dtype))
            total = total + log_q.exp() * (TABLE[int(a), int(b)] - entropy_weight * log_q)
        (-total).backward()
        return phi.grad, total.item()


@pytest.mark.filterwarnings("ignore:.*row by row|.*cannot take a leading dim")
@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize("reward", ["numpy", "torch", "branch"])
def test_the_mean_is_the_exact_gradient(reward, entropy_weight):
    pair = Pair(reward)
    elbo = TraceExpectation(Forced(), entropy_weight=entropy_weight)
    found = mean_gradient(elbo, pair.model, pair.guide, ["a", "b"], pair.phi)
    assert torch.allclose(found, pair.exact(entropy_weight)[0], rtol=1e-6)
    assert str(elbo.plan).count("entropy in closed form") == (2 if entropy_weight else 0)


@pytest.mark.parametrize("reward", ["numpy", "torch"])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
def test_small_supports_are_summed_exactly(reward, entropy_weight):
    pair = Pair(reward)
    elbo = TraceExpectation(entropy_weight=entropy_weight)
    loss = elbo.loss_and_grads(pair.model, pair.guide)
    gradient, objective = pair.exact(entropy_weight)
    assert torch.allclose(pair.phi.grad, gradient, rtol=1e-6)
    assert loss == pytest.approx(-objective)
    assert elbo.plan.path == "enumerated"
    assert elbo.loss(pair.model, pair.guide) == pytest.approx(-pair.exact()[1])  # the reward alone


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["rloo", "disarm", "arms"])
def test_black_boxes_over_rows(name):
    """The mean over 20,000 particles, within five of its standard errors: error probability 2e-6 each entry."""
    pair = Pair("numpy")
    torch.manual_seed(0)
    elbo, samples = TraceExpectation(name, num_particles=200), []
    for _ in range(100):
        pair.phi.grad = None
        elbo.loss_and_grads(pair.model, pair.guide)
        samples.append(pair.phi.grad.clone())
    samples = torch.stack(samples)
    error = samples.std(0) / 10
    assert ((samples.mean(0) - pair.exact()[0]).abs() < 5 * error + 1e-9).all()
    assert elbo.plan.path == "vectorised"


def test_a_reward_that_takes_no_rows_is_evaluated_one_by_one_after_a_warning():
    pair = Pair("branch")
    elbo = TraceExpectation("disarm")
    with pytest.warns(UserWarning, match="cannot take a leading dim"):
        elbo.loss_and_grads(pair.model, pair.guide)
    assert elbo.plan.path == "sequential"


def test_observed_sites_are_rewards_and_priors_are_not():
    phi = torch.zeros(3, requires_grad=True)

    def model(prior):
        z = pyro.sample("z", dist.Categorical(logits=prior))
        pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.tensor(1.5))

    def guide(prior):
        pyro.sample("z", dist.Categorical(logits=phi))

    gradients = []
    for prior in (torch.zeros(3), torch.tensor([-50.0, 0.0, float("-inf")])):
        phi.grad = None
        TraceExpectation("enumerate").loss_and_grads(model, guide, prior)
        gradients.append(phi.grad.clone())
    probabilities = torch.zeros(3, requires_grad=True)
    log_p = dist.Normal(torch.arange(3.0), 1.0).log_prob(torch.tensor(1.5))
    (-(probabilities.softmax(-1) * log_p).sum()).backward()
    assert torch.allclose(gradients[0], probabilities.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_sites_of_the_guide_need_not_be_in_the_model_but_the_models_must_be_drawn():
    pair = Pair("torch")

    def longer(*args):
        a = pyro.sample("extra", dist.Bernoulli(logits=pair.phi[2]))
        pyro.sample("a", dist.Bernoulli(logits=pair.phi[0] * a))
        pyro.sample("b", dist.Bernoulli(logits=pair.phi[1]))

    for estimator in ("reinforce", "enumerate"):
        assert TraceExpectation(estimator).loss_and_grads(pair.model, longer) < 2

    def shorter(*args):
        pyro.sample("a", dist.Bernoulli(logits=pair.phi[0]))

    with pytest.raises(SiteMatchError, match="'b' is latent in the model but not drawn"):
        TraceExpectation().loss_and_grads(pair.model, shorter)


def test_an_estimator_that_differentiates_says_why_it_cannot():
    pair = Pair("numpy")
    with pytest.raises(SettingError, match="leaves torch"):
        TraceExpectation("rebar", num_particles=2).loss_and_grads(pair.model, pair.guide)


def test_the_entropy_may_follow_a_schedule():
    pair = Pair("torch")
    elbo = TraceExpectation("enumerate", entropy_weight=LinearDecay(1.0, 0.5, steps=1))
    first, second = (elbo.loss_and_grads(pair.model, pair.guide) for _ in range(2))
    assert first == pytest.approx(-pair.exact(1.0)[1])
    assert second == pytest.approx(-pair.exact(0.5)[1])
    with pytest.raises(SettingError, match="entropy_weight"):
        TraceExpectation(entropy_weight=-1.0)


def test_a_policy_is_learned():
    pair = Pair("numpy")
    optimiser = torch.optim.Adam([pair.phi], lr=0.1)
    elbo = TraceExpectation("rloo", num_particles=4)
    for _ in range(100):
        optimiser.zero_grad()
        elbo.loss_and_grads(pair.model, pair.guide)
        optimiser.step()
    assert -pair.exact()[1] < -1.9
