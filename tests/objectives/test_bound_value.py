"""The importance-weighted bound's value: one particle, many, in blocks, scaled; whose data it is about.

The statistical test alarms falsely with a probability below 1e-6, under a fixed seed.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import Reinforce, TraceELBO, TraceIWELBO
from pyro_discrete.diagnostics.exact import BoundOracle
from pyro_discrete.errors import SettingError
from pyro_discrete.objectives.importance import ImportanceBound
from pyro_discrete.programs.dims import Layout
from pyro_discrete.programs.sites import latent_sites
from pyro_discrete.steps import hard_loss as running
from tests.support.bounds import CORE, PROGRAMS
from tests.support.pairs import DATA, layers, layers_guide, mixture, mixture_guide


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


def test_a_scale_around_the_program_multiplies_its_bound():
    def scaled(program):
        return poutine.scale(program, scale=0.25)

    losses = []
    for wrap in (lambda p: p, scaled):
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        losses.append(TraceIWELBO("vimco", num_particles=4).loss_and_grads(wrap(mixture), wrap(mixture_guide), DATA))
    assert losses[1] == pytest.approx(0.25 * losses[0], rel=1e-6)
