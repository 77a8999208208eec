"""Elements of an event summed over one by one, where no term joins them: exact, or refused with the reason."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import Enumerate, TraceELBO
from pyro_discrete.errors import EnumerationError
from pyro_discrete.inspection import provenance
from pyro_discrete.planning import make_plan as planning
from pyro_discrete.planning.plan import Elementwise

D = 3
W, TABLE = torch.linspace(-1.0, 1.2, D), torch.randn(D, 4, generator=torch.Generator().manual_seed(0))
X = torch.tensor([[0.4, -1.0, 0.3], [1.1, 0.2, -0.6]])
MASK = torch.tensor([True, False])


def bits(logits):
    return dist.Bernoulli(logits=logits).to_event(1)


def normal(loc, x, scale=0.8):
    pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


class Program:
    """A plate of two data with one event of three elements each; `term` observes x given z."""

    def __init__(self, term, make=bits, values=(), scale=1.0, mask=None):
        self.term, self.make, self.scale, self.mask = term, make, scale, mask
        torch.manual_seed(1)
        self.phi, self.prior = (torch.randn(*shape, D, *values).requires_grad_() for shape in ((2,), ()))
        self.w = W.clone().requires_grad_()

    def around(self):
        return poutine.mask(mask=True if self.mask is None else self.mask)

    def model(self, x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0)) if self.scale == "level" else 0.0
        with pyro.plate("data", 2), self.around():
            z = pyro.sample("z", self.make(self.prior))
            with poutine.scale(scale=0.5):
                self.term(z, x, self.w + torch.as_tensor(level).unsqueeze(-1))

    def guide(self, x):
        if self.scale == "level":
            pyro.sample("level", dist.Delta(self.w.sum().tanh()))
        with pyro.plate("data", 2), self.around():
            pyro.sample("z", self.make(self.phi))

    def run(self, **options):
        elbo = TraceELBO(Enumerate(), **options)
        loss = elbo.loss_and_grads(self.model, self.guide, X)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in (self.phi, self.prior, self.w)]
        for parameter in (self.phi, self.prior, self.w):
            parameter.grad = None
        return elbo.plan, torch.tensor(loss), *found


def categories(logits):
    return dist.Categorical(logits=logits).to_event(1)


def one_hots(logits):
    return dist.OneHotCategorical(logits=logits).to_event(1)


def pairs_of_pixels(z, x, w):
    loc = (z.unsqueeze(-1) * torch.stack([w, -w], -1)).sin()
    pyro.sample("x", dist.Normal(loc, 1.0).to_event(2), obs=torch.stack([x, x], -1))


def written_in_place(z, x, w):
    loc = torch.zeros_like(z)
    loc += z * w
    normal(loc, x)


SEPARATE = {
    "product": Program(lambda z, x, w: normal(z * w, x)),
    "bits": Program(lambda z, x, w: pyro.sample("x", bits(3 * w * (z - 0.4)), obs=(x > 0).float())),
    "table": Program(lambda z, x, w: normal(torch.stack([w[..., 0], w[..., 1]])[z.long()], x)),
    "own tables": Program(lambda z, x, w: normal(TABLE[torch.arange(D), z] * w, x), categories, (4,)),
    "one-hot": Program(lambda z, x, w: normal((z * TABLE).sum(-1) * w, x), one_hots, (4,)),
    "where": Program(lambda z, x, w: normal(torch.where(z > 0, w, x), x, 0.5 + z)),
    "two event dims": Program(pairs_of_pixels),
    "masked": Program(lambda z, x, w: normal(z * w, x), mask=MASK),
    "continuous": Program(lambda z, x, w: normal(z * w, x), scale="level"),
}
JOINED = {
    "matmul": lambda z, x, w: normal(z @ TABLE[:, :D] * w, x),
    "roll": lambda z, x, w: normal(z.roll(1, -1) * w, x),
    "flip": lambda z, x, w: normal(z.flip(-1) * w, x),
    "sum": lambda z, x, w: normal(z.sum(-1, keepdim=True) * w, x),
    "cumsum": lambda z, x, w: normal(z.cumsum(-1) * w, x),
    "softmax": lambda z, x, w: normal(z.softmax(-1) * w, x),
    "sort": lambda z, x, w: normal(z.sort(-1).values * w, x),
    "transposed": lambda z, x, w: normal((z.unsqueeze(-1) * TABLE[:, :D] * w).mT.sum(-1), x),
    "permutation": lambda z, x, w: normal(z[..., torch.tensor([1, 0, 2])] * w, x),
    "concatenated": lambda z, x, w: normal(torch.cat([z[..., 1:], z[..., :1]], -1) * w, x),
    "one number": lambda z, x, w: pyro.sample("x", dist.Normal((z * w).sum(-1), 1.0), obs=x[:, 0]),
    "factor": lambda z, x, w: pyro.factor("x", (z * w).prod(-1)),
    "written in place": written_in_place,
    "of size": lambda z, x, w: normal(z.reshape(*z.shape[:-1], 1, D).expand(*z.shape, D).diagonal(0, -2, -1) * w, x),
    "outer": lambda z, x, w: pyro.sample(
        "x", dist.Normal(z.unsqueeze(-1) * z.unsqueeze(-2) * w, 1.0).to_event(2), obs=torch.zeros(2, D, D)
    ),
}


@pytest.fixture
def few(monkeypatch):
    """Events of three elements are large ones."""
    monkeypatch.setattr(planning, "CHEAP_SUPPORT", 4)


@pytest.mark.parametrize("name", SEPARATE)
def test_loss_and_gradients_are_those_of_all_joint_values(name, monkeypatch):
    program = SEPARATE[name]
    joint, *expected = program.run()
    assert not isinstance(joint.way, Elementwise)
    monkeypatch.setattr(planning, "CHEAP_SUPPORT", 4)
    for options in ({"num_particles": 3}, {"compile": "graph"}):
        plan, *found = program.run(**options)
        assert list(plan.way.values) == ["z"]
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5), name


@pytest.mark.parametrize("name", JOINED)
def test_terms_that_join_elements_are_seen_to(name, few):
    """They are enumerated jointly as long as that can be had; with too small a budget the error says which one."""
    program = Program(JOINED[name])
    assert not isinstance(program.run()[0].way, Elementwise)
    with pytest.raises(EnumerationError, match=r"'z' needs 8 joint values.*one by one \(the term of site 'x' may join"):
        TraceELBO(Enumerate(max_elements=20)).loss(program.model, program.guide, X)


def test_a_rule_that_lets_elements_mix_is_caught(few, monkeypatch):
    """Planted: every operation is taken to keep them apart."""
    program = Program(JOINED["roll"])
    _, expected, *_ = program.run()
    monkeypatch.setattr(provenance, "axis_after", lambda func, args, kwargs, result, moved, axis: -1)
    plan, found, *_ = program.run()
    assert isinstance(plan.way, Elementwise)
    assert abs(found - expected) > 1e-2


def test_forty_bits_cost_two_rows_and_what_the_plan_says():
    w = torch.linspace(-1, 1, 40)

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(40)).to_event(1))
        pyro.sample("x", dist.Normal(w * z, 1.0).to_event(1), obs=x)

    a = torch.linspace(-1, 1, 40).requires_grad_()

    def guide(x):
        pyro.sample("z", bits(a))

    x, elbo = torch.linspace(-2, 2, 40), TraceELBO("enumerate")
    loss = elbo.loss_and_grads(model, guide, x)
    q = a.sigmoid()
    one, zero = (dist.Normal(w * v, 1.0).log_prob(x) + dist.Bernoulli(0.3).log_prob(v) for v in torch.eye(2)[0])
    exact = (q * (q.log() - one) + (1 - q) * ((1 - q).log() - zero)).sum()
    assert loss == pytest.approx(exact.item(), abs=1e-4)
    assert torch.allclose(a.grad, torch.autograd.grad(exact, a)[0], atol=1e-5)
    assert "2 values an element, summed over one by one, as no term joins elements" in str(elbo.plan)
    assert elbo.plan.cost.largest == 80


def test_a_program_that_is_wired_otherwise_later_is_planned_anew(few):
    program = Program(lambda z, x, w: normal(z.roll(1, -1) if program.rolls else z * w, x))
    program.rolls = False
    elbo = TraceELBO("enumerate")
    elbo.loss(program.model, program.guide, X)
    program.rolls = True
    found = elbo.loss(program.model, program.guide, X)
    assert not isinstance(elbo.plan.way, Elementwise)
    assert found == pytest.approx(TraceELBO("enumerate").loss(program.model, program.guide, X), rel=1e-12)


def test_several_sites_and_what_else_keeps_elements_together(few):
    def model(x, joint=False, later=False):
        with pyro.plate("data", 2):
            z = pyro.sample("z", bits(W))
            y = pyro.sample("y", categories(TABLE))
            normal(z * W, x)
            term = (y + z) if joint else (y + 0 * W)
            pyro.sample("u", dist.Normal(TABLE[torch.arange(D), y] + term, 1.0).to_event(1), obs=x)

    phi = torch.randn(2, D).requires_grad_()

    def guide(x, joint=False, later=False):
        with pyro.plate("data", 2):
            z = pyro.sample("z", bits(phi))
            pyro.sample("y", categories(TABLE + (z.unsqueeze(-1) if later else 0.0)))

    results = []
    for budget in (2**27, 2**27):
        elbo = TraceELBO(Enumerate(max_elements=budget))
        results.append((elbo.loss_and_grads(model, guide, X), phi.grad.clone()))
        phi.grad = None
        planning.CHEAP_SUPPORT = 10**6  # the fixture puts it back
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-4)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
    planning.CHEAP_SUPPORT = 4
    for options, reason in (({"joint": True}, "joins 'z' and 'y'"), ({"later": True}, "'y' of the guide depends on")):
        with pytest.raises(EnumerationError, match=reason):
            TraceELBO(Enumerate(max_elements=100)).loss(model, guide, X, **options)
