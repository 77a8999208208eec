"""The antithetic estimators of bits: identities, exact means and variances, by sums over all that the draws can be.

Sampling is left to the contract and to the two tests of closed-form variances, each of whose comparisons alarms falsely
with a probability of 6e-7 (|z| of 5, under fixed seeds).
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import pyro_discrete.draws.couplings
import pyro_discrete.estimators.coupled.arm
import pyro_discrete.estimators.coupled.disarm
from pyro_discrete import ARM, ARMS, RLOO, BitFlip1, DisARM, available_estimators
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.coupled.antithetic import antithetic_pair
from tests.support.regions import (
    LOGITS,
    PHIS,
    Site,
    copula_regions,
    exact_of_bits,
    gradient,
    mean_and_variance,
    pair_regions,
    tangled,
)

EXTREMES = [*PHIS, 30.0, -30.0, 50.0, -50.0]
T = 0.499
D = 1 - 2 * T
LIMIT = 5.0


def f(b):
    """Case 1: one bit."""
    return (b - T).square()


def closed_form(name, phi):
    """The variances of case 1, and its gradient."""
    q, m = 1 / (1 + math.exp(abs(phi))), 1 / (1 + math.exp(-abs(phi)))
    mean = D * q * m
    return mean, {
        "arm": 2 * D**2 / 3 * (1 / 8 - (m - 0.5) ** 3) - mean**2,
        "disarm": D**2 * m**2 * q * (0.5 - q),
        "rloo": D**2 * q * m * (0.5 - q * m),
    }[name]


def scalar(phi):
    return torch.tensor([phi], dtype=torch.float64)


@pytest.mark.parametrize("phi", EXTREMES)
def test_disarm_has_the_mean_and_variance_of_the_closed_form(phi):
    found = mean_and_variance(DisARM(), scalar(phi), lambda b: f(b[..., 0]), [pair_regions(phi)])
    assert [x.item() for x in found] == pytest.approx(closed_form("disarm", phi), rel=1e-9, abs=1e-40)


@pytest.mark.parametrize("phi", PHIS)
def test_rloo_has_the_mean_and_variance_of_the_closed_form(phi):
    regions = [copula_regions(phi, 2, "independent")]
    found = mean_and_variance(ARMS(2, "independent"), scalar(phi), lambda b: f(b[..., 0]), regions)
    assert [x.item() for x in found] == pytest.approx(closed_form("rloo", phi), rel=1e-6)


def test_the_published_figures_of_case_1():
    figures = [closed_form(name, 1.0)[1] for name in ("arm", "disarm", "rloo")]
    assert figures == pytest.approx([1.458e-7, 1.328e-7, 2.386e-7], rel=5e-4)
    assert closed_form("arm", 1.0)[0] == pytest.approx(3.932e-4, rel=5e-4)


def noise_of_regions(phi):
    """Gauss-Legendre nodes in each region of the noise `[3, 5]`, as logistic values, and their weights.

    Between 0, r, 1 - r and 1 the pair does not change, and ARM is linear in u: three regions, exactly integrated.
    """
    r = 1 / (1 + math.exp(abs(phi)))
    x, w = (torch.tensor(a, dtype=torch.float64) for a in ([-(0.6**0.5), 0.0, 0.6**0.5], [5 / 9, 8 / 9, 5 / 9]))
    bounds = torch.tensor([[0, r], [r, 0.5], [0.5, 1 - r], [1 - r, 1]], dtype=torch.float64)
    middle, half = bounds.mean(1, keepdim=True), (bounds[:, 1:] - bounds[:, :1]) / 2
    below = middle[:2] + half[:2] * x  # u below one half, and the mirror image, so that no 1 - u is rounded
    e = below.log() - (-below).log1p()
    return torch.cat([e, -e]), torch.cat([half[:2] * w, half[:2] * w])


@pytest.mark.parametrize("phi", PHIS)
def test_arm_over_its_noise_is_disarm(phi, monkeypatch):
    """Region by region the mean of ARM is DisARM; over all of them it has the mean and variance of the closed form."""
    noise, weight = noise_of_regions(phi)
    for module in (pyro_discrete.estimators.coupled.arm, pyro_discrete.estimators.coupled.disarm):
        monkeypatch.setattr(module, "logistic_like", lambda like: noise.flatten())
    logits = torch.full((noise.numel(),), phi, dtype=torch.float64)
    found = []
    for estimator in (ARM(), DisARM()):
        draw = estimator.draw(Site(logits))
        found.append(gradient(estimator, draw.value, logits, f(draw.value), **draw.extra).reshape(noise.shape))
    arm, disarm = found
    # the two middle regions, where the pair agrees and ARM is zero as well, have no width at phi = 0
    wide = weight.sum(1) > 1e-12
    torch.testing.assert_close(
        ((arm * weight).sum(1) / weight.sum(1))[wide], disarm.mean(1)[wide], rtol=1e-9, atol=1e-18
    )
    for name, estimates in (("arm", arm), ("disarm", disarm)):
        mean = (estimates * weight).sum()
        variance = ((estimates - mean).square() * weight).sum()
        assert [mean.item(), variance.item()] == pytest.approx(closed_form(name, phi), rel=1e-6)


@pytest.mark.parametrize("phi", EXTREMES)
def test_disarm_is_arms_of_two_draws(phi):
    for bits in product((0.0, 1.0), repeat=2):
        value, cost = torch.tensor(bits, dtype=torch.float64).reshape(2, 1), torch.tensor([[1.7], [-0.6]]).double()
        two = [gradient(estimator, value, scalar(phi), cost) for estimator in (DisARM(), ARMS(2))]
        torch.testing.assert_close(two[0], two[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("phi", PHIS)
def test_two_draws_of_the_copula_are_the_antithetic_pair(phi, monkeypatch):
    torch.manual_seed(2)
    gumbel = torch.randn(2, 1000, dtype=torch.float64)
    monkeypatch.setattr(pyro_discrete.draws.couplings, "gumbel_like", lambda like: gumbel)
    logits = torch.full((1000,), phi, dtype=torch.float64)
    noise = (gumbel[0] - gumbel[1]) * (1 if phi > 0 else -1)
    assert ARMS(2).draw(Site(logits)).value.equal(antithetic_pair(logits, noise))


@pytest.mark.parametrize("particles", [2, 3, 5])
def test_rloo_is_arms_of_independent_draws(particles):
    torch.manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64)
    value = torch.rand(particles, 4, 3).round().double()
    cost = torch.randn(particles, 4, dtype=torch.float64)
    arms = gradient(ARMS(particles, "independent"), value.unsqueeze(1), logits[None], cost.unsqueeze(1), event_dim=1)
    rloo = gradient(RLOO(), value.unsqueeze(0), logits.expand(particles, 4, 3), cost.unsqueeze(0), event_dim=1)
    torch.testing.assert_close(arms[0], rloo.sum(0) / particles)


class Uncorrected(ARMS):
    """The planted error: dependent draws taken for independent ones."""

    def _correction(self, phi):
        return torch.ones_like(phi)


@pytest.mark.parametrize("logits", LOGITS, ids=str)
@pytest.mark.parametrize(
    ("draws", "copula"), [(2, "dirichlet"), (3, "dirichlet"), (4, "dirichlet"), (3, "independent")]
)
def test_arms_is_unbiased_by_an_exact_sum(draws, copula, logits):
    """Over every joint value of three bits in n coupled draws; without the correction it is wrong."""
    regions = [copula_regions(phi, draws, copula) for phi in logits.tolist()]
    exact = exact_of_bits(tangled, logits)
    mean, _ = mean_and_variance(ARMS(draws, copula), logits, tangled, regions)
    torch.testing.assert_close(mean, exact, rtol=1e-9, atol=1e-12)
    if copula == "dirichlet":
        mean, _ = mean_and_variance(Uncorrected(draws), logits, tangled, regions)
        assert ((mean - exact).abs() > 0.05 * exact.abs()).any()


@pytest.mark.parametrize("draws", [2, 3, 4])
@pytest.mark.parametrize("phi", [0.0, 1.0, -4.0])
def test_antithetic_draws_of_a_bit_beat_independent_ones(phi, draws):
    variances = [
        mean_and_variance(
            ARMS(draws, copula), scalar(phi), lambda b: f(b[..., 0]), [copula_regions(phi, draws, copula)]
        )[1].item()
        for copula in ("dirichlet", "independent")
    ]
    assert variances[0] < variances[1]


@pytest.mark.parametrize("phi", [0.0, -4.0])
@pytest.mark.parametrize("estimator", [DisARM(), ARMS(3)], ids=lambda e: e.name)
def test_three_bits_that_share_a_logit(estimator, phi):
    """Case 3: the gradients -0.045 at 0 and -0.003179 at -4."""
    rows = 2 if isinstance(estimator, DisARM) else estimator.draws
    regions = pair_regions(phi) if rows == 2 else copula_regions(phi, rows, "dirichlet")
    target = torch.tensor([0.6, 0.51, 0.48], dtype=torch.float64)
    logits = torch.full((3,), phi, dtype=torch.float64)
    mean, _ = mean_and_variance(estimator, logits, lambda b: (b - target).square().sum(-1), [regions] * 3)
    assert mean.sum().item() == pytest.approx({0.0: -0.045, -4.0: -0.003179}[phi], rel=2e-4)


@pytest.mark.statistical
def test_variances_of_case_1_as_drawn():
    """400,000 draws at phi = 1: the variance within five of its standard errors."""
    torch.manual_seed(0)
    logits = torch.ones(400_000, dtype=torch.float64)
    for name, estimator in {"arm": ARM(), "disarm": DisARM(), "rloo": ARMS(2, "independent")}.items():
        draw = estimator.draw(Site(logits))
        estimates = gradient(estimator, draw.value, logits, f(draw.value), **draw.extra)
        mean, variance = closed_form(name, 1.0)
        for samples, right in ((estimates, mean), ((estimates - mean).square(), variance)):
            z = (samples.mean() - right) / (samples.std() / math.sqrt(len(samples)))
            print(f"{name:8s} measured {samples.mean():.4e}  closed form {right:.4e}  z {z:.2f}")
            assert abs(z) < LIMIT


@pytest.mark.statistical
def test_variances_of_200_bits_as_drawn():
    """Case 2, all p = 1/2: (w / 4)^2 199 with disarm and 12.5 w^2 with rloo, where a bit changes f by w = D / 200."""
    torch.manual_seed(0)
    logits = torch.zeros(8_000, 200, dtype=torch.float64)
    w = D / 200
    cases = {"disarm": (DisARM(), (w / 4) ** 2 * 199), "rloo": (ARMS(2, "independent"), 12.5 * w**2)}
    for name, (estimator, right) in cases.items():
        draw = estimator.draw(Site(logits, event_dim=1))
        cost = f(draw.value).mean(-1)
        estimates = gradient(estimator, draw.value, logits, cost, event_dim=1)
        samples = (estimates - w / 4).square().mean(1)
        z = (samples.mean() - right) / (samples.std() / math.sqrt(len(samples)))
        print(f"{name:8s} measured {samples.mean():.4e}  closed form {right:.4e}  z {z:.2f}")
        assert abs(z) < LIMIT


@pytest.mark.parametrize("estimator", [DisARM(), ARM(), ARMS(), BitFlip1()], ids=lambda e: e.name)
def test_float32_agrees_with_float64_for_every_value_at_extreme_logits(estimator):
    """Whatever the bits, likely or not, at logits up to 50: finite, and right to rounding."""
    logits = torch.tensor(EXTREMES, dtype=torch.float64).repeat(64, 1)
    torch.manual_seed(3)
    rows = {"arms": 4, "bitflip1": 3}.get(estimator.name, 2)
    value = torch.rand(rows, *logits.shape).round().double()
    cost = torch.randint(-8, 8, (rows, 64), dtype=torch.float64)  # exact in both precisions
    extra = {"noise": torch.randn_like(logits)} if estimator.name == "arm" else {}
    wide = gradient(estimator, value, logits, cost, event_dim=1, **extra)
    narrow = gradient(
        estimator, value.float(), logits.float(), cost.float(), event_dim=1, **{k: v.float() for k, v in extra.items()}
    )
    assert narrow.isfinite().all()
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-5, atol=1e-20)


@pytest.mark.parametrize("wrong", [{"draws": 1}, {"copula": "gauss"}], ids=str)
def test_settings_out_of_range(wrong):
    with pytest.raises(SettingError, match="ARMS"):
        ARMS(**wrong)


def test_their_names_are_known():
    assert {"arm", "disarm", "arms", "bitflip1"} <= set(available_estimators())
