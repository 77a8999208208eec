"""What "auto" takes: what the table says is best, of what the site and its program allow, and always the same."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.auto.auto_table import LAWS
from pyro_discrete import (
    Enumerate,
    Family,
    GibbsMatching,
    KSubset,
    PlackettLuce,
    TraceELBO,
    TraceIWELBO,
    available_estimators,
)
from pyro_discrete.planning.automatic import TABLE_FILE, ranking
from pyro_discrete.planning.select import automatic_estimator


@pytest.fixture
def table(monkeypatch):
    """A table of the test's own."""

    def replace(*names, **more):
        cells = [
            {
                "family": f.value,
                "support": more.get("support", 1 << 20),
                "depth": 1,
                "particles": 1,
                "work": 100,
                "ranking": [[n, 1.0] for n in names],
            }
            for f in (Family.BERNOULLI, Family.ONE_HOT, Family.DISCRETE)
        ]
        monkeypatch.setattr("pyro_discrete.planning.automatic._table", lambda: cells)

    return replace


def bits(through=lambda z: z, plate_sum=False, size=12):
    phi = torch.zeros(size, requires_grad=True)

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(size)).to_event(1))
            if not plate_sum:
                pyro.sample("x", dist.Normal(through(z).sum(-1), 1.0), obs=torch.tensor([0.0, 1.0]))
        if plate_sum:
            pyro.sample("x", dist.Normal(through(z).sum(-1).sum(-1, keepdim=True), 1.0), obs=torch.tensor(1.0))

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=phi.expand(2, size)).to_event(1))

    return model, guide


def chosen(model, guide, particles=1):
    elbo = TraceELBO(num_particles=particles)
    elbo.loss_and_grads(model, guide)
    (site,) = elbo.plan.sites
    return site.estimator.partition("(")[0], site.why


def test_the_committed_table_ranks_unbiased_estimators_that_serve():
    known = available_estimators()
    cells = json.loads(TABLE_FILE.read_text())
    assert {c["family"] for c in cells if c["family"] in set(Family)} == {
        f.value for f in (Family.BERNOULLI, Family.ONE_HOT, Family.STRUCTURE, Family.DISCRETE)
    }
    laws = {law.__name__ for law in LAWS}
    assert {c["family"] for c in cells if c["family"] not in set(Family)} == laws
    for cell in cells:
        family = Family.STRUCTURE if cell["family"] in laws else Family(cell["family"])
        products = [product for _, product in cell["ranking"]]
        assert products == sorted(products)
        for name, _ in cell["ranking"]:
            assert automatic_estimator(name).unbiased
            assert family in known[name].families
            assert known[name].cls.min_particles <= cell["particles"]


def test_the_first_that_can_be_had_is_taken_and_the_plan_says_why(table):
    table("rebar", "disarm")
    assert chosen(*bits()) == (
        "rebar",
        "auto: least variance x time, measured near it "
        "(Bernoulli, many joint values, 1 site, 1 particle, a run of 1e+02 operations)",
    )
    name, why = chosen(*bits(through=lambda z: (z > 0.5).float()))
    assert name == "disarm"
    assert "not rebar, as the model is not differentiable there" in why


def test_what_judges_elements_one_by_one_needs_them_apart(table):
    table("indecater", "rloo", "disarm")
    assert chosen(*bits(size=9))[0] == "indecater"
    name, why = chosen(*bits(size=9, plate_sum=True))
    assert name == "disarm"  # rloo needs particles
    assert "not indecater, as elements of a plate share terms" in why
    assert "its rows hold 6.4e+07 numbers" in chosen(*bits(size=4000))[1]


def test_without_an_entry_the_score_function_with_baselines_is_taken(table):
    table("rebar")
    hard = bits(through=lambda z: z.round())
    assert chosen(*hard)[0] == "nvil"
    assert chosen(*hard, particles=3)[0] == "rloo"


@pytest.mark.parametrize("objective", [TraceELBO(), TraceIWELBO("vimco", num_particles=2)], ids=["elbo", "bound"])
def test_nvil_is_taken_without_the_rescaling_that_biases_it(objective):
    """As the table measured it; for a count, and for what the particles of a bound share."""

    def model():
        shared = pyro.sample("shared", dist.Poisson(2.0))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(2)))
            pyro.sample("x", dist.Normal(z + shared, 1.0), obs=torch.tensor([0.0, 1.0]))

    def guide():
        pyro.sample("shared", dist.Poisson(torch.tensor(1.5)))
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)))

    objective.loss(model, guide)
    taken = objective.plan.estimators["shared"]
    assert taken.name == "nvil"
    assert taken.unbiased
    assert "nvil(variance_normalisation=False)" in str(objective.plan)


def cell_of(family, support, depth, particles, work=1000):
    return ranking(family, support, depth, particles, work)[1]


def test_supports_are_rounded_up_and_depth_particles_and_size_to_the_nearest():
    assert cell_of(Family.BERNOULLI, 3.0, 3, 1) == cell_of(Family.BERNOULLI, 8.0, 3, 1)
    assert cell_of(Family.BERNOULLI, 9.0, 3, 1) != cell_of(Family.BERNOULLI, 8.0, 3, 1)
    assert cell_of(Family.CATEGORICAL, 1e30, 1, 3) == cell_of(Family.ONE_HOT, 1e30, 1, 4)
    assert "many" in cell_of(Family.CONTINUOUS, float("inf"), 1, 1)
    assert cell_of(Family.BERNOULLI, 1e30, 1, 1, 10) == cell_of(Family.BERNOULLI, 1e30, 1, 1, 2000)
    assert cell_of(Family.BERNOULLI, 1e30, 1, 1, 10**12) == cell_of(Family.BERNOULLI, 1e30, 1, 1, 10**8)


def test_the_choice_is_the_same_in_every_run_and_after_a_reload(table):
    table("rebar", "disarm")
    assert len({chosen(*bits()) for _ in range(3)}) == 1
    first = TraceELBO()
    first.loss(*bits())
    table("disarm")
    again = TraceELBO()
    again.load_state_dict(first.state_dict())
    again.loss(*bits())
    (site,) = again.plan.sites
    assert (site.estimator.partition("(")[0], site.why) == ("rebar", "auto: as saved")


def test_chains_of_separate_sites_are_enumerated_as_each_term_holds_few_values():
    phi = torch.zeros(10, requires_grad=True)

    def model():
        above = torch.tensor(0.0)
        for i in range(10):
            above = pyro.sample(f"z{i}", dist.Bernoulli(logits=above - 0.5))
            pyro.sample(f"x{i}", dist.Normal(above, 1.0), obs=torch.tensor(0.3))

    def guide():
        for i in range(10):
            pyro.sample(f"z{i}", dist.Bernoulli(logits=phi[i]))

    elbo = TraceELBO()
    elbo.loss_and_grads(model, guide)
    assert elbo.plan.path == "enumerated"
    found = phi.grad.clone()
    phi.grad = None
    explicit = TraceELBO(Enumerate())
    assert elbo.loss(model, guide) == pytest.approx(explicit.loss_and_grads(model, guide))
    assert torch.allclose(found, phi.grad)


def chain(*parents, values=6, steps=14):
    """A guide of `steps` categories, each of which depends on those so many steps before."""
    start, tables = torch.zeros(values, requires_grad=True), torch.randn(len(parents), values, values)

    def model():
        with pyro.plate("data", 2):
            for t in range(steps):
                z = pyro.sample(f"z{t}", dist.Categorical(logits=torch.zeros(values)))
                pyro.sample(f"x{t}", dist.Normal(torch.arange(float(values))[z], 1.0), obs=torch.tensor([0.5, 1.0]))

    def guide():
        drawn = []
        with pyro.plate("data", 2):
            for t in range(steps):
                before = [table[drawn[t - p]] for p, table in zip(parents, tables, strict=True) if p <= t]
                drawn.append(pyro.sample(f"z{t}", dist.Categorical(logits=sum(before, start))))

    return model, guide, start


def test_chains_in_the_guide_are_enumerated_where_sums_along_them_are_small():
    model, guide, start = chain(1)
    elbo = TraceELBO()
    loss = elbo.loss_and_grads(model, guide)
    assert elbo.plan.path == "enumerated"
    assert elbo.plan.way.settings.max_elements == Enumerate().max_elements  # for larger batches than the first
    found, start.grad = start.grad, None
    assert loss == pytest.approx(TraceELBO("enumerate").loss_and_grads(model, guide))
    assert torch.allclose(found, start.grad)
    tangled = TraceELBO()
    tangled.loss(*chain(1, 5)[:2])
    assert tangled.plan.path != "enumerated"


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("by_value", [False, True])
def test_marked_sites_are_summed_out_up_to_the_budget(marked, by_value):
    """A program that reads a value as one number goes through its values one by one, if they are few or marked."""
    table, x, logits = torch.linspace(-1.0, 2.0, 300), torch.tensor(0.4), torch.linspace(0.0, 1.0, 300)
    infer = {"enumerate": "parallel"} if marked else {}

    def model():
        z = pyro.sample("z", dist.Categorical(torch.ones(300)))
        mean = table[z.reshape(-1)].reshape(()) if by_value else table[z]
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    elbo = TraceELBO()
    loss = elbo.loss(model, lambda: pyro.sample("z", dist.Categorical(logits=logits), infer=infer))
    assert (elbo.plan.choices["z"] == "enumerate") is marked
    if marked:
        log_q = logits.log_softmax(-1)
        exact = (log_q.exp() * (log_q + torch.tensor(300.0).log() - dist.Normal(table, 1.0).log_prob(x))).sum()
        assert loss == pytest.approx(float(exact), rel=1e-5)


def test_a_marked_site_that_is_too_large_is_sampled():
    elbo = TraceELBO()
    many = dist.Bernoulli(torch.full((40,), 0.5)).to_event(1)
    elbo.loss(lambda: pyro.sample("z", many), lambda: pyro.sample("z", many, infer={"enumerate": "parallel"}))
    assert elbo.plan.choices["z"] != "enumerate"


def test_structures_get_what_was_measured_on_them():
    """Few subsets are enumerated; of many, a smooth model takes muprop, and one that jumps what draws hard values."""
    table = torch.linspace(-1, 1, 30)

    def pair(items, k, smooth):
        phi = torch.zeros(items, requires_grad=True)

        def model():
            z = pyro.sample("z", KSubset(torch.zeros(items), k))
            total = (z * table[:items]).sum(-1)
            pyro.sample("x", dist.Normal(total if smooth else (total > 0) * 1.0, 1.0), obs=torch.tensor(0.7))

        def guide():
            pyro.sample("z", KSubset(phi, k))

        return model, guide

    assert chosen(*pair(6, 3, True))[0] == "enumerate"
    name, why = chosen(*pair(30, 10, True))
    assert (name, "structure, many joint values" in why) == ("muprop", True)
    assert chosen(*pair(30, 10, False))[0] == "nvil"
    assert chosen(*pair(30, 10, True), particles=4)[0] == "rloo"


def test_rankings_are_left_to_hard_draws():
    phi, table = torch.zeros(12, requires_grad=True), torch.linspace(-1, 1, 12)

    def model():
        order = pyro.sample("order", PlackettLuce(torch.zeros(12)))
        pyro.sample("x", dist.Normal((table[order] * table).sum(-1), 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("order", PlackettLuce(phi))

    assert chosen(model, guide)[0] == "nvil"
    assert chosen(model, guide, particles=4)[0] == "rloo"


@pytest.mark.parametrize(("smooth", "taken"), [(True, "muprop"), (False, "nvil")])
def test_a_matching_with_marginals_is_differentiated_where_the_model_is_smooth(smooth, taken):
    phi, table = torch.zeros(10, 10, requires_grad=True), torch.linspace(-1, 1, 10)

    def model():
        z = pyro.sample("z", GibbsMatching(torch.zeros(10, 10)))
        total = (table[z] * table).sum(-1)
        pyro.sample("x", dist.Normal(total if smooth else (total > 0) * 1.0, 1.0), obs=torch.tensor(2.0))

    name, why = chosen(model, lambda: pyro.sample("z", GibbsMatching(phi)))
    assert (name, "GibbsMatching, many joint values" in why) == (taken, True)


def test_a_structure_has_cells_of_its_own_where_it_was_measured():
    many = {"family": "structure", "support": 100, "depth": 1, "particles": 1, "work": 1, "ranking": [["rloo", 1.0]]}
    table = [{**many, "support": 10}, many, {**many, "family": "Own", "ranking": [["nvil", 1.0]]}]
    asked = {"depth": 1, "particles": 1, "work": 1, "table": table}
    assert ranking(Family.STRUCTURE, 50.0, **asked, law="Own") == (
        ["nvil"],
        "Own, many joint values, 1 site, 1 particle, a run of 1e+00 operations",
    )
    assert ranking(Family.STRUCTURE, 5.0, **asked, law="Own")[0] == ["rloo"]
    assert ranking(Family.STRUCTURE, 50.0, **asked, law="Another")[0] == ["rloo"]
