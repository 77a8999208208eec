"""CARMS and Coupled: exact means by sums over all binary decisions, identities with the estimators of bits."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import pyro_discrete.estimators.coupled.coupled
from pyro_discrete import ARMS, CARMS, RLOO, Coupled, DisARM, available_estimators
from pyro_discrete.draws.couplings import FACTORISATIONS, balanced_tree, stick_breaking
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.coupled.antithetic import disarm_weight
from pyro_discrete.families import Family
from tests.support.regions import PHIS, Site, copula_regions, exact_gradient, gradient, joint, moments, pair_regions

EXTREMES = [*PHIS, 30.0, -30.0, 50.0, -50.0]
LOGITS = [
    torch.tensor(x, dtype=torch.float64)
    for x in ([0.4, -1.2, 0.9, 0.0], [3.0, -4.0, -0.2, 1.0], [0.0, 0.0, 0.0, 0.0], [15.0, 0.0, -8.0, 2.0])
]
COSTS = torch.tensor([1.0, -0.7, 0.2, 2.5], dtype=torch.float64)


def exact(logits):
    return exact_gradient(lambda phi: phi.softmax(-1), logits, COSTS)


def decided(estimator, logits, regions):
    """Mean and variance of the gradient over all decisions with the given regions for each of them.

    Stick-breaking takes the categories from the least likely on, the tree as they come.
    """
    sticks = getattr(estimator, "factorisation", "stick_breaking") == "stick_breaking"
    order = logits.argsort(stable=True) if sticks else torch.arange(len(logits))
    tree = (stick_breaking if sticks else balanced_tree)(len(logits))
    alpha = tree.logits(logits[order]).tolist()

    def parts():
        for bits, probability in joint([regions(a) for a in alpha]):
            value = order[tree.category(bits)]
            found = gradient(estimator, value.unsqueeze(1), logits.unsqueeze(0), COSTS[value].unsqueeze(1))
            yield found[0], probability

    return moments(parts())


class Uncorrected(CARMS):
    """The planted error: dependent draws taken for independent ones."""

    def _ratio(self, log_pieces):
        return torch.ones_like(super()._ratio(log_pieces))


@pytest.mark.parametrize("logits", LOGITS, ids=lambda x: str(x.tolist()))
@pytest.mark.parametrize(("draws", "copula"), [(2, "dirichlet"), (3, "dirichlet"), (3, "independent")])
def test_carms_is_unbiased_by_an_exact_sum(draws, copula, logits):
    mean, _ = decided(CARMS(draws, copula), logits, lambda a: copula_regions(a, draws, copula))
    torch.testing.assert_close(mean, exact(logits), rtol=1e-9, atol=1e-12)
    if copula == "dirichlet" and logits.max() < 10:  # beyond, two draws hardly ever differ in more than one decision
        mean, _ = decided(Uncorrected(draws), logits, lambda a: copula_regions(a, draws, copula))
        assert ((mean - exact(logits)).abs() > 0.05 * exact(logits).abs()).any()


@pytest.mark.parametrize("logits", LOGITS, ids=lambda x: str(x.tolist()))
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_coupled_is_unbiased_by_an_exact_sum(factorisation, logits):
    mean, _ = decided(Coupled(factorisation), logits, pair_regions)
    torch.testing.assert_close(mean, exact(logits), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "wrong", [lambda pair, phi: 0.5 * (pair[0] - pair[1]), lambda pair, phi: -disarm_weight(pair, phi)]
)
def test_a_missing_factor_and_a_wrong_sign_are_seen(wrong, monkeypatch):
    monkeypatch.setattr(pyro_discrete.estimators.coupled.coupled, "disarm_weight", wrong)
    for factorisation in FACTORISATIONS:
        mean, _ = decided(Coupled(factorisation), LOGITS[0], pair_regions)
        assert ((mean - exact(LOGITS[0])).abs() > 0.05 * exact(LOGITS[0]).abs()).any()


@pytest.mark.parametrize("logits", LOGITS[:3], ids=lambda x: str(x.tolist()))
def test_dependence_makes_carms_and_coupled_less_noisy_than_rloo(logits):
    """On one variable with four categories, two draws each: the sum of the logits' variances."""
    rloo = decided(CARMS(2, "independent"), logits, lambda a: copula_regions(a, 2, "independent"))[1].sum()
    carms = decided(CARMS(2), logits, lambda a: copula_regions(a, 2, "dirichlet"))[1].sum()
    coupled = decided(Coupled(), logits, pair_regions)[1].sum()
    print(f"{logits.tolist()}: rloo {rloo:.4f}, carms {carms:.4f}, coupled {coupled:.4f}")
    assert carms < rloo
    assert coupled < rloo


@pytest.mark.parametrize("phi", EXTREMES)
@pytest.mark.parametrize(
    ("categorical", "binary", "rows"),
    [(CARMS(3), ARMS(3), 3), (CARMS(2), DisARM(), 2), (Coupled(), DisARM(), 2), (Coupled("tree"), DisARM(), 2)],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_two_categories_are_a_bit(categorical, binary, rows, phi):
    """The gradient on the second logit is that on the bit's, on the first one its opposite."""
    logits = torch.tensor([[0.0, phi]], dtype=torch.float64)
    cost = torch.tensor([[1.7], [-0.6], [0.2]], dtype=torch.float64)[:rows]
    for bits in product((0, 1), repeat=rows):
        value = torch.tensor(bits).unsqueeze(1)
        found = gradient(categorical, value, logits, cost)
        bit = gradient(binary, value.double(), logits[:, 1], cost)
        torch.testing.assert_close(found, torch.stack([-bit, bit], -1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("particles", [2, 3, 5])
def test_rloo_is_carms_of_independent_draws(particles):
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64)
    value, cost = torch.randint(4, (particles, 6)), torch.randn(particles, 6, dtype=torch.float64)
    carms = gradient(CARMS(particles, "independent"), value.unsqueeze(1), logits[None], cost.unsqueeze(1))
    rloo = gradient(RLOO(), value.unsqueeze(0), logits.expand(particles, 6, 4), cost.unsqueeze(0))
    torch.testing.assert_close(carms[0], rloo.sum(0) / particles)


@pytest.mark.parametrize("estimator", [CARMS(3), Coupled(), Coupled("tree")], ids=lambda e: type(e).__name__)
def test_one_hot_vectors_and_integers_are_alike(estimator):
    logits = torch.tensor([[0.4, -1.2, 0.9]], dtype=torch.float64).expand(50, 2, 3)
    draws = []
    for family, event_dim in ((Family.CATEGORICAL, 1), (Family.ONE_HOT, 2)):
        torch.manual_seed(0)
        draws.append(estimator.draw(Site(logits, family, event_dim)).value)
    integers, vectors = draws
    assert vectors.dtype == logits.dtype
    assert integers.dtype == torch.int64
    assert vectors.argmax(-1).equal(integers)
    cost = torch.randn(len(integers), 50, dtype=torch.float64)
    found = []
    for value, event_dim in ((integers, 1), (vectors, 2)):
        leaf = logits.clone().requires_grad_()
        draw = estimator.draw(Site(leaf, Family.CATEGORICAL, 1)).replace(value=value, event_dim=event_dim, logits=leaf)
        found.append(torch.autograd.grad(estimator.surrogate(draw, cost).loss.sum(), leaf)[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [CARMS(3), Coupled(), Coupled("tree")], ids=lambda e: type(e).__name__)
def test_every_row_is_a_draw_from_q(estimator):
    """Counts of 100,000 draws within five standard errors (probability of a false alarm below 2e-5 in all)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.4, -1.2, 0.9, 2.0], dtype=torch.float64)
    value = estimator.draw(Site(logits.expand(100_000, 4), Family.CATEGORICAL)).value
    for row in value:
        for category, p in enumerate(logits.softmax(-1).tolist()):
            z = ((row == category).double().mean().item() - p) / math.sqrt(p * (1 - p) / 100_000)
            assert abs(z) < 5


@pytest.mark.parametrize("estimator", [CARMS(3), CARMS(2), Coupled(), Coupled("tree")], ids=lambda e: type(e).__name__)
def test_float32_agrees_with_float64_for_every_value_at_extreme_logits(estimator):
    """Whatever the categories, likely or not, at logits up to 50: finite, and right to rounding of the largest one."""
    torch.manual_seed(3)
    logits = torch.tensor([[a, 0.0, b] for a in EXTREMES for b in (0.3, -4.0, 50.0)], dtype=torch.float64)
    rows = getattr(estimator, "draws", 2)
    for bits in product(range(3), repeat=rows):
        value = torch.tensor(bits).unsqueeze(1).expand(rows, len(logits))
        cost = torch.randint(-8, 8, value.shape).double()
        wide = gradient(estimator, value, logits, cost)
        narrow = gradient(estimator, value, logits.float(), cost.float())
        assert narrow.isfinite().all()
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [CARMS(3), Coupled(), Coupled("tree")], ids=lambda e: type(e).__name__)
def test_an_impossible_category_is_neither_drawn_nor_in_the_way(estimator):
    logits = torch.tensor([0.3, -torch.inf, 1.0, -torch.inf]).expand(500, 4)
    value = estimator.draw(Site(logits, Family.CATEGORICAL)).value
    assert set(value.flatten().tolist()) == {0, 2}
    found = gradient(estimator, value, logits, torch.randn(value.shape))
    assert found.isfinite().all()
    assert (found[:, [1, 3]] == 0).all()


@pytest.mark.parametrize("estimator", [CARMS(3), Coupled(), Coupled("tree")], ids=lambda e: type(e).__name__)
def test_a_single_category_has_no_gradient(estimator):
    logits = torch.full((5, 1), 0.7)
    value = estimator.draw(Site(logits, Family.CATEGORICAL)).value
    assert (value == 0).all()
    assert (gradient(estimator, value, logits, torch.randn(value.shape)) == 0).all()


@pytest.mark.parametrize("categories", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("factorisation", FACTORISATIONS)
def test_factorisations_reach_every_category_with_its_probability(factorisation, categories):
    tree = FACTORISATIONS[factorisation](categories)
    logits = torch.linspace(-1, 2, categories, dtype=torch.float64).cos()
    alpha = tree.logits(logits)
    live, bit = tree.path(torch.arange(categories))
    log_q = (torch.where(bit, alpha, -alpha).sigmoid().log() * live).sum(-1)
    torch.testing.assert_close(log_q, logits.log_softmax(-1))
    assert tree.category((bit & live).double()).tolist() == list(range(categories))


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [(CARMS, {"draws": 1}), (CARMS, {"copula": "gauss"}), (Coupled, {"factorisation": "oak"})],
    ids=str,
)
def test_settings_out_of_range(cls, wrong):
    with pytest.raises(SettingError, match=cls.__name__):
        cls(**wrong)


def test_their_names_are_known():
    assert {"carms", "coupled"} <= set(available_estimators())
