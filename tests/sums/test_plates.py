"""Plates beside each other: exact against every joint value, at the cost of elimination, or refused with the width."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import DiscretePosterior, Enumerate, TraceELBO
from pyro_discrete.errors import EnumerationError
from pyro_discrete.sums.elimination import Elimination, SizesAlone, named
from pyro_discrete.sums.plates import PlatedTerm, contract_plates
from tests.support.exact_sums import agrees, nothing

RATINGS = torch.tensor([[0.3, -1.0], [0.8, 0.2], [-0.5, 1.4]])


def plates(users=3, items=2):
    return pyro.plate("users", users, dim=-2), pyro.plate("items", items, dim=-1)


def guide(u=True, v=True):
    users, items = plates()
    if u:
        with users:
            pyro.sample("u", dist.Bernoulli(logits=pyro.param("a", torch.tensor([[0.3], [-0.2], [0.6]]))))
    if v:
        with items:
            pyro.sample("v", dist.Bernoulli(logits=pyro.param("b", torch.tensor([0.1, -0.4]))))


def model(crossed, above=False, local=False):
    users, items = plates()
    g = pyro.sample("g", dist.Bernoulli(0.4)) if above else 0.0
    with users:
        u = pyro.sample("u", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))
    with items:
        v = pyro.sample("v", dist.Bernoulli(0.3 + 0.2 * g))
    if crossed:
        with users, items:
            w = pyro.sample("w", dist.Bernoulli(0.3 + 0.4 * u)) if local else 0.0
            pyro.sample("r", dist.Normal(2 * u * v - v + w, 1.0), obs=RATINGS)
        return
    with users:
        pyro.sample("x", dist.Normal(u + g, 1.0), obs=RATINGS[:, :1])
    with items:
        pyro.sample("y", dist.Normal(v, 1.0), obs=RATINGS[0])


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(("u", "v"), [(True, True), (True, False), (False, True), (False, False)])
def test_each_site_in_the_guide_or_in_the_model_alone(crossed, u, v):
    program, drawn = (lambda: model(crossed)), (lambda: guide(u, v))
    plan = agrees(program, drawn if u or v else nothing)
    if u and v:
        assert "Parallel" in type(plan.way).__name__
        assert agrees(program, drawn, "auto").path == "enumerated"
        agrees(program, drawn, compile="graph")


def test_a_global_site_of_the_model_alone_above_both():
    agrees(lambda: model(False, above=True), nothing)
    agrees(lambda: model(True, above=True), nothing, "rloo", num_particles=2)


def test_a_site_of_the_model_alone_in_both():
    agrees(lambda: model(True, local=True), guide)


def test_posterior_of_crossed_plates():
    """By every joint value of the five bits."""
    bits = torch.cartesian_prod(*[torch.arange(2.0)] * 5)
    u, v = bits[:, :3], bits[:, 3:]
    prior = dist.Bernoulli(0.3).log_prob(bits).sum(-1)
    means = 2 * u.unsqueeze(-1) * v.unsqueeze(1) - v.unsqueeze(1)
    joint = (prior + dist.Normal(means, 1.0).log_prob(RATINGS).sum((-1, -2))).softmax(0)
    found = DiscretePosterior(lambda: model(True)).marginals()
    assert torch.allclose(found["u"].probs.flatten().float(), joint @ u, atol=1e-5)
    assert torch.allclose(found["v"].probs.flatten().float(), joint @ v, atol=1e-5)


def large(crossed, users, items, drawn):
    table = torch.tensor([-1.0, 0.5, 2.0])
    torch.manual_seed(0)
    a, b, r = torch.randn(users, 1), torch.randn(items), torch.randn(users, items)
    q_u, q_v = torch.rand(users, 1, 3).softmax(-1), torch.rand(items, 3).softmax(-1)

    def program(observe):
        by_user, by_item = plates(users, items)
        with by_user:
            u = pyro.sample("u", dist.Categorical(torch.ones(3) / 3 if observe else q_u))
        with by_item:
            v = pyro.sample("v", dist.Categorical(torch.ones(3) / 3 if observe else q_v))
        if observe and crossed:
            with by_user, by_item:
                pyro.sample("r", dist.Normal(table[u] * table[v], 1.0), obs=r)
        elif observe:
            with by_user:
                pyro.sample("a", dist.Normal(table[u], 1.0), obs=a)
            with by_item:
                pyro.sample("b", dist.Normal(table[v], 1.0), obs=b)

    loss = (q_u * (3 * q_u).log()).sum() + (q_v * (3 * q_v).log()).sum()
    if crossed:
        terms = dist.Normal(table[:, None] * table, 1.0).log_prob(r[..., None, None])
        loss = loss - torch.einsum("uk,il,uikl->", q_u[:, 0], q_v, terms)
    else:
        loss = loss - (q_u[:, 0] * dist.Normal(table, 1.0).log_prob(a)).sum()
        loss = loss - (q_v * dist.Normal(table, 1.0).log_prob(b[:, None])).sum()
    return (lambda: program(True)), (lambda: program(False)) if drawn else nothing, loss.item()


@pytest.mark.parametrize(("crossed", "users", "items"), [(False, 2000, 1500), (True, 40, 30)])
@pytest.mark.parametrize("estimator", ["enumerate", "auto"])
def test_many_elements(crossed, users, items, estimator):
    program, drawn, exact = large(crossed, users, items, True)
    assert TraceELBO(estimator).loss(program, drawn) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(("users", "items", "width"), [(40, 30, 31), (2000, 1500, 1500)])
def test_what_grows_exponentially_is_refused_with_the_width(users, items, width):
    program, drawn, _ = large(True, users, items, False)
    with pytest.raises(EnumerationError, match=rf"'users' of {users}.*exponentially.* values of {width} "):
        TraceELBO("enumerate").loss(program, drawn)


def test_joint_values_of_thousands_of_elements_are_a_number():
    def coupled(observe):
        with pyro.plate("data", 2000):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        if observe:
            pyro.sample("y", dist.Normal(1.0 * z.float().mean(-1, keepdim=True), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(EnumerationError, match=r"jointly: 1e\+954 joint values"):
        TraceELBO("enumerate").loss(lambda: coupled(True), lambda: coupled(False))


def test_the_smaller_plate_goes_element_by_element():
    """No table is larger than plate by plate: 3 values of u, and of v at each of 4 items, for 50 users."""
    torch.manual_seed(0)
    r, u, v = torch.randn(50, 4, 3, 3), torch.randn(50, 3), torch.randn(4, 3)
    users, items, inside = "U", "I", {"u": frozenset("U"), "v": frozenset("I")}
    terms = [
        PlatedTerm(frozenset((users, items)), named(r.clone(), "UIuv")),
        PlatedTerm(frozenset(users), named(u.clone(), "Uu")),
        PlatedTerm(frozenset(items), named(v.clone(), "Iv")),
    ]
    plates_left, total = contract_plates(terms, inside, Elimination())
    states = torch.cartesian_prod(*[torch.arange(3)] * 4)
    by_state = v[torch.arange(4), states].sum(-1)
    each = u + r[:, torch.arange(4), :, states].sum(1)  # [states, users, values of u]
    exact = (by_state + each.logsumexp(-1).sum(-1)).logsumexp(0)
    assert not plates_left
    assert torch.allclose(total, exact, rtol=1e-5)
    ring = SizesAlone()
    contract_plates(terms, inside, ring)
    assert ring.largest <= 50 * 3**5
    with pytest.raises(EnumerationError, match="over the values of 5 draws"):
        program, drawn, _ = large(True, 50, 4, False)
        TraceELBO(Enumerate(max_elements=1000)).loss(program, drawn)
