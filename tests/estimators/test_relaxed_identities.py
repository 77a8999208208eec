"""MuProp, RELAX, double control variates and RODEO: what they are equal to, draw by draw, and their numerics."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import REBAR, RELAX, RLOO, RODEO, DoubleCV, Draw, MuProp, Reinforce, TraceELBO
from pyro_discrete.testing import Oracle, programs
from pyro_discrete.testing.extremes import bernoulli_extremes, compare_precisions, one_hot_extremes
from tests.support.relaxed_pairs import bent, bits

PROGRAMS = {p.name: p for p in programs()}


def name(program):
    return program.name


@pytest.mark.parametrize(
    ("estimator", "program"),
    [(DoubleCV, PROGRAMS[n]) for n in ("two_layers", "one_hot_event", "subsampled")]
    + [(RODEO, PROGRAMS[n]) for n in ("two_layers", "bernoulli_event", "subsampled")],
    ids=lambda x: x.name,
)
def test_control_variates_at_zero_are_leave_one_out(estimator, program):
    found = []
    for made in (RLOO(), estimator(learn=False)):
        with program.running() as pair:
            torch.manual_seed(3)
            elbo = TraceELBO(made, num_particles=4)
            for _ in range(3):
                elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
            found.append({name: p.grad for name, p in pair.parameters.items() if p.grad is not None})
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("program", [PROGRAMS[n] for n in ("two_layers", "one_hot_event", "one_categorical")], ids=name)
def test_relax_without_a_control_variate_is_the_score_function(program):
    """A black box whose network is at zero, where it starts: the surrogate's gradient, on the draws it made itself."""
    compared = []

    class Compared(RELAX):
        def surrogate(self, draw, cost):
            found, plain = super().surrogate(draw, cost), Reinforce().surrogate(draw, cost.detach())
            compared.append([gradients(surrogate.loss) for surrogate in (found, plain)])
            return found

    with program.running() as pair:

        def gradients(loss):
            leaves = list(pair.parameters.values())
            found = torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)
            return torch.cat([g.flatten() for g in found if g is not None])

        TraceELBO(Compared(black_box=True), num_particles=5).loss_and_grads(pair.model, pair.guide, *pair.args)
    assert compared
    for found, plain in compared:
        assert bool((plain != 0).any())
        torch.testing.assert_close(found, plain)


def linear(phi, one_hot):
    """A reward and a prior that are linear in the value."""

    def model():
        z = pyro.sample("z", dist.OneHotCategorical(torch.ones_like(phi)) if one_hot else bits(torch.zeros_like(phi)))
        pyro.factor("reward", 3.0 * z[..., 0] - 1.3 * z[..., 1] + 0.4 * z[..., 2])

    def guide():
        pyro.sample("z", dist.OneHotCategorical(logits=phi) if one_hot else bits(phi))

    return model, guide


@pytest.mark.parametrize("one_hot", [False, True], ids=["bits", "one-hot"])
@pytest.mark.parametrize(
    ("estimator", "particles"), [(MuProp(), 1), (DoubleCV(alpha=-1.0), 2)], ids=["muprop", "double_cv"]
)
def test_a_linear_cost_leaves_no_variance(estimator, particles, one_hot):
    phi = torch.tensor([0.4, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    pair = linear(phi, one_hot)
    exact, elbo = Oracle()(*pair).gradients["phi"], TraceELBO(estimator, num_particles=particles)
    for _ in range(10):
        phi.grad = None
        elbo.loss_and_grads(*pair)
        torch.testing.assert_close(phi.grad, exact, rtol=0, atol=1e-12)


def test_muprop_needs_its_baseline_on_two_hundredbits():
    """f = mean (b - .499)^2, p = .5, two draws: variance 1/128 at the first call, before there is a mean; then none."""
    phi = torch.zeros(200, dtype=torch.float64, requires_grad=True)

    def model():
        b = pyro.sample("b", bits(torch.zeros_like(phi)))
        pyro.factor("reward", -(b - 0.499).square().mean(-1))

    def guide():
        pyro.sample("b", bits(phi))

    elbo = TraceELBO("muprop", num_particles=2)
    elbo.loss_and_grads(model, guide)
    # a coordinate is -1/8, 0 or 1/8 with probability 1/4, 1/2, 1/4: 200 of them are within 5 standard errors of 1/128
    assert phi.grad.square().mean().item() == pytest.approx(1 / 128, abs=5 / 128 / math.sqrt(200))
    for _ in range(5):
        phi.grad = None
        elbo.loss_and_grads(model, guide)
        torch.testing.assert_close(phi.grad, torch.full_like(phi, 2.5e-6), rtol=1e-8, atol=1e-15)


def test_muprop_reads_its_mean_before_it_updates_it():
    """Each call's signal is centred by the residuals of the calls before it, its own left out."""
    estimator, residuals, centred = MuProp(decay=0.5), [], []
    for cost in (3.0, -1.0, 8.0):
        log_q = torch.zeros(1, requires_grad=True)
        draw = Draw(torch.tensor([[1.0], [0.4]]), log_q=log_q, slopes={1: torch.tensor([2.0])})
        estimator.surrogate(draw, torch.tensor([[cost], [0.5]])).loss.sum().backward()
        residuals.append(cost - 0.5 - 2 * 0.6)
        centred.append(log_q.grad.item())
    means = [0.0, residuals[0], (residuals[0] + 2 * residuals[1]) / 3]
    assert centred == pytest.approx([r - m for r, m in zip(residuals, means, strict=True)], rel=1e-6)


@pytest.mark.parametrize("program", [bernoulli_extremes, one_hot_extremes], ids=name)
@pytest.mark.parametrize("unlikely", [False, True], ids=["likely", "unlikely"])
@pytest.mark.parametrize(
    ("make", "particles"),
    [
        (lambda: RELAX(network=bent()), 1),
        (lambda: RELAX(black_box=True, network=bent()), 1),
        (lambda: DoubleCV(alpha=-1.0), 2),
        (lambda: RODEO(alpha=1.0, beta=1.0), 2),
    ],
    ids=["relax", "black box", "double_cv", "rodeo"],
)
def test_extreme_logits_away_from_the_start(make, particles, program, unlikely):
    """With a control variate that is not zero, float32 gradients at logits up to 50 are those of float64."""
    if not program.families <= make().families:
        return
    found = compare_precisions(lambda: TraceELBO(make(), num_particles=particles), program, unlikely=unlikely)
    print(found)
    assert found.finite
    assert found.skipped <= 0.2 * found.draws
    assert found.error < 10


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("make", [REBAR, RELAX, MuProp, DoubleCV, RODEO, lambda: REBAR(learn=False)])
def test_a_guide_without_parameters_is_no_error(make, vectorize):
    weight = torch.tensor(0.3, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(weight * z, 1.0), obs=torch.tensor(1.0))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=torch.tensor(2.0)))

    TraceELBO(make(), num_particles=50, vectorize_particles=vectorize).loss_and_grads(model, guide)
    assert weight.grad.item() < 0
