"""Estimators that judge a plate's elements one by one, where later terms are shared by the elements.

Each statistical test alarms falsely with a probability below 1e-5, under fixed seeds.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    BitFlip1,
    Enumerate,
    IndeCateR,
    SumAndSample,
    TraceELBO,
    TraceIWELBO,
    UnorderedSet,
)
from pyro_discrete.diagnostics import exact_gradient
from pyro_discrete.diagnostics.exact import BoundOracle, Oracle
from pyro_discrete.errors import SettingError, SharedTermsError
from pyro_discrete.programs.plate_elements import PlateElements
from pyro_discrete.testing import assert_contract, check_elbo, check_estimator
from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, Pair, leaf, linear, program

F64 = (torch.float64,)
ALARM = 1e-5


@program(BERNOULLI)
def bits_in_one_net(dtype):
    """Bits in a plate, each with data of its own, and all of them in a net whose output one likelihood reads."""
    torch.manual_seed(3)
    net, phi = linear(3, 1, dtype), leaf([0.4, -0.8, 0.2], dtype)
    own, common = torch.tensor([0.3, 1.1, -0.4], dtype=dtype), torch.tensor(1.7, dtype=dtype)

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4, dtype=dtype)))
            pyro.sample("y", dist.Normal(0.5 * z, 1.0), obs=own)
        pyro.sample("x", dist.Normal((3 * net(z)).tanh() + z.prod(-1, keepdim=True), 0.5), obs=common)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=phi))

    return Pair(model, guide, (), {"phi": phi, "weight": net.weight})


@program(BERNOULLI, CATEGORICAL)
def nested_and_beside(dtype):
    """Bits of two elements in two plates, summed over the inner one and over both; an integer before, one behind."""
    phi, psi = leaf([[0.4, -0.8], [0.2, 0.5]], dtype), leaf([0.3, -0.6], dtype)
    chi, weight = leaf([[0.6, -0.4], [-0.3, 0.9]], dtype), leaf([1.2, -0.7], dtype)
    data = torch.tensor([0.9, -0.5], dtype=dtype)

    def model():
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7], dtype=dtype)))
        with pyro.plate("outer", 2, dim=-1):
            with pyro.plate("inner", 2, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.4, 0.7], dtype=dtype)).to_event(1))
            total = (z * weight).sum(-1).sum(-2, keepdim=True)
            k = pyro.sample("k", dist.Categorical(logits=torch.stack([total, -total], -1)))
            pyro.sample("x", dist.Normal(total.square() + k, 0.8), obs=data)
        pyro.sample("y", dist.Normal(total.prod(-1, keepdim=True) + c, 0.8), obs=data[0])

    def guide():
        c = pyro.sample("c", dist.Categorical(logits=psi))
        with pyro.plate("outer", 2, dim=-1):
            with pyro.plate("inner", 2, dim=-2):
                logits = phi + 0.5 * c.unsqueeze(-1)
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            pyro.sample("k", dist.Categorical(logits=chi))

    return Pair(model, guide, (), {"phi": phi, "psi": psi, "chi": chi, "weight": weight})


PROGRAMS = [bits_in_one_net, nested_and_beside]
SERVING = [IndeCateR(), UnorderedSet(k=2), SumAndSample(k=1), BitFlip1()]


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [*SERVING, UnorderedSet(k=3), Enumerate()], ids=repr)
def test_gradients_are_those_of_enumeration(estimator):
    """Vectorised and sequential, in both dtypes; the integers beside are left to the score function for bits alone."""
    spec = {"z": estimator, "*": "reinforce"}

    def make(particles, vectorize):
        return TraceELBO(spec, num_particles=particles, vectorize_particles=vectorize)

    report = check_elbo(make, name=repr(estimator), programs=PROGRAMS, draws=1_600, false_alarm=ALARM)
    print(report)
    assert_contract(report)
    assert not report.refused


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", SERVING, ids=repr)
def test_gradients_of_the_bound_are_those_of_brute_force(estimator):
    """All data in one bound of two particles: its weights are shared by the elements."""

    def make(particles, vectorize):
        return TraceIWELBO(estimator, num_particles=2, num_outer_samples=particles, vectorize_particles=vectorize)

    programs = [replace(bits_in_one_net, oracle=BoundOracle(2))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TraceIWELBO bounds all data jointly")
        report = check_elbo(make, name=repr(estimator), programs=programs, dtypes=F64, draws=1_600, false_alarm=ALARM)
    print(report)
    assert_contract(report)
    assert not report.refused


class MovesAllTogether(IndeCateR):
    """The planted error: rows in which every element is moved, so that its neighbours' term moves with them."""

    separable = False


@pytest.mark.statistical
@pytest.mark.parametrize("chosen", PROGRAMS, ids=lambda p: p.name)
def test_elements_moved_together_are_seen_to_be_biased(chosen):
    spec = {"z": MovesAllTogether(), "*": "reinforce"}

    def make(particles, vectorize):
        return TraceELBO(spec, num_particles=particles, vectorize_particles=vectorize)

    report = check_elbo(make, name="planted", programs=[chosen], dtypes=F64, draws=1_600, false_alarm=ALARM)
    with pytest.raises(AssertionError, match="FAILS"):
        assert_contract(report)


class StaleNeighbours(PlateElements):
    """The planted error: an element is told the cost of another one's row."""

    def own(self, costs):
        return super().own(costs).flip(-1)


@pytest.mark.statistical
def test_costs_of_the_wrong_element_are_seen_to_be_biased(monkeypatch):
    monkeypatch.setattr("pyro_discrete.steps.costing.PlateElements", StaleNeighbours)
    report = check_estimator(IndeCateR(), programs=[bits_in_one_net], dtypes=F64, draws=1_600, false_alarm=ALARM)
    with pytest.raises(AssertionError, match="FAILS"):
        assert_contract(report)


def summed(size, separate=0.0):
    """A model of so many bits in a plate whose sum is observed, and its guide with a logit for each."""
    phi = torch.linspace(-0.7, 0.6, size, dtype=torch.float64, requires_grad=True)

    def model(n=size):
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.8), obs=torch.tensor(1.3).double())

    def guide(n=size):
        with pyro.plate("data", n):
            pyro.sample("z", dist.Bernoulli(logits=phi[:n]))

    return model, guide, phi


@pytest.mark.parametrize("name", ["indecater", "sum_and_sample", "unordered_set", "bitflip1", "enumerate"])
def test_the_plan_says_how_many_rows(name):
    model, guide, _ = summed(5)
    elbo = TraceELBO({"z": name})
    with pyro.poutine.block():
        elbo.loss_and_grads(model, guide)
    if name == "enumerate":
        assert elbo.plan.path == "enumerated"
        return
    assert elbo.plan.rows == elbo.plan.sites[0].rows == 1 + 5
    assert "each of the 5 is moved by itself" in str(elbo.plan)


@pytest.mark.parametrize(
    "estimator",
    [IndeCateR(max_rows=5), UnorderedSet(max_rows=5), SumAndSample(max_rows=5), BitFlip1(max_rows=5)],
    ids=lambda e: e.name,
)
@pytest.mark.parametrize("vectorise", [True, False], ids=["vectorised", "sequential"])
def test_more_rows_than_the_budget_are_refused_with_their_number(estimator, vectorise):
    model, guide, phi = summed(5)
    with pytest.raises(SharedTermsError, match=r"site 'z'.* takes 6 rows .*max_rows=5.*\(max_rows=6\)") as caught:
        TraceELBO(estimator, vectorize_particles=vectorise).loss_and_grads(model, guide)
    assert phi.grad is None
    again = type(estimator)(max_rows=6)
    assert repr(again).partition("(")[0] + "(max_rows=6)" in str(caught.value)
    TraceELBO(again, vectorize_particles=vectorise).loss_and_grads(model, guide)  # as the error says
    assert phi.grad is not None


@pytest.mark.parametrize("made", [IndeCateR, UnorderedSet, SumAndSample, BitFlip1, Enumerate])
def test_a_budget_is_a_whole_number(made):
    with pytest.raises(SettingError, match="max_rows"):
        made(max_rows=0)


@pytest.mark.parametrize("vectorise", [True, False], ids=["vectorised", "sequential"])
def test_captured_steps_are_the_eager_ones(vectorise):
    """Under one seed, step by step."""
    found = []
    for capture in (False, "graph"):
        model, guide, phi = summed(4)
        elbo = TraceELBO({"z": UnorderedSet(k=2)}, compile=capture, vectorize_particles=vectorise)
        torch.manual_seed(2)
        gradients = []
        for _ in range(6):
            phi.grad = None
            elbo.loss_and_grads(model, guide)
            gradients.append(phi.grad)
        found.append(torch.stack(gradients))
        if capture:
            assert elbo.captures.count == 1
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("vectorise", [True, False], ids=["vectorised", "sequential"])
def test_a_local_expectation_over_one_bit_of_many_is_exact_given_the_others(vectorise):
    """By hand: q_i (1 - q_i) (f(z with 1 at i) - f(z with 0 at i)), with f of all bits at the draw."""
    model, guide, phi = summed(4)
    seen = []

    class Keeps(IndeCateR):
        def draw(self, site):
            seen.append(site.sample()[0])
            return super().draw(site)

    elbo = TraceELBO({"z": Keeps()}, vectorize_particles=vectorise)
    elbo.loss_and_grads(model, guide)
    z, q = seen[-1].reshape(4), phi.detach().sigmoid()
    prior, observed = torch.tensor(0.4).double(), torch.tensor(1.3).double()

    def cost(values):
        log_q = dist.Bernoulli(q).log_prob(values).sum()
        log_p = dist.Bernoulli(prior).log_prob(values).sum() + dist.Normal(values.sum(), 0.8).log_prob(observed)
        return log_q - log_p

    wanted = []
    for i in range(4):
        one, nought = (torch.where(torch.arange(4) == i, b, z) for b in (1.0, 0.0))
        wanted.append(q[i] * (1 - q[i]) * (cost(one) - cost(nought)))
    torch.testing.assert_close(phi.grad, torch.stack(wanted))


@pytest.mark.parametrize("vectorise", [True, False], ids=["vectorised", "sequential"])
def test_smaller_and_larger_batches(vectorise):
    """A last batch that is smaller uses the columns that it needs; a larger one has the step planned anew."""
    model, guide, phi = summed(6)
    elbo = TraceELBO({"z": IndeCateR()}, vectorize_particles=vectorise)
    for size, room in ((4, 4), (2, 4), (4, 4), (6, 6), (3, 6)):
        phi.grad = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            elbo.loss_and_grads(model, guide, size)
        assert phi.grad[:size].all()
        assert not phi.grad[size:].any()
        if vectorise:
            assert elbo.plan.rows == 1 + room


@pytest.mark.parametrize("vectorise", [True, False], ids=["vectorised", "sequential"])
@pytest.mark.parametrize("name", ["indecater", "auto", "enumerate"])
@pytest.mark.parametrize("by", ["sum", "site"])
def test_sharing_that_first_shows_in_a_later_step_is_planned_for(by, name, vectorise):
    """The term, or the site of the model's own, that joins the elements is there from the second call on."""
    phi = torch.tensor([0.2, -0.4, 0.5], dtype=torch.float64, requires_grad=True)

    def model(shared):
        m = pyro.sample("m", dist.Bernoulli(torch.tensor(0.3).double())) if by == "site" else 0.0
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4).double()))
            mean = z + m if shared else z
            pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor([0.3, 1.1, -0.4]).double())
        if by == "sum":
            total = z.sum(-1, keepdim=True) if shared else z.new_zeros(1)
            pyro.sample("x", dist.Normal(total, 0.5), obs=torch.tensor(1.3).double())

    def guide(shared):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=phi))

    elbo = TraceELBO(name, vectorize_particles=vectorise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss_and_grads(model, guide, False)
        phi.grad = None
        loss = elbo.loss_and_grads(model, guide, True)
    if name == "indecater":
        assert elbo.plan.sites[0].rows == 4
    if name == "enumerate":
        exact = Oracle()(model, guide, True)
        assert loss == pytest.approx(exact.loss)
        torch.testing.assert_close(phi.grad, exact.gradients["phi"])


def test_auto_leaves_out_what_would_be_refused():
    """A saved choice too: that of a program whose elements share nothing, loaded for one whose elements do."""
    model, guide, _ = summed(300)
    elbo = TraceELBO()
    elbo.set_extra_state({"chosen": {"z": "indecater"}})
    elbo.loss_and_grads(model, guide)
    assert elbo.plan.choices["z"] not in ("indecater", "unordered_set", "bitflip1", "sum_and_sample")


def test_a_product_of_elements_that_share_terms():
    """Two bits an element, summed out jointly, element by element, given a draw of the other elements."""
    phi, psi = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.2, -0.4], [0.5, 0.1]))

    def model():
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.4).double()))
            b = pyro.sample("b", dist.Bernoulli(0.3 + 0.4 * a))
        pyro.sample("x", dist.Normal((a * b).sum(-1, keepdim=True), 0.5), obs=torch.tensor(1.3).double())
        pyro.sample("c", dist.Bernoulli(torch.tensor(0.4).double()))

    def guide():
        pyro.sample("c", dist.Bernoulli(torch.tensor(0.4).double()))
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Bernoulli(logits=phi))
            pyro.sample("b", dist.Bernoulli(logits=psi + 0.5 * a))

    exact = exact_gradient(model, guide)
    for vectorise in (True, False):
        elbo = TraceELBO(
            {"[ab]": Enumerate(product="both"), "c": "reinforce"},
            num_particles=200 if vectorise else 40,
            vectorize_particles=vectorise,
        )
        torch.manual_seed(0)
        draws = []
        for _ in range(30):
            phi.grad = psi.grad = None
            elbo.loss_and_grads(model, guide)
            draws.append(torch.cat([phi.grad, psi.grad]))
        draws = torch.stack(draws)
        error = draws.std(0) / 30**0.5
        wanted = torch.cat([exact[name].flatten() for name in ("phi", "psi")])
        assert ((draws.mean(0) - wanted).abs() < 6 * error).all()  # by chance with a probability below 1e-5
        assert elbo.plan.sites[1].rows == 1 + 2 * 4


def test_rows_of_elements_moved_one_at_a_time():
    """Row 0 stays; each further row is one of an element, and each element is told the costs of its own."""
    frame = pyro.poutine.indep_messenger.CondIndepStackFrame
    inner, outer = frame("inner", -2, 2, 0), frame("outer", -1, 3, 0)
    value = torch.randn(3, 4, 2, 3, 5)  # rows, particles, plates, event
    for names, number in ((["inner"], 2), (["outer"], 3), (["inner", "outer"], 6)):
        elements = PlateElements([inner, outer], names)
        assert elements.number == number
        rows = elements.rows(value, 1)
        assert rows.shape == (1 + number * 2, 4, 2, 3, 5)
        for i, row in enumerate(rows):
            assert row.equal(elements.row(value, 1, i))
        changed = (rows[1:] != value[0]).all(-1)[:, 0].flatten(1).sum(1)
        assert (changed == 6 // number).all()
        costs = torch.randn(number * 2, 4, 2, 3)
        own = elements.own(costs)
        assert own.shape == (2, 4, 2, 3)
        at = (rows[1:] != value[0]).all(-1)
        for further in range(2):
            total = torch.where(at, costs, 0.0).unflatten(0, (number, 2))[:, further].sum(0)
            torch.testing.assert_close(own[further], total)
    nothing = PlateElements([inner, outer], ())
    assert not nothing
    assert nothing.number == 1
    assert nothing.rows(value, 1) is value


def test_where_the_program_does_not_run_at_other_values_elements_may_share_terms():
    """A value of probability zero, at which the program fails, must not hide what its elements have in common."""

    def model():
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7, 0.0])))
            if bool((z > 1).any()):
                raise ValueError("never drawn")
            shared = z.double().mean(-1, keepdim=True).expand(z.shape)
            pyro.sample("x", dist.Normal(shared, 0.3), obs=torch.tensor([0.0, 0.5, 1.0]))

    logits = torch.zeros(3, 2, requires_grad=True)

    def guide():
        with pyro.plate("n", 3):
            pyro.sample("z", dist.Categorical(logits=torch.cat([logits, torch.full((3, 1), -1e4)], -1)))

    elbo = TraceELBO("reinforce")
    elbo.loss(model, guide)
    assert elbo.plan.joined == {"n"}
