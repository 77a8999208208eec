"""Temperatures that change with the step: what they are, where they go, and that they are saved."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    REBAR,
    RELAX,
    CosineDecay,
    DecoupledStraightThrough,
    ExponentialDecay,
    GappedStraightThrough,
    GumbelSoftmax,
    LearnedTemperature,
    LinearDecay,
    PiecewiseConstant,
    PiecewiseLinear,
    ReinMax,
    StepDecay,
    TraceELBO,
)
from pyro_discrete.draws.schedules import temperature_at
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

SCHEDULES = {
    "exponential": (ExponentialDecay(1.0, 0.5, rate=0.01), lambda n: max(0.5, math.exp(-0.01 * n))),
    "held": (ExponentialDecay(2.0, 0.1, rate=0.01, every=7), lambda n: max(0.1, 2 * math.exp(-0.01 * (n // 7 * 7)))),
    "linear": (LinearDecay(1.0, 0.2, steps=40), lambda n: max(0.2, 1 - 0.02 * n)),
    "cosine": (CosineDecay(1.0, 0.2, steps=40), lambda n: 0.6 + 0.4 * math.cos(math.pi * min(n / 40, 1))),
    "step": (StepDecay(1.0, factor=0.7, every=25, end=0.3), lambda n: max(0.3, 0.7 ** (n // 25))),
    "constant pieces": (
        PiecewiseConstant([1.0, 0.6, 0.2], [10, 30]),
        lambda n: 1.0 if n < 10 else 0.6 if n < 30 else 0.2,
    ),
    "linear pieces": (
        PiecewiseLinear([1.0, 0.6, 0.2], [10, 20, 60]),
        lambda n: 1.0 if n < 10 else 1 - 0.04 * (n - 10) if n < 20 else max(0.2, 0.6 - 0.01 * (n - 20)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_values_are_those_of_the_formula_after_a_pickle_too(name):
    schedule, formula = SCHEDULES[name]
    for made in (schedule, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        for step in (0, 6, 7, 10, 19, 25, 30, 39, 40, 1000):
            assert made(torch.tensor(step)).item() == pytest.approx(formula(step), rel=1e-12)
            assert made(step).item() == pytest.approx(formula(step), rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_value_depends_on_the_step_as_a_tensor(name):
    """Traced at one step, it is right at others: nothing is frozen."""
    schedule, formula = SCHEDULES[name]
    traced = torch.fx.experimental.proxy_tensor.make_fx(schedule)(torch.tensor(3))
    for step in (0, 15, 33, 500):
        assert traced(torch.tensor(step)).item() == pytest.approx(formula(step), rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearDecay(1.0, 0.0, steps=10),
        lambda: ExponentialDecay(-1.0, 0.5, rate=0.1),
        lambda: StepDecay(1.0, factor=float("inf"), every=2, end=0.1),
        lambda: PiecewiseConstant([1.0, 0.5], [10, 20]),
        lambda: PiecewiseLinear([1.0, 0.5, 0.1], [10, 5, 20]),
        lambda: LearnedTemperature(0.0),
        lambda: ReinMax(LearnedTemperature(1.0)),
        lambda: GappedStraightThrough(gap=LearnedTemperature(1.0)),
        lambda: GappedStraightThrough(gap="wide"),  # type: ignore[arg-type]
        lambda: DecoupledStraightThrough(forward_temperature=LearnedTemperature(1.0)),
        lambda: GumbelSoftmax("cold"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(SettingError, match="given"):
        make()


WEIGHT = torch.tensor([0.3, -1.1, 0.8])


def model():
    with pyro.plate("items", 4):
        z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(4, 3)))
        b = pyro.sample("b", dist.Bernoulli(torch.full((4,), 0.3)))
        pyro.sample("x", dist.Normal((z * WEIGHT).sum(-1) + b, 0.5), obs=torch.tensor([0.1, -0.7, 0.9, 1.4]))


def guide():
    with pyro.plate("items", 4):
        pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("z_logits", torch.randn(4, 3))))
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_logits", torch.randn(4))))


class Seen(RelaxedEstimator):
    """Keeps the temperatures that it is given."""

    name, summary, reference = "seen", "keeps temperatures", "none"

    def __init__(self, temperature):
        super().__init__(temperature, hard=False)
        self.seen = []

    def weights(self, logits, step, one_hot):
        self.seen.append(float(temperature_at(self.temperature, step)))
        return logits.softmax(-1) if one_hot else logits.sigmoid()


def test_the_elbo_counts_the_steps_and_each_site_has_its_own_schedule():
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO({"z": Seen(LinearDecay(1.0, 0.5, steps=10)), "b": Seen(lambda step: 2.0 / (step + 1))})
    for _ in range(4):
        elbo.loss_and_grads(model, guide)
        elbo.loss(model, guide)  # no step
    seen = {name: [t for i, t in enumerate(e.seen) if i % 2 == 0] for name, e in elbo.estimators.items()}
    assert seen["z"] == pytest.approx([1.0, 0.95, 0.9, 0.85])
    assert seen["b"] == pytest.approx([2.0, 1.0, 2 / 3, 0.5])
    assert "temperature=LinearDecay(start=1, end=0.5, steps=10)" in str(elbo.plan)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_schedule_gives_the_gradients_of_its_values(particles):
    """Step by step the gradients are those of constant temperatures, with a site's own choice in the program too."""
    schedule, found = LinearDecay(1.0, 0.2, steps=4), []
    for constant in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        elbo = TraceELBO(GumbelSoftmax(schedule), num_particles=particles)
        gradients = []
        for step in range(5):
            torch.manual_seed(step)
            if constant:
                elbo = TraceELBO(GumbelSoftmax(schedule(step).item()), num_particles=particles)
                elbo.loss(model, guide)
            torch.manual_seed(step)
            elbo.loss_and_grads(model, guide)
            gradients.append(pyro.param("z_logits").grad.clone())
            pyro.param("z_logits").grad = pyro.param("b_logits").grad = None
        found.append(torch.stack(gradients))
    torch.testing.assert_close(found[0], found[1])


def test_a_run_goes_on_from_saved_state_where_the_schedule_was():
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO(GumbelSoftmax(StepDecay(1.0, factor=0.5, every=2, end=0.1)))
    for _ in range(3):
        elbo.loss_and_grads(model, guide)
    # settings are saved with the step: another schedule of the same kind takes them up
    resumed = TraceELBO(GumbelSoftmax(StepDecay(9.0, factor=0.9, every=5, end=8.0)))
    resumed.load_state_dict(elbo.state_dict())
    pickled = pickle.loads(pickle.dumps(elbo))
    gradients = []
    for each in (elbo, resumed, pickled):
        pyro.param("z_logits").grad = pyro.param("b_logits").grad = None
        torch.manual_seed(7)
        each.loss(model, guide)
        torch.manual_seed(5)
        each.loss_and_grads(model, guide)
        gradients.append(pyro.param("z_logits").grad.clone())
        assert int(each.step) == 4
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_learned_temperature_is_trained_by_the_callers_optimiser():
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO(GumbelSoftmax(LearnedTemperature(0.5)), num_particles=20)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=elbo)
    for _ in range(20):
        svi.step()
    (parameter,) = {p for e in (elbo.estimators["z"],) for p in e.parameters()}
    assert parameter.exp().item() != pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(parameter)


@pytest.mark.parametrize("make", [REBAR, RELAX])
def test_relaxed_control_variates_take_schedules(make):
    pyro.clear_param_store()
    torch.manual_seed(0)
    elbo = TraceELBO(make(temperature=PiecewiseConstant([0.8, 0.3], [1])), num_particles=5)
    for _ in range(2):
        elbo.loss_and_grads(model, guide)
    site = elbo.estimators["z"]
    assert site.temperature_at(elbo.step).item() == pytest.approx(0.3)
    assert not any("temperature" in name for name, _ in site.named_parameters())
    assert pyro.param("z_logits").grad.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GumbelSoftmax(LinearDecay(1.0, 0.2, steps=4)),
        lambda: GumbelSoftmax(0.5, kl="relaxed", prior_temperature=PiecewiseConstant([1.0, 0.3], [2])),
        lambda: REBAR(temperature=StepDecay(1.0, factor=0.5, every=2, end=0.1)),
        lambda: DecoupledStraightThrough(forward_temperature=LinearDecay(2.0, 0.5, steps=3)),
        lambda: GappedStraightThrough(gap=LinearDecay(2.0, 0.1, steps=3)),
    ],
    ids=["gumbel_softmax", "prior temperature", "rebar", "forward temperature", "gap"],
)
def test_a_captured_step_does_not_freeze_the_schedule(make):
    found = []
    for compile in (False, "graph"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        elbo, gradients = TraceELBO(make(), compile=compile), []
        elbo.loss(model, guide)
        for step in range(4):
            pyro.param("z_logits").grad = pyro.param("b_logits").grad = None
            torch.manual_seed(step)
            elbo.loss_and_grads(model, guide)
            gradients.append(pyro.param("z_logits").grad.clone())
        found.append(torch.stack(gradients))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("cls", "setting", "other"),
    [(DecoupledStraightThrough, "forward_temperature", 20.0), (GappedStraightThrough, "gap", 3.0)],
)
def test_other_settings_follow_schedules_step_by_step_and_are_saved(cls, setting, other):
    """As a number does that is set anew in every step; the state has the schedule, and another is not kept."""
    found = []
    for scheduled in (True, False):
        schedule = PiecewiseConstant([0.2, other], [2])
        pyro.clear_param_store()
        torch.manual_seed(0)
        elbo, gradients = TraceELBO(cls(**{setting: schedule}), num_particles=50), []
        for step in range(4):
            if not scheduled:
                elbo = TraceELBO(cls(**{setting: schedule(step).item()}), num_particles=50)
            elbo.loss(model, guide)
            pyro.param("z_logits").grad = None
            torch.manual_seed(3)
            elbo.loss_and_grads(model, guide)
            gradients.append(pyro.param("z_logits").grad.clone())
        found.append(torch.stack(gradients))
        if scheduled:
            resumed = TraceELBO(cls(**{setting: PiecewiseConstant([9.0, 8.0], [1])}), num_particles=50)
            resumed.loss(model, guide)
            resumed.load_state_dict(elbo.state_dict())
            kept = getattr(resumed.estimators["z"], setting)
            assert kept(resumed.step).item() == schedule(elbo.step).item() == pytest.approx(other)
            assert not resumed.estimators["z"].draws_from_guide or setting == "gap"
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][1], found[0][2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearDecay(start=1.0, end=0.5, step=10), "LinearDecay has no argument 'step'. Did you mean 'steps'?"),
        (lambda: ExponentialDecay(1.0, 0.5, rte=1e-4), "ExponentialDecay has no argument 'rte'. Did you mean 'rate'?"),
        (lambda: LinearDecay(1.0, 0.5), "LinearDecay: missing a required argument: 'steps'"),
        (lambda: LearnedTemperature(begin=1.0), "LearnedTemperature has no argument 'begin'"),
        (lambda: LinearDecay("high", 0.5, 3), "LinearDecay: start='high' given, positive numbers expected"),
        (lambda: PiecewiseConstant(0.5, [1]), "PiecewiseConstant: values=0.5 given, a list of numbers expected"),
        (lambda: PiecewiseLinear([1.0, "x"], [1, 2]), "PiecewiseLinear: values=.* given, a list of numbers expected"),
    ],
)
def test_misspelt_and_missing_settings_are_told_of_by_name(make, said):
    with pytest.raises(SettingError, match=said.replace("?", r"\?")):
        make()
