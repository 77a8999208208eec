"""The importance-weighted bound: its value, its gradients against brute force, what it refuses, and loss() in blocks.

The statistical tests alarm falsely with a probability below 2e-5 in all, under fixed seeds.
"""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import NVIL, VIMCO, DisARM, Reinforce, TraceELBO, TraceIWELBO, available_estimators, running
from pyro_discrete.bound_costs import BoundCosts
from pyro_discrete.control_variates.leave_one_out import leave_one_out_logsumexp, leave_one_out_mean
from pyro_discrete.costs import Costs, Order
from pyro_discrete.diagnostics.bound_programs import bounded
from pyro_discrete.diagnostics.exact_bound import BoundOracle
from pyro_discrete.errors import ParticleError, SettingError, UnsupportedObjectiveError
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate, Weights
from pyro_discrete.importance import ImportanceBound
from pyro_discrete.layout import Layout
from pyro_discrete.sites import latent_sites
from pyro_discrete.testing import assert_contract, bound_programs, check_elbo, check_estimator, programs
from tests.pairs import DATA, layers, layers_guide, mixture, mixture_guide

PROGRAMS = {p.name: p for p in [*programs(), *bound_programs()]}
CORE = [PROGRAMS[n] for n in ("global_and_layers", "words_in_documents", "subsampled")]
F64 = (torch.float64,)


def test_one_particle_is_the_evidence_lower_bound():
    """The same draws, loss and gradients."""
    found = []
    for elbo in (TraceELBO("reinforce"), TraceIWELBO("reinforce", num_particles=1)):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss = elbo.loss_and_grads(layers, layers_guide, DATA)
        store = pyro.get_param_store()
        found.append((loss, {n: p.grad.clone() for n, p in store.named_parameters()}))
    # the score's own term, log q, is in the direct part here and has zero mean: only model gradients are equal draw by
    # draw, of which this pair has none
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for program in CORE:
        with program.running() as pair:
            plates = ("documents",) if program.name == "words_in_documents" else ("data",)
            one = BoundOracle(1, plates, 1.5)(pair.model, pair.guide, *pair.args)
        assert one.loss == pytest.approx(program.exact.loss, rel=1e-12)


def test_the_bound_rises_with_its_particles_to_the_evidence():
    """By brute force, and by loss() of many particles within 5 standard errors of log p(x)."""
    with PROGRAMS["shared_parameters"].running() as pair:
        losses = [BoundOracle(k, ("data",))(pair.model, pair.guide, *pair.args).loss for k in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4
    evidence = (
        (0.7 * dist.Normal(0.0, 1.0).log_prob(DATA).exp() + 0.3 * dist.Normal(2.0, 1.0).log_prob(DATA).exp())
        .log()
        .sum()
    )
    pyro.set_rng_seed(0)
    assert -TraceIWELBO(num_particles=20_000).loss(mixture, mixture_guide, DATA) == pytest.approx(
        evidence.item(), abs=0.03
    )


@pytest.mark.statistical
@pytest.mark.parametrize(
    "estimator",
    [VIMCO(), *(pytest.param(e, marks=pytest.mark.slow) for e in (VIMCO("arithmetic"), Reinforce(), DisARM()))],
    ids=repr,
)
def test_gradients_are_those_of_brute_force(estimator):
    report = check_estimator(estimator, programs=CORE, draws=1_600, dtypes=F64, false_alarm=1e-6, inner=3)
    print(report)
    assert_contract(report)
    assert not report.refused


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("arm", {}),
        ("arms", {}),
        ("bitflip1", {}),
        ("disarm", {}),
        ("double_cv", {}),
        ("muprop", {}),
        ("nvil", {"variance_normalisation": False}),
        ("rebar", {}),
        ("relax", {}),
        ("rloo", {}),
        ("rodeo", {}),
        ("unordered_set", {}),
        ("gumbel_softmax", {}),
        ("reweighted_wake_sleep", {}),
        ("vimco", {}),
    ],
)
def test_estimators_keep_their_claims_on_the_bound(name, settings):
    """On all programs of the bound, both paths and both dtypes for VIMCO; the core ones for the others."""
    made = available_estimators()[name].cls(**settings)
    whole = name == "vimco"
    report = check_estimator(
        made,
        programs=None if whole else CORE,
        draws=3_200 if made.unbiased else 800,
        dtypes=(torch.float64, torch.float32) if whole else F64,
        false_alarm=1e-6,
        inner=3,
    )
    print(report)
    assert_contract(report)


class LeavesOutOfTheInnerOnes(Estimator):
    """The planted error: the mean of the other inner particles' costs, each of which is the bound itself."""

    name, summary, reference = "planted", "leave-one-out over inner particles", "none"

    def surrogate(self, draw: Draw, cost: torch.Tensor) -> Surrogate:
        signal = cost[0].detach()
        others = (signal.sum(1, keepdim=True) - signal) / max(1, signal.shape[1] - 1)
        return Surrogate(draw.score * (signal - others))


class ScaledInside(ImportanceBound):
    """The planted error: the plate's scale stays in the weights."""

    def evaluate(self, guide_trace, model_trace, chosen, layout, *args, **kwargs):
        for trace in (guide_trace, model_trace):
            for msg in trace.nodes.values():
                if msg["type"] == "sample" and "data" in {f.name for f in msg["cond_indep_stack"]}:
                    msg["cond_indep_stack"] = tuple(f._replace(full_size=f.size) for f in msg["cond_indep_stack"])
                    if msg["name"] == "z":
                        msg["scale"] = msg["scale"] * (1 + 1e-4)  # so that no scale is common
        return super().evaluate(guide_trace, model_trace, chosen, layout, *args, **kwargs)


def planted(objective=None, plates=None):
    def make(particles, vectorize):
        elbo = TraceIWELBO("vimco", num_particles=3, num_outer_samples=particles, datum_plates=plates)
        if objective is not None:
            elbo.objective.__class__ = objective
        return elbo

    return make


@pytest.mark.statistical
@pytest.mark.slow
def test_planted_errors_are_seen():
    def alarms(report):
        print(report)
        assert not report.violations
        return any(c.alarm for c in report.comparisons)

    options = {"dtypes": F64, "draws": 3_200, "false_alarm": 1e-6}
    ragged = bounded([PROGRAMS["ragged_subsample"]], 3)
    assert alarms(check_estimator(LeavesOutOfTheInnerOnes(), programs=CORE[1:2], inner=3, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = check_elbo(
            planted(plates=()), name="joint bound", programs=bounded([PROGRAMS["nested_plates"]], 3), **options
        )
    assert alarms(joint)
    assert alarms(check_elbo(planted(ScaledInside), name="scale inside", programs=ragged, **options))
    assert not alarms(check_elbo(planted(), name="right", programs=ragged, **options))


def test_leave_one_out_sums_are_those_of_the_matrix():
    """The K x K matrix whose diagonal is left out, or holds the mean of the others; weights a thousand orders apart."""
    for w in (torch.randn(2, 6, 3), torch.tensor([[0.0, 700.0, -500.0, 1.0]]), torch.tensor([[3.0, -math.inf, 2.0]])):
        w = w.double()
        count = w.shape[1]
        others = w.unsqueeze(1).expand(-1, count, *w.shape[1:]).clone()
        total, mean = leave_one_out_logsumexp(w, 1), leave_one_out_mean(w, 1)
        for k in range(count):
            rest = torch.cat([w[:, :k], w[:, k + 1 :]], 1)
            torch.testing.assert_close(total[:, k], rest.logsumexp(1))
            torch.testing.assert_close(mean[:, k], rest.mean(1))
            others[:, k, k] = rest.mean(1)
        without = VIMCO().bound_without(Weights(w, total, mean, 1.0, count))
        torch.testing.assert_close(without, others.logsumexp(2) - math.log(count))
        arithmetic = VIMCO("arithmetic").bound_without(Weights(w, total, mean, 1.0, count))
        torch.testing.assert_close(arithmetic, total - math.log(count - 1))


def test_a_row_replaces_one_particles_weight():
    """Each cost is minus the bound of the K weights, with the particle's own replaced by its row's."""
    torch.manual_seed(0)
    w = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    nowhere: frozenset[tuple[str, int]] = frozenset()
    costs = BoundCosts(
        {nowhere: w},
        BoundCosts.others_of({nowhere: w}),
        {"z": nowhere},
        Costs([], Order({"z": frozenset()}, {})),
        2.0,
        4,
        frozenset(),
        (True, False, False),
    )
    found = costs.of("z").reshape(3, 2, 4, 5)
    for row in range(3):
        for k in range(4):
            changed = w[0].clone()
            changed[:, k] = w[row, :, k]
            torch.testing.assert_close(found[row, :, k], -2.0 * (changed.logsumexp(1) - math.log(4)))


def plan_of(model, guide, *args, **options):
    elbo = TraceIWELBO("reinforce", num_particles=2, **options)
    elbo.loss(model, guide, *args)
    return elbo.plan


def test_the_datum_is_found():
    expected = {
        "nested_plates": {"documents"},
        "subsampled": {"data"},
        "one_bernoulli": set(),
        "local_feeds_local": {"second"},
    }
    for name, plates in expected.items():
        with PROGRAMS[name].running() as pair:
            assert set(plan_of(pair.model, pair.guide, *pair.args).layout.datum) == plates
    for name in ("crossing_plates", "local_feeds_global", "sequential_plate"):
        with PROGRAMS[name].running() as pair, pytest.warns(UserWarning, match="bounds all data jointly"):
            assert not plan_of(pair.model, pair.guide, *pair.args).layout.datum
    with PROGRAMS["subsampled"].running() as pair:
        plan = plan_of(pair.model, pair.guide, *pair.args)
        assert "2 particle(s)" in str(plan)
        assert "each element of plate data" in str(plan)
        with pytest.raises(SettingError, match="Did you mean 'data'"):
            plan_of(pair.model, pair.guide, *pair.args, datum_plates="date")


def test_subsampling_within_a_datum_is_refused():
    with PROGRAMS["subsampled"].running() as pair, pytest.raises(SettingError, match="'data' around site"):
        plan_of(pair.model, pair.guide, *pair.args, datum_plates=())

    def model():
        with pyro.plate("documents", 2, dim=-1), pyro.plate("words", 4, subsample_size=2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2, 2))

    def guide():
        with pyro.plate("documents", 2, dim=-1), pyro.plate("words", 4, subsample_size=2, dim=-2):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(SettingError, match="'words' around site"):
        plan_of(model, guide, datum_plates="documents")


def test_estimators_that_cannot_work_are_refused_with_the_reason():
    with pytest.raises(ParticleError, match=r"the bound that they have in common.*num_outer_samples >= 2"):
        TraceIWELBO("rloo", num_particles=8)
    TraceIWELBO("rloo", num_particles=8, num_outer_samples=2).loss_and_grads(mixture, mixture_guide, DATA)
    with pytest.raises(ParticleError, match="at least 2 particles"):
        TraceIWELBO("vimco")
    for name in ("vimco", "reweighted_wake_sleep"):
        with pytest.raises(UnsupportedObjectiveError, match="Write TraceIWELBO"):
            TraceELBO(name, num_particles=4)
    with pytest.raises(SettingError, match="num_outer_samples=0"):
        TraceIWELBO(num_outer_samples=0)
    with pytest.raises(SettingError, match="'geometric' or 'arithmetic'"):
        VIMCO("harmonic")  # type: ignore[arg-type]


def test_auto_and_what_particles_share():
    with PROGRAMS["subsampled"].running() as pair:
        for spec in ("auto", "vimco"):
            for outer, expected in ((1, "nvil"), (2, "rloo")):
                elbo = TraceIWELBO(spec, num_particles=4, num_outer_samples=outer)
                elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
                assert [s.estimator for s in elbo.plan.sites] == [expected, "vimco"]


@pytest.mark.parametrize("name", ["global_and_layers", "words_in_documents"])
def test_particles_share_what_is_outside_the_datum(name):
    """In every row and on both paths, the inner particles of a sample see one global draw, and different local ones."""
    seen = []

    def watched(model):
        def run(*args):
            trace = poutine.trace(model).get_trace(*args)
            seen.append({n: m["value"] for n, m in latent_sites(trace).items()})

        return run

    with PROGRAMS[name].running() as pair:
        elbo = TraceIWELBO("disarm", num_particles=16, num_outer_samples=3)
        elbo.loss(pair.model, pair.guide, *pair.args)
        elbo.loss_and_grads(watched(pair.model), pair.guide, *pair.args)
        values, rows = seen[-1], elbo.plan.rows
    for site, value in values.items():
        split = value.reshape(rows, 3, 16, -1)
        shared = site == "g"
        assert bool((split == split[:, :, :1]).all()) is shared


@pytest.mark.parametrize("name", ["global_and_layers", "words_in_documents"])
def test_loss_of_many_particles_runs_in_blocks(name, monkeypatch):
    """No run has more numbers than allowed, all particles are weighed, and they share what is outside the datum."""
    seen = []

    def watched(*args):
        trace = poutine.trace(pair.model).get_trace(*args)
        seen.append({n: m["value"] for n, m in latent_sites(trace).items()})

    with PROGRAMS[name].running() as pair:
        elbo = TraceIWELBO("reinforce", num_particles=30)
        elbo.loss(watched, pair.guide, *pair.args)
        monkeypatch.setattr(running, "AT_ONCE", 8 * elbo.plan.elements)
        seen.clear()
        elbo.loss(watched, pair.guide, *pair.args)
    local = "a" if name == "global_and_layers" else "topic"
    assert [len(values[local]) for values in seen] == [8, 8, 8, 6]
    if "g" in seen[0]:
        assert len({float(g) for values in seen for g in values["g"].flatten()}) == 1


def test_blocks_put_the_same_weights_together():
    """One site's draws come in one order whatever the blocks, so that the loss is the very same number."""
    values = []
    for size in (64, 7, 1):
        pyro.set_rng_seed(1)
        torch.manual_seed(1)
        objective = ImportanceBound(64, 1, None, False)
        blocks = next(Layout(1, 64, datum=frozenset({"data"})).blocks(size))
        parts = []
        for block in blocks:
            with pyro.plate("_rows", block.size, dim=-2), torch.no_grad():
                guide = poutine.trace(mixture_guide).get_trace(DATA)
                model = poutine.trace(poutine.replay(mixture, trace=guide)).get_trace(DATA)
            parts.append(objective.evaluate(guide, model, {"z": Reinforce()}, block, 1))
        values.append(float(objective.join(parts).loss))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] == pytest.approx(values[2], rel=1e-6)


def continuous(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(pyro.param("slope", torch.tensor(1.3)) * c, 0.5), obs=x)


def continuous_guide(x):
    loc, spread = pyro.param("loc", torch.tensor(0.2)), pyro.param("spread", torch.tensor(-0.8))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Normal(loc + 0.6 * x, spread.exp()))


@pytest.mark.statistical
def test_doubly_reparameterised_gradients_have_the_same_mean_and_less_noise():
    """Guide: equal means at 5 standard errors, less variance; model: the very same gradient under one seed."""
    names, samples = ("loc", "spread", "slope"), {}
    for dreg in (False, True):
        pyro.clear_param_store()
        elbo = TraceIWELBO(num_particles=32, num_outer_samples=64, dreg=dreg)
        draws = []
        for seed in range(40):
            pyro.set_rng_seed(seed)
            elbo.loss_and_grads(continuous, continuous_guide, DATA)
            store = dict(pyro.get_param_store().named_parameters())
            draws.append(torch.stack([store[n].grad.clone() for n in names]))
            for p in store.values():
                p.grad = None
        samples[dreg] = torch.stack(draws)
    plain, doubly = samples[False], samples[True]
    torch.testing.assert_close(plain[:, 2], doubly[:, 2], rtol=1e-4, atol=1e-4)
    error = ((plain.var(0) + doubly.var(0)) / len(plain)).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() < 5 * error + 1e-5).all()
    assert (doubly.var(0)[:2] < 0.5 * plain.var(0)[:2]).all()


def test_doubly_reparameterised_sites_are_those_that_nothing_later_depends_on():
    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(loc, 1.0))
            pyro.sample("b", dist.Normal(a + loc, 1.0))
            pyro.sample("c", dist.Normal(loc * x, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "abc")
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    elbo = TraceIWELBO(num_particles=3, dreg=True)
    elbo.loss_and_grads(model, guide, DATA)
    assert elbo.plan.layout.doubly == {"b", "c"}


def test_reweighted_wake_sleep_is_the_weighted_log_likelihood_of_the_guide():
    """Its gradient on the guide is that of - sum_k w_k log q(z_k), the particles and weights held."""
    pyro.clear_param_store()
    values = []

    def watched(x):
        trace = poutine.trace(mixture_guide).get_trace(x)
        values.append(trace.nodes["z"]["value"])

    elbo = TraceIWELBO("reweighted_wake_sleep", num_particles=6)
    elbo.loss(mixture, mixture_guide, DATA)
    elbo.loss_and_grads(mixture, watched, DATA)
    logit = pyro.get_param_store()._params["logit"]
    found = logit.grad.clone()
    z = values[-1]
    log_q = dist.Bernoulli(logits=logit + 0.5 * DATA).log_prob(z)
    log_p = dist.Bernoulli(0.3).log_prob(z) + dist.Normal(2 * z, 1.0).log_prob(DATA)
    weights = (log_p - log_q).detach().softmax(0)
    (expected,) = torch.autograd.grad(-(weights * log_q).sum(), logit)
    torch.testing.assert_close(found, expected)


def test_a_scale_around_the_program_multiplies_its_bound():
    def scaled(program):
        return poutine.scale(program, scale=0.25)

    losses = []
    for wrap in (lambda p: p, scaled):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        losses.append(TraceIWELBO("vimco", num_particles=4).loss_and_grads(wrap(mixture), wrap(mixture_guide), DATA))
    assert losses[1] == pytest.approx(0.25 * losses[0], rel=1e-6)


def test_state_and_gradients_as_in_the_other_objectives():
    """differentiable_loss leaves the gradient of loss_and_grads; NVIL's parts are trained on the bound too."""
    grads = []
    for differentiable in (False, True):
        pyro.clear_param_store()
        elbo = TraceIWELBO(NVIL(), num_particles=4, num_outer_samples=2)
        elbo.loss(mixture, mixture_guide, DATA)
        pyro.set_rng_seed(2)
        if differentiable:
            elbo.differentiable_loss(mixture, mixture_guide, DATA).backward()
        else:
            elbo.loss_and_grads(mixture, mixture_guide, DATA)
        grads.append(pyro.get_param_store()._params["logit"].grad.clone())
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in elbo.parameters())
    torch.testing.assert_close(grads[0], grads[1])
