"""optimal_control_variate: its coefficients are -Cov/Var, its variance 1 - rho^2 of what it was, its mean exact.

Fixed seeds. Tests of means alarm falsely with a probability of at most 4e-7 an entry (|z| < 5.5 would be 3.8e-8 for a
normal mean; ten times that for heavy tails), below 2e-5 together; the planted estimator is seen at |z| above 10.
"""

from __future__ import annotations

import copy
import itertools

import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import ControlVariate, OptimalControlVariate, TraceELBO
from pyro_discrete.control_variates.optimal_coefficient import least_variance
from pyro_discrete.errors import ParticleError, SettingError, SiteShapeError
from pyro_discrete.estimators.base import Draw
from pyro_discrete.families import Family
from pyro_discrete.testing import assert_contract, check_estimator, programs
from tests.support.single_site import estimates, exact, site_at, worst_z

ALARM = 5.5
LOGITS = torch.tensor([0.4, -1.1, 2.0], dtype=torch.float64)
WEIGHT = torch.tensor([0.3, 1.1, 1.9], dtype=torch.float64)


def reward(value):
    return 3.0 + ((value.double() * WEIGHT).sum(-1) - 1.3).square()


def _mean_count(logits):
    p = logits.sigmoid()
    return p * (1 - p + p.sum(-1, keepdim=True))


COUNT = ControlVariate(lambda z, logits: z * z.sum(-1, keepdim=True), _mean_count)
"""Each bit times the number of ones."""


def moments(centred):
    """By enumeration of eight values: E[c g] `[3, m]`, E[c c'] `[3, m, m]`, E[g^2] and E[g] `[3]`."""
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    p = LOGITS.sigmoid()
    q = (z * p + (1 - z) * (1 - p)).prod(-1, keepdim=True)
    g = reward(z).unsqueeze(-1) * (z - p)
    c = torch.stack(centred(z, p), -1)
    cross = (q.unsqueeze(-1) * c * g.unsqueeze(-1)).sum(0)
    gram = (q[..., None, None] * c.unsqueeze(-1) * c.unsqueeze(-2)).sum(0)
    return cross, gram, (q * g.square()).sum(0), (q * g).sum(0)


def _score_alone(z, p):
    return [z - p]


def _score_and_count(z, p):
    return [z - p, z * z.sum(-1, keepdim=True) - _mean_count(LOGITS)]


CASES = [
    pytest.param((), _score_alone, id="score"),
    pytest.param((COUNT,), _score_and_count, id="score and count"),
]


class UsesItsOwnDraw(OptimalControlVariate):
    """Planted: the averages take the draw in before the coefficient is read."""

    def coefficients(self, gradient, centred):
        super().coefficients(gradient, centred)
        return self.averages.coefficients(gradient.shape[2], centred.shape[1]).unsqueeze(0)


@pytest.mark.parametrize(("variates", "centred"), CASES)
def test_coefficients_and_variance_are_the_best_ones(variates, centred):
    torch.manual_seed(1)
    estimator = OptimalControlVariate(*variates, decay=0.99)
    estimates(estimator, LOGITS, Family.BERNOULLI, reward, 400_000, event=1, groups=400)
    cross, gram, square, mean = moments(centred)
    best = -torch.linalg.solve(gram, cross.unsqueeze(-1)).squeeze(-1)
    found = estimator.averages.coefficients(*best.shape)
    torch.testing.assert_close(found, best, rtol=0.05, atol=0.05)

    before = square - mean.square()
    unexplained = 1 + (cross * best).sum(-1) / before  # 1 - rho^2, rho the multiple correlation
    assert (unexplained < 0.35).all()
    gradients = estimates(estimator, LOGITS, Family.BERNOULLI, reward, 200_000, event=1)
    torch.testing.assert_close(gradients.var(0) / before, unexplained, rtol=0.03, atol=1e-4)


def test_more_control_variates_leave_less_variance():
    one, two = (moments(centred) for centred in (_score_alone, _score_and_count))

    def explained(m):
        return -(m[0] * least_variance(m[0], m[1])).sum(-1)

    assert (explained(two) > 0.999 * explained(one)).all()
    assert (explained(two) > 1.02 * explained(one)).any()


@pytest.mark.parametrize("estimate", ["running", "particles"])
@pytest.mark.parametrize("variates", [(), (COUNT,)], ids=["score", "score and count"])
def test_mean_is_exact_while_the_coefficient_moves(variates, estimate):
    """Five particles a step and a decay of one half: the coefficient is mostly the last step's noise."""
    torch.manual_seed(2)
    estimator = OptimalControlVariate(*variates, decay=0.5, estimate=estimate)
    found = estimates(estimator, LOGITS, Family.BERNOULLI, reward, 20_000, event=1, groups=4_000)
    steps = found.reshape(4_000, 5, 3).mean(1)
    assert worst_z(steps, exact(LOGITS, Family.BERNOULLI, reward, 1)) < ALARM


def test_a_coefficient_from_the_draw_that_it_multiplies_is_seen():
    torch.manual_seed(2)
    found = estimates(UsesItsOwnDraw(decay=0.5), LOGITS, Family.BERNOULLI, reward, 20_000, event=1, groups=4_000)
    steps = found.reshape(4_000, 5, 3).mean(1)
    assert worst_z(steps, exact(LOGITS, Family.BERNOULLI, reward, 1)) > 10


@pytest.mark.parametrize("per", ["element", "site"])
@pytest.mark.parametrize("family", [Family.CATEGORICAL, Family.ONE_HOT], ids=lambda f: f.name.lower())
def test_categories(family, per):
    torch.manual_seed(3)
    logits = torch.tensor([[0.5, -1.0, 0.2, 1.1], [0.0, 2.0, -0.7, 0.3]], dtype=torch.float64)
    marked = ControlVariate(lambda z, logits: logits.exp() + 2.0, lambda logits: logits.exp() + 2.0)

    def cost(value):
        flat = value.double().flatten(2)
        return (flat * torch.linspace(0.3, 1.9, flat.shape[-1])).sum(-1).square()

    estimator = OptimalControlVariate(marked, per=per, decay=0.9)
    found = estimates(estimator, logits, family, cost, 40_000, event=1, groups=200)
    assert worst_z(found, exact(logits, family, cost, 1)) < ALARM
    plain = estimates(OptimalControlVariate(marked, score=False), logits, family, cost, 40_000, event=1)
    assert found[10_000:].var(0).sum() < 0.9 * plain.var(0).sum()


@pytest.mark.parametrize("estimate", ["running", "particles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_and_exact_at_logits_of_50(dtype, estimate):
    """Each of two particles' bits forced in turn; the mean over them, weighted, is the exact gradient."""
    grid = torch.tensor([-50.0, -15.0, -4.0, 0.3, 8.0, 50.0], dtype=dtype)
    for logit in grid:
        total = torch.zeros(2, dtype=torch.float64)
        for bits in itertools.product([0.0, 1.0], repeat=2):
            estimator = OptimalControlVariate(estimate=estimate)
            for step in ((1.0, 0.0), bits):
                phi = logit.expand(2).clone().requires_grad_()
                site = site_at(phi, Family.BERNOULLI)
                site.fresh = torch.tensor(step, dtype=dtype).expand(1, 2)
                draw = estimator.draw(site)
                filled = Draw.replace(draw, log_q=site.log_mass(draw.value[0]))
                torch.as_tensor(estimator.surrogate(filled, 1.7 + 2.6 * draw.value).loss).sum().backward()
            assert phi.grad is not None
            assert phi.grad.isfinite().all()
            signs = 2 * torch.tensor(bits, dtype=torch.float64) - 1
            total += (signs * logit.double()).sigmoid().prod() * phi.grad.double()
        p = logit.double().sigmoid()
        slope = 2.6 * p * (-logit.double()).sigmoid()
        torch.testing.assert_close(total, slope.expand(2), rtol=1e-5, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.statistical
def test_a_control_variate_of_ones_own_keeps_the_contract():
    event = [p for p in programs() if p.name == "bernoulli_event"]
    report = check_estimator(
        OptimalControlVariate(COUNT, decay=0.5), programs=event, dtypes=(torch.float64,), false_alarm=1e-6
    )
    assert_contract(report)
    assert not report.refused


def test_without_averages_the_first_step_is_the_score_function():
    torch.manual_seed(4)
    found = estimates(OptimalControlVariate(), LOGITS, Family.BERNOULLI, reward, 100, event=1)
    torch.manual_seed(4)
    z = dist.Bernoulli(logits=LOGITS.expand(100, 3)).sample()
    torch.testing.assert_close(found, reward(z).unsqueeze(-1) * (z - LOGITS.sigmoid()))


def test_averages_are_saved_and_loaded():
    estimator = OptimalControlVariate(COUNT)
    estimates(estimator, LOGITS, Family.BERNOULLI, reward, 1_000, event=1, groups=5)
    other = OptimalControlVariate(COUNT)
    other.load_state_dict(estimator.state_dict())
    torch.testing.assert_close(other.averages.coefficients(3, 2), estimator.averages.coefficients(3, 2))
    assert copy.deepcopy(estimator).averages.coefficients(3, 2).abs().sum() > 0


def test_a_control_variate_that_never_moves_gets_no_coefficient():
    cross = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    gram = torch.diag(torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64))
    gram[0, 0] = 2.0
    assert least_variance(cross, gram)[:2].tolist() == pytest.approx([-0.5, 0.0], rel=1e-6)
    twice = torch.full((2, 2), 2.0, dtype=torch.float64)
    assert least_variance(torch.ones(2, dtype=torch.float64), twice).sum().item() == pytest.approx(-0.5, rel=1e-6)


@pytest.mark.parametrize(
    "settings", [{"score": False}, {"per": "bit"}, {"estimate": "own"}, {"decay": 1.0}, {"decay": 0.0}], ids=str
)
def test_settings_out_of_range(settings):
    with pytest.raises(SettingError, match="OptimalControlVariate"):
        OptimalControlVariate(**settings)


def test_what_is_no_control_variate_is_refused():
    with pytest.raises(SettingError, match="each a ControlVariate expected"):
        OptimalControlVariate(lambda z, logits: z)  # type: ignore[arg-type]


def test_a_control_variate_of_another_shape_is_refused():
    def ones(logits):
        return torch.ones(7, 5, 1)

    for h, mean, what in (
        (lambda z, logits: ones(logits), lambda logits: logits, "h"),
        (lambda z, _: z, ones, "the mean of h"),
    ):
        with pytest.raises(SiteShapeError, match=f"Variate: {what} has .* broadcasts to that of the logits"):
            estimates(OptimalControlVariate(ControlVariate(h, mean)), LOGITS, Family.BERNOULLI, reward, 5, event=1)


def test_a_mean_may_be_a_number():
    fair = torch.zeros(3)
    found = []
    for mean in (lambda logits: 0.5, lambda logits: torch.full_like(logits, 0.5)):
        torch.manual_seed(0)
        variate = OptimalControlVariate(ControlVariate(lambda z, logits: z, mean))
        found.append(estimates(variate, fair, Family.BERNOULLI, reward, 50, event=1))
    assert torch.equal(*found)


def test_other_particles_need_two():
    program = next(p for p in programs() if p.name == "one_bernoulli")
    with program.running() as pair, pytest.raises(ParticleError):
        TraceELBO(OptimalControlVariate(estimate="particles")).loss_and_grads(pair.model, pair.guide, *pair.args)
