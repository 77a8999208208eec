"""indecater, sum_and_sample and unordered_set: sums over part of the support.

Fixed seeds. A test of means alarms falsely with a probability of at most 6e-7 (|z| < 5.5 in at most 8 entries of 50,000
draws each: 8 x 3.8e-8, doubled for skewness), a mixture's report with 1e-6, all of them together with less than 3e-5.
Planted wrong estimators are seen at |z| above 20.
"""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import IndeCateR, SumAndSample, TraceELBO, UnorderedSet
from pyro_discrete.draws.gumbel import log_completion
from pyro_discrete.errors import EnumerationError, SettingError, SharedTermsError
from pyro_discrete.estimators.base import Draw
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.families import Family
from pyro_discrete.testing import assert_contract, check_elbo, programs
from tests.support.single_site import estimates, exact, site_at, worst_z

ALARM = 5.5
DRAWS = 50_000
LOGITS = {
    Family.BERNOULLI: torch.tensor([0.4, -1.1, 2.0], dtype=torch.float64),
    Family.CATEGORICAL: torch.tensor([[0.5, -1.0, 0.2, 1.1], [0.0, 2.0, -0.7, 0.3]], dtype=torch.float64),
    Family.ONE_HOT: torch.tensor([[0.5, -1.0, 0.2, 1.1], [0.0, 2.0, -0.7, 0.3]], dtype=torch.float64),
}
ESTIMATORS = [
    IndeCateR(),
    SumAndSample(k=1),
    SumAndSample(k=3),
    SumAndSample(k=3, baseline=False),
    UnorderedSet(k=2),
    UnorderedSet(k=4),
    UnorderedSet(k=3, baseline=False),
]


def reward(value):
    """Not additive over the event's elements, and away from zero."""
    flat = value.double().flatten(2)
    weight = torch.linspace(0.3, 1.9, flat.shape[-1], dtype=torch.float64)
    return 3.0 + ((flat * weight).sum(-1) - 1.3).square()


class NoRatio(UnorderedSet):
    """Planted: draws without replacement weighted as if they were with it."""

    def weights(self, log_p, log_ratio):
        return torch.full_like(log_p, 1 / len(log_p))


class KeepsDrawnTerm(SumAndSample):
    """Planted: what is sampled is an ordinary draw, not one outside of the values that are summed."""

    def draw(self, site):
        draw = super().draw(site)
        return draw.replace(extra={**draw.extra, "is_v": torch.zeros_like(draw.extra["is_v"])})

    def surrogate(self, draw, cost):
        log_q = draw.extra["log_q"].transpose(0, 1)
        weight = log_q.detach().exp()
        weight[0] = 1 - weight[1:].sum(0)
        return super().surrogate(draw.replace(extra={**draw.extra, "weight": weight.transpose(0, 1)}), cost)


@pytest.mark.parametrize("family", LOGITS, ids=lambda f: f.name.lower())
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{e.name}({e.extra_repr()})")
def test_mean_is_the_exact_gradient(estimator, family):
    torch.manual_seed(1)
    found = estimates(estimator, LOGITS[family], family, reward, DRAWS, event=1)
    assert worst_z(found, exact(LOGITS[family], family, reward, 1)) < ALARM


@pytest.mark.parametrize("planted", [NoRatio(k=3), KeepsDrawnTerm(k=2)], ids=lambda e: type(e).__name__)
def test_planted_wrong_weights_are_seen(planted):
    torch.manual_seed(2)
    logits = LOGITS[Family.BERNOULLI]
    found = estimates(planted, logits, Family.BERNOULLI, reward, DRAWS, event=1)
    assert worst_z(found, exact(logits, Family.BERNOULLI, reward, 1)) > 20


@pytest.mark.parametrize(("logit", "gradient"), [(0.0, -0.0450), (-4.0, -0.003179)])
def test_three_bits_that_share_a_logit(logit, gradient):
    """Case 3: the published gradient, and no variance at k = 8, the full support."""
    target = torch.tensor([0.6, 0.51, 0.48], dtype=torch.float64)

    def cost(value):
        return (value - target).square().sum(-1)

    logits = torch.full((3,), logit, dtype=torch.float64)
    truth = exact(logits, Family.BERNOULLI, cost, 1).sum()
    assert truth.item() == pytest.approx(gradient, rel=2e-4)
    torch.manual_seed(3)
    spread = {}
    for k in (2, 4, 6, 8):
        found = estimates(UnorderedSet(k=k), logits, Family.BERNOULLI, cost, 20_000, event=1).sum(1)
        spread[k] = found.var().item()
        assert abs(found.mean() - truth) < ALARM * (found.std() / math.sqrt(len(found)) + 1e-13)
    assert spread[2] > spread[4] > spread[6] > 1e3 * spread[8]
    assert spread[8] < 1e-28
    torch.testing.assert_close(
        estimates(UnorderedSet(k=8), logits, Family.BERNOULLI, cost, 10, event=1).sum(1),
        truth.expand(10),
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("family", LOGITS, ids=lambda f: f.name.lower())
@pytest.mark.parametrize("estimator", [IndeCateR(), SumAndSample(k=3), SumAndSample(k=9), UnorderedSet(k=4)], ids=str)
def test_exact_for_one_element_with_all_its_values(estimator, family):
    logits = LOGITS[family][0]
    event = 0

    def cost(value):
        return reward(value.reshape(*value.shape[:2], -1))

    found = estimates(estimator, logits, family, cost, 50, event=event)
    truth = exact(logits, family, cost, event)
    torch.testing.assert_close(found, truth.expand_as(found), rtol=1e-12, atol=1e-12)


def test_sum_and_sample_is_exact_over_the_joint_support():
    for k in (7, 8, 100):
        found = estimates(SumAndSample(k=k), LOGITS[Family.BERNOULLI], Family.BERNOULLI, reward, 50, event=1)
        truth = exact(LOGITS[Family.BERNOULLI], Family.BERNOULLI, reward, 1)
        torch.testing.assert_close(found, truth.expand_as(found), rtol=1e-12, atol=1e-12)


def test_indecater_is_the_mean_of_the_score_function_given_the_others():
    """Rao-Blackwellisation: never above the variance of the score function, whatever constant the reward carries."""
    torch.manual_seed(4)
    variances = [
        estimates(e, LOGITS[Family.BERNOULLI], Family.BERNOULLI, reward, 20_000, event=1).var(0)
        for e in (IndeCateR(), Reinforce())
    ]
    assert (variances[0] < 0.2 * variances[1]).all()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_probability_of_an_unordered_set(k):
    """The sum over subsets is the sum over all k! orders, also where nearly all the mass is in the set."""
    logits = torch.tensor([0.5, 50.0, -3.0, 0.1, 9.0, -50.0], dtype=torch.float64)
    mass = (logits - logits.max()).exp()
    mass = mass / mass.sum()
    found = log_completion(mass[:k].log(), mass[k:].sum().log())
    for subset in range(2**k):
        gone = [i for i in range(k) if subset >> i & 1]
        rest = [i for i in range(k) if i not in gone]
        total = 0.0
        for order in itertools.permutations(rest):
            probability, left = 1.0, [i for i in range(6) if i not in gone]
            for i in order:
                probability *= mass[i].item() / sum(mass[j].item() for j in left)
                left.remove(i)
            total += probability
        assert found[subset].item() == pytest.approx(math.log(total), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{e.name}({e.extra_repr()})")
def test_finite_at_logits_of_50(estimator, dtype):
    """Three bits at all 27 combinations of logits -50, 0.3 and 50, every first draw forced in turn."""
    grid = torch.tensor(list(itertools.product([-50.0, 0.3, 50.0], repeat=3)), dtype=dtype)
    for first in itertools.product([0.0, 1.0], repeat=3):
        phi = grid.clone().requires_grad_()
        site = site_at(phi, Family.BERNOULLI, 1)
        site.fresh = torch.tensor(first, dtype=dtype).expand(1, 27, 3)
        draw = estimator.draw(site)
        filled = Draw.replace(draw, log_q=site.log_mass(draw.value[0]), event_dim=1)
        torch.as_tensor(estimator.surrogate(filled, reward(draw.value).to(dtype)).loss).sum().backward()
        assert phi.grad is not None
        assert phi.grad.dtype == dtype
        assert phi.grad.isfinite().all()
        assert phi.grad.abs().max() < 100


@pytest.mark.parametrize("estimator", [IndeCateR(), SumAndSample(k=2), SumAndSample(k=9), UnorderedSet(k=3)], ids=str)
def test_impossible_values_change_nothing(estimator):
    """A category of probability zero, whose cost is infinite."""
    logits = torch.tensor([0.5, -math.inf, 1.2, -math.inf], dtype=torch.float64)

    def cost(value):
        return torch.where(value % 2 == 1, math.inf, value.double())

    torch.manual_seed(5)
    found = estimates(estimator, logits, Family.CATEGORICAL, cost, 500)
    odds = torch.tensor(0.7, dtype=torch.float64).sigmoid()
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 2].mean(), 2 * odds * (1 - odds), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IndeCateR(max_rows=1),
        lambda: SumAndSample(k=0),
        lambda: SumAndSample(max_support=0),
        lambda: UnorderedSet(k=1),
        lambda: UnorderedSet(k=13),
        lambda: UnorderedSet(max_support=0),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(SettingError, match="given,"):
        make()


@pytest.mark.parametrize(
    ("estimator", "size"),
    [(IndeCateR(max_rows=30), "41"), (SumAndSample(), "1.1e\\+12"), (UnorderedSet(), "1.1e\\+12")],
)
def test_too_many_values_are_refused_by_number(estimator, size):
    def model():
        pyro.sample("bits", dist.Bernoulli(torch.full((40,), 0.5)).to_event(1))

    with pytest.raises(EnumerationError, match=f"(?s)(bits.*{size}|{size}.*bits)"):
        TraceELBO(estimator).loss_and_grads(model, model)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "by_site"),
    [
        ("two_layers", {"z1": "indecater", "z2": "unordered_set"}),
        ("two_layers", {"z1": "unordered_set", "z2": "sum_and_sample"}),
        ("two_layers", {"z1": "rloo", "z2": "indecater"}),
        ("mixed_chain", {"a": "sum_and_sample", "b": "unordered_set", "c": "reinforce"}),
        ("mixed_chain", {"a": "optimal_control_variate", "b": "indecater", "c": "sum_and_sample"}),
        ("nested_plates", {"topic": "unordered_set", "word": "indecater"}),
        ("subsampled", {"g": "rloo", "z": "unordered_set"}),
        ("masked_distributions", {"a": "unordered_set", "b": "sum_and_sample"}),
        ("not_reparameterised", {"z": "unordered_set", "y": "rloo"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x.values()),
)
def test_a_mixture_of_estimators(name, by_site):
    """Layers of them and beside others; each report alarms falsely with a probability of at most 1e-6."""

    def make(particles, vectorize):
        return TraceELBO(by_site, num_particles=particles, vectorize_particles=vectorize)

    program = next(p for p in programs() if p.name == name)
    report = check_elbo(
        make, name="mixture", min_particles=2, programs=[program], dtypes=(torch.float64,), false_alarm=1e-6
    )
    assert_contract(report)
    assert not report.refused


@pytest.mark.parametrize("made", [IndeCateR, SumAndSample, UnorderedSet])
def test_elements_of_a_plate_that_share_a_term_are_refused_beyond_the_budget(made):
    program = next(p for p in programs() if p.name == "local_feeds_global")
    with program.running() as pair, pytest.raises(SharedTermsError, match="'z'"):
        TraceELBO({"z": made(max_rows=2), "*": "reinforce"}).loss_and_grads(pair.model, pair.guide, *pair.args)
