"""Every estimator in the package is held to its declarations; planted wrong ones are seen to be wrong.

The statistical tests that use the oracle (here, in test_coupled_rows, _planted_errors and _against_pyro, and the
doctest of pyro_discrete.testing) together alarm falsely with a probability below 1e-4 per run, under fixed seeds. This
file has half of it: each report is made for `SHARE`, which it spreads over its comparisons (see
`pyro_discrete.testing.contract.decide`).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import RODEO, Enumerate, GumbelSoftmax, Reinforce, ReinMax, TraceELBO
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate
from pyro_discrete.families import RELAXABLE, Family
from pyro_discrete.testing import (
    Oracle,
    Report,
    assert_contract,
    check_elbo,
    check_estimator,
    compare_precisions,
    count_programs,
    discover_estimators,
    programs,
)
from pyro_discrete.testing.extremes import extreme_programs, forced_expectation

ALL = programs()
FOUND = [cls for cls in discover_estimators() if not cls.importance_weighted]  # those are test_bound_gradients'
CASES = [(cls, number) for cls in FOUND for number in range(len(cls.variants()))]
NAMES = [f"{cls.name}-{number}" for cls, number in CASES]
COUNTED = [Reinforce(), GumbelSoftmax(), GumbelSoftmax(kl="analytic"), ReinMax()]
"""What is held to the contract on counts: the score function, and relaxations of truncated supports."""
SHARE = 5e-5 / (len(CASES) + 1 + len(COUNTED))

# What enumeration cannot do: a table of joint values needs a structure that does not depend on them.
REFUSED = {"enumerate": {"control_flow"}}


BY_PAIRS = {RODEO: {"draws": 4_096, "batch": 64}}
"""Estimators that take each pair of particles, and the calls that see as small a bias in less time."""
NARROW = {(RODEO, 0): RODEO(hidden=10)}
"""Variants whose network is one of few units here."""


def draws_plainly(estimator):
    """Whether its draw is the distribution's own sample, one hard row."""
    return type(estimator).draw is Estimator.draw


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("cls", "number"), CASES, ids=NAMES)
def test_estimator_keeps_its_contract(cls, number):
    estimator = NARROW.get((cls, number), cls.variants()[number])
    dtypes = (torch.float64, torch.float32) if number == 0 else (torch.float64,)
    draws = BY_PAIRS.get(cls, {"draws": 3_200 if estimator.unbiased else 800})  # bias shows soon
    chosen = ALL if estimator.unbiased or number == 0 else ALL[number % 3 :: 3]
    report = check_estimator(estimator, programs=chosen, dtypes=dtypes, false_alarm=SHARE, seed=100 * number, **draws)
    print(report)
    assert_contract(report)
    assert {reason.split(":")[0] for reason in report.refused} <= REFUSED.get(cls.name, set())


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", COUNTED, ids=repr)
def test_counts_keep_the_contract(estimator):
    """Poisson, geometric, negative binomial, binomial and multinomial sites; relaxed ones are seen to be biased."""
    draws = 3_200 if estimator.unbiased else 1_600
    report = check_estimator(
        estimator, programs=count_programs(), dtypes=(torch.float64,), draws=draws, false_alarm=SHARE
    )
    print(report)
    assert_contract(report)
    assert not report.refused
    assert set(report.by_program()) == {p.name for p in count_programs()}


class Clipped(Reinforce):
    """The score function of draws that end at two, where the distribution does not."""

    def draw(self, site):
        value = site.sample()
        return Draw((value.clamp(max=2) if site.family is Family.COUNT else value).unsqueeze(0))


class ClaimsNoBias(GumbelSoftmax):
    """A relaxation that is declared unbiased."""

    unbiased = True


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [Clipped(), ClaimsNoBias()], ids=lambda e: type(e).__name__)
def test_planted_errors_on_counts_fail(estimator):
    chosen = [p for p in count_programs() if p.name in ("one_poisson", "categorical_over_poisson")]
    report = check_estimator(estimator, programs=chosen, dtypes=(torch.float64,), draws=1_600, false_alarm=SHARE)
    with pytest.raises(AssertionError, match="one_poisson"):
        assert_contract(report)


@pytest.mark.statistical
@pytest.mark.slow
def test_auto_keeps_the_contract():
    def make(particles, vectorize):
        return TraceELBO("auto", num_particles=particles, vectorize_particles=vectorize)

    report = check_elbo(make, name="auto", false_alarm=SHARE, dtypes=(torch.float64,))
    print(report)
    assert_contract(report)
    assert not report.refused


@pytest.mark.parametrize("unlikely", [False, True], ids=["likely", "unlikely"])
@pytest.mark.parametrize(("cls", "number"), CASES, ids=NAMES)
def test_extreme_logits(cls, number, unlikely):
    """Logits up to 50: float32 gradients are those of float64 under the same noise, draw by draw, to rounding."""
    estimator = cls.variants()[number]
    for program in extreme_programs():
        if not program.families <= estimator.families or (estimator.relaxed and not program.relaxable):
            continue
        found = compare_precisions(
            lambda: TraceELBO(cls.variants()[number], num_particles=estimator.min_particles),
            program,
            calls=12,
            unlikely=unlikely,
        )
        print(found)
        assert found.finite
        assert found.skipped <= 0.2 * found.draws
        assert found.error < 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("cls", "number"), CASES, ids=NAMES)
def test_mean_over_all_draws_at_extreme_logits(cls, number, dtype):
    """The mean over every joint draw of a bit, at logits up to 50, is the exact gradient to rounding."""
    estimator = cls.variants()[number]
    if not estimator.unbiased or not draws_plainly(estimator) or Family.BERNOULLI not in estimator.families:
        return

    def make():
        return TraceELBO(cls.variants()[number], num_particles=estimator.min_particles)

    mean, exact = forced_expectation(make, estimator.min_particles, dtype)
    assert (mean - exact).abs().max().item() <= 10 * torch.finfo(dtype).eps


def test_all_programs_compute_alike_in_both_dtypes():
    """One assignment's loss in float32 is that in float64, so both are tests of the same exact answer."""
    for program in ALL:
        with program.running(torch.float32) as pair:
            narrow = Oracle(nodes=program.nodes)(pair.model, pair.guide, *pair.args)
        assert narrow.loss == pytest.approx(program.exact.loss, rel=1e-5)


PAIRED = [
    pytest.param(cls, number, p, id=f"{cls.name}-{number}-{p.name}")
    for cls, number in CASES
    for p in ALL
    if p.name in ("one_bernoulli", "one_hot_event", "subsampled") and p.families <= cls.variants()[number].families
]


@pytest.mark.parametrize(("cls", "number", "program"), PAIRED)
def test_differentiable_loss_has_the_same_gradient(cls, number, program):
    """Two ELBOs under one seed: `differentiable_loss(...).backward()` leaves what `loss_and_grads` does."""
    least = cls.variants()[number].min_particles
    with program.running() as pair:
        found = []
        for differentiable in (False, True):
            torch.manual_seed(4)
            elbo = TraceELBO(cls.variants()[number], num_particles=least)
            for _ in range(3):
                for parameter in pair.parameters.values():
                    parameter.grad = None
                if differentiable:
                    elbo.differentiable_loss(pair.model, pair.guide, *pair.args).backward()
                else:
                    elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
            found.append({name: p.grad for name, p in pair.parameters.items() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(("cls", "number", "program"), PAIRED)
def test_loss_agrees_with_loss_and_grads_under_one_seed(cls, number, program):
    """Estimators of one hard row report the very loss that they optimise."""
    estimator = cls.variants()[number]
    if not draws_plainly(estimator) and not isinstance(estimator, Enumerate):
        return
    with program.running() as pair:
        elbo = TraceELBO(estimator, num_particles=estimator.min_particles)
        elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
        torch.manual_seed(4)
        loss = elbo.loss(pair.model, pair.guide, *pair.args)
        torch.manual_seed(4)
        assert elbo.loss_and_grads(pair.model, pair.guide, *pair.args) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("event", [False, True], ids=["plate", "event"])
def test_enumerate_sums_out_what_only_the_model_has(event):
    phi, weight = (torch.tensor(v, requires_grad=True) for v in (0.4, [0.3, 0.9]))

    def model():
        p = pyro.sample("p", dist.Bernoulli(0.4))
        if event:
            z = pyro.sample("z", dist.Bernoulli(logits=weight).to_event(1), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z.sum(-1) + p, 0.7), obs=torch.tensor(1.3))
            return
        with pyro.plate("data", 6, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Categorical(logits=weight), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(weight[z] + p, 0.7), obs=torch.tensor([0.5, -1.2, 2.0]))

    def guide():
        pyro.sample("p", dist.Bernoulli(logits=phi))

    exact = Oracle()(model, guide)
    assert TraceELBO("enumerate").loss_and_grads(model, guide) == pytest.approx(exact.loss, rel=1e-5)
    torch.testing.assert_close(phi.grad.double(), exact.gradients["phi"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), exact.gradients["weight"], rtol=1e-5, atol=1e-5)


def test_a_draw_arrives_complete():
    """What `surrogate` finds in a draw: what `draw` put there, and log q, event dims and the subsampling scale."""
    seen = []

    class Looks(Estimator):
        name, summary, reference = "looks", "keeps the draw", "none"

        def draw(self, site):
            return Draw(site.sample().unsqueeze(0), logits=site.logits)

        def surrogate(self, draw, cost):
            seen.append((draw, cost))
            return Surrogate(draw.score * cost[0].detach())

    program = next(p for p in ALL if p.name == "ragged_subsample")
    with program.running() as pair:
        TraceELBO(Looks(), num_particles=3).loss_and_grads(pair.model, pair.guide, *pair.args)
    draw, cost = seen[-1]
    assert draw.value.shape == (1, 3, 2, 2)
    assert cost.shape == (1, 3, 2)
    assert draw.score.shape == (3, 2)
    assert draw.logits is not None
    assert draw.logits.shape == (3, 2, 2)
    assert draw.logits.requires_grad
    assert draw.event_dim == 1
    assert draw.scale == pytest.approx(2.5)


def test_the_package_has_estimators_of_each_kind():
    found = discover_estimators()
    assert {"enumerate", "reinforce", "nvil", "rloo", "gumbel_softmax", "straight_through_gumbel_softmax"} <= {
        cls.name for cls in found
    }
    assert any(cls().relaxed for cls in found)


def test_the_programs_cover_what_they_should():
    families = frozenset().union(*(p.families for p in ALL))
    assert {Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT, Family.CONTINUOUS} <= families
    assert len({p.name for p in ALL}) == len(ALL) >= 28
    assert all(p.exact.assignments <= 2000 for p in ALL)
    assert all(p.relaxable for p in ALL if p.families <= RELAXABLE and p.vectorizable)


def test_a_report_without_programs_fails():
    with pytest.raises(AssertionError, match="no program was run"):
        assert_contract(Report("nothing", True, [], 5.0))
