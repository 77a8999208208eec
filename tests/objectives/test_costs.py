"""Each site's cost: what it may influence, no more where that is certain, all of it where it is not."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_discrete import NVIL, PlackettLuce, TraceELBO
from pyro_discrete.estimators import Estimator, Surrogate
from pyro_discrete.inspection.dependencies import UNKNOWN
from pyro_discrete.objectives.costs import KEPT, Costs, Order, Orders, Term

PLATE = CondIndepStackFrame("data", -1, 3, 0)
OTHER = CondIndepStackFrame("words", -2, 2, 0)
NONE: frozenset = frozenset()


def term(value, plates, in_model, position):
    return Term(torch.as_tensor(value).float(), frozenset(plates), in_model, position)


def test_terms_before_the_site_are_left_out():
    order = Order({"a": NONE, "b": NONE}, {"b": 0, "a": 1, "x": 2})
    terms = [
        term([[1.0]], [], False, 0),
        term([[10.0]], [], False, 1),
        term([[100.0]], [], True, 0),
        term([[1000.0]], [], True, 1),
        term([[10000.0]], [], True, 2),
    ]
    costs = Costs(terms, order)
    assert costs.of("a").item() == 11111
    assert costs.of("b").item() == 11110
    assert costs.of("b", local=False).item() == 11111


def test_model_terms_before_every_later_guide_site_are_left_out():
    order = Order({"a": NONE, "b": NONE}, {"a": 0, "b": 1, "x": 2})
    costs = Costs([term([[10.0**p]], [], True, p) for p in range(3)], order)
    assert costs.of("a").item() == 111
    assert costs.of("b").item() == 110


def test_other_plates_are_summed_and_own_ones_kept():
    order = Order({"z": frozenset({PLATE})}, {"z": 0, "x": 1})
    local = torch.tensor([[[1.0, 2.0, 3.0]]])
    words = torch.tensor([[[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]])
    costs = Costs([term(local, [PLATE], True, 0), term(words, [PLATE, OTHER], True, 1)], order)
    assert costs.of("z").tolist() == [[[51.0, 72.0, 93.0]]]
    assert not costs.crossed_plates("z")


def test_other_iterations_of_a_sequential_plate_are_left_out():
    steps = [CondIndepStackFrame("steps", None, 2, i) for i in (1, 2)]
    order = Order({"z1": frozenset({steps[0]}), "z2": frozenset({steps[1]})}, {"z1": 0, "z2": 1})
    costs = Costs([term([[1.0]], [steps[0]], True, 0), term([[10.0]], [steps[1]], True, 1)], order)
    assert costs.of("z1").item() == 1
    assert costs.of("z2").item() == 10


def test_a_later_global_site_carries_the_influence_across_the_plate():
    order = Order({"z": frozenset({PLATE}), "h": NONE, "w": frozenset({PLATE})}, {"z": 0, "h": 1, "w": 2, "x": 3})
    row = torch.tensor([[1.0, 2.0, 3.0]])
    terms = [term(row, [PLATE], False, 0), term(100 * row, [PLATE], False, 2), term(10000 * row, [PLATE], True, 0)]
    costs = Costs(terms, order)
    assert costs.of("z").tolist() == [[10601.0, 20602.0, 30603.0]]
    assert costs.of("w").tolist() == [[100.0, 200.0, 300.0]]
    assert costs.crossed_plates("z") == {PLATE}


def test_a_sequential_plate_is_crossed_as_well():
    first, second = (CondIndepStackFrame("steps", None, 2, i) for i in (1, 2))
    order = Order(
        {"z1": frozenset({first}), "z2": frozenset({second}), "h": NONE}, {"z1": 0, "z2": 1, "h": 2, "x1": 3, "x2": 4}
    )
    terms = [term([[10.0**p]], [second if p in (1, 4) else first], True, p) for p in (0, 1, 3, 4)]
    costs = Costs(terms, order)
    assert costs.of("z1").item() == 11001
    assert costs.of("z2").item() == 11010


class Recorder(Estimator):
    """The score function, keeping the costs it was given."""

    name, summary, reference = "recorder", "keeps the costs", "none"

    def __init__(self, seen: dict) -> None:
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo):
        return Recorder(self.seen)

    def draw(self, site):
        self.seen["site"] = site.name
        return super().draw(site)

    def surrogate(self, draw, cost):
        self.seen[self.seen["site"]] = cost
        return Surrogate(draw.score * cost[0])


def test_scale_and_mask_belong_to_the_terms():
    shown = torch.tensor([True, False])

    def model():
        with pyro.plate("data", 6, subsample=torch.tensor([1, 4])), pyro.poutine.mask(mask=shown):
            z = pyro.sample("z", dist.Bernoulli(0.25))
        with pyro.plate("again", 2), pyro.poutine.mask(mask=~shown):
            pyro.sample("x", dist.Delta(z, log_density=torch.tensor(-1.0)), obs=z)

    def guide():
        with pyro.plate("data", 6, subsample=torch.tensor([1, 4])), pyro.poutine.mask(mask=shown):
            pyro.sample("z", dist.Bernoulli(0.5))

    seen: dict = {}
    elbo = TraceELBO({"z": Recorder(seen)}, vectorize_particles=False)
    loss = elbo.loss_and_grads(model, guide)
    first = seen["z"][0, 0]
    assert first.shape == (2,)
    assert torch.isclose(first.sum() - first[1], torch.tensor(loss))
    assert first[1] == 1.0  # its own terms are masked, what it leads to is not


@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "nvil", "disarm"])
@pytest.mark.parametrize("read", ["model", "guide"])
def test_elements_that_share_terms_count_all_of_them(estimator, read):
    """A term of the plate that reads other elements. The mean over 4,000 particles is within 0.25 of the exact
    gradient, five standard errors and more; with each element's own terms alone it was off by more."""
    logits = torch.tensor([0.2, -0.4, 0.6], requires_grad=True)
    x = torch.tensor([0.3, -1.0, 0.8])

    def model():
        with pyro.plate("p", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            y = pyro.sample("y", dist.Bernoulli(0.5)) if read == "guide" else z.cumsum(-1)
            pyro.sample("x", dist.Normal(3 * y - 1, 1.0), obs=x)

    def guide():
        with pyro.plate("p", 3):
            z = pyro.sample("z", dist.Bernoulli(logits=logits))
            if read == "guide":
                pyro.sample("y", dist.Bernoulli(logits=2 * z.flip(-1) - 1))

    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    q, p = dist.Bernoulli(logits=logits), dist.Bernoulli(0.4)
    kl = (q.log_prob(values) - p.log_prob(values)).sum(-1)
    if read == "model":
        seen = dist.Normal(3 * values.cumsum(-1) - 1, 1.0).log_prob(x)
    else:
        y = dist.Bernoulli(logits=2 * values.flip(-1) - 1)
        seen = sum(
            torch.where(torch.tensor(bit) > 0, y.probs, 1 - y.probs)
            * (dist.Normal(3 * bit - 1, 1.0).log_prob(x) + math.log(0.5) - y.log_prob(torch.tensor(bit).expand(8, 3)))
            for bit in (0.0, 1.0)
        )
    exact = (q.log_prob(values).sum(-1).exp() * (kl - seen.sum(-1))).sum()
    right = torch.autograd.grad(exact, logits)[0]
    torch.manual_seed(0)
    elbo = TraceELBO(NVIL(variance_normalisation=False) if estimator == "nvil" else estimator, num_particles=4_000)
    elbo.loss_and_grads(model, guide)
    assert torch.allclose(logits.grad, right, atol=0.25)
    assert "summed over plate p, as the elements share terms" in str(elbo.plan)


def test_a_site_outside_of_a_sequential_plate_alone_leaves_the_elements_of_the_others_apart():
    first, second = (CondIndepStackFrame("steps", None, 2, i) for i in (1, 2))
    plates = {"z": frozenset({PLATE, first}), "y": frozenset({PLATE}), "w": frozenset({PLATE, second})}
    terms = [term(torch.ones(1, 3), plates[name], True, i) for i, name in enumerate("zyw")]
    order = Order(plates, {"z": 0, "y": 1, "w": 2, "x": 3})
    costs = Costs(terms, order)
    assert not costs.crossed_plates("z")
    assert costs.of("z").tolist() == [[3.0, 3.0, 3.0]]
    shared = Costs([*terms, term(torch.ones(1, 1), [second], True, 3)], order)
    assert shared.crossed_plates("z")


@pytest.mark.parametrize("family", ["large_event", "poisson", "ranking"])
def test_elements_that_share_terms_are_seen_where_their_values_are_too_many_to_list(family):
    """2^200 joint values of an event, a count without an end, 30! rankings: none is listed."""
    made = {
        "large_event": lambda: dist.Bernoulli(0.4 * torch.ones(3, 200)).to_event(1),
        "poisson": lambda: dist.Poisson(3.0 * torch.ones(3)),
        "ranking": lambda: PlackettLuce(torch.zeros(3, 30)),
    }[family]

    def model(joined):
        with pyro.plate("p", 3):
            z = pyro.sample("z", made()).float()
            z = z if family == "poisson" else z[..., 0]
            pyro.sample("x", dist.Normal(z.cumsum(-1) if joined else z, 1.0), obs=torch.zeros(3))

    def guide(joined):
        with pyro.plate("p", 3):
            pyro.sample("z", made())

    for joined in (True, False):
        elbo = TraceELBO("reinforce")
        elbo.loss(model, guide, joined)
        assert ("as the elements share terms" in str(elbo.plan)) == joined


def test_what_makes_up_a_cost_is_kept_from_run_to_run_and_the_numbers_are_not():
    orders = Orders()

    def costs(*values):
        order = orders.of({"a": NONE, "b": NONE}, ["b", "a", "x"], UNKNOWN)
        return Costs([term([[v]], [], True, p) for p, v in enumerate(values)], order)

    first, second = costs(1.0, 10.0, 100.0), costs(2.0, 20.0, 200.0)
    assert first.order is second.order
    assert [c.of(n).item() for c in (first, second) for n in ("a", "b")] == [111, 111, 222, 222]
    assert first.of("a") is first.of("a")
    assert orders.of({"a": NONE, "b": NONE}, ["b", "x"], UNKNOWN) is not first.order
    assert copy.deepcopy(orders).of({"a": NONE, "b": NONE}, ["b", "a", "x"], UNKNOWN) is not first.order
    for size in range(2 * KEPT):
        orders.of({"a": frozenset({PLATE._replace(size=1 + size)})}, ["a"], UNKNOWN)
    assert len(orders._known) <= KEPT


def test_plates_that_are_parts_of_other_data_have_an_order_of_their_own():
    orders, part = Orders(), frozenset({PLATE._replace(full_size=6)})
    larger = frozenset({PLATE._replace(full_size=30)})
    assert part == larger  # as Pyro compares them
    assert [orders.of({"z": plates}, ["z", "x"], UNKNOWN).scale("z") for plates in (part, larger, part)] == [2, 10, 2]


def test_a_step_of_other_data_is_that_of_a_new_elbo():
    def model(x, size):
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size):
        with pyro.plate("data", size, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(())).expand(len(x))))

    def step(elbo, *args):
        pyro.get_param_store()["logits"] = torch.zeros(())
        torch.manual_seed(0)
        loss = elbo.loss_and_grads(model, guide, *args)
        return loss, pyro.param("logits").grad.item()

    kept, x = TraceELBO("rloo", num_particles=3), torch.tensor([0.2, 1.4])
    for args in ((x, 4), (x, 20), (x[:1], 20), (x, 4)):
        assert step(kept, *args) == step(TraceELBO("rloo", num_particles=3), *args)
