"""How a program may read a draw that is summed out: by its full shape, under Pyro's marks, without a dim to spare."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO, TraceExpectation

TABLE = torch.tensor([[0.3, -1.1, 0.8], [1.4, 0.2, -0.6], [-0.9, 0.5, 2.0], [0.1, -0.2, 0.7]])
Y = torch.tensor([0.2, -0.4, 1.3, 0.9])
LOGITS = torch.tensor([[0.2, -0.4, 0.9], [1.0, 0.0, -0.5], [0.0, 0.3, 0.1], [-0.7, 0.2, 0.6]])
FORMS = {
    "index": lambda z: TABLE[torch.arange(4), z],
    "gather": lambda z: TABLE.gather(-1, z[:, None])[:, 0],
    "unsqueeze": lambda z: TABLE.gather(-1, z.unsqueeze(-1)).squeeze(-1),
    "take_along_dim": lambda z: torch.take_along_dim(TABLE, z[:, None], -1)[:, 0],
    "bmm": lambda z: torch.bmm(torch.nn.functional.one_hot(z, 3).float()[:, None], TABLE[:, :, None])[:, 0, 0],
    "loop": lambda z: torch.stack([TABLE[i][z[i]] for i in range(4)]),
    "values": lambda z: torch.stack([TABLE[i, int(v)] for i, v in enumerate(z)]),
}


def draw(infer=None):
    with pyro.plate("u", 4):
        return pyro.sample("z", dist.Categorical(logits=pyro.param("logits", LOGITS.clone())), infer=infer)


@pytest.mark.parametrize("form", FORMS)
def test_a_draw_read_by_its_full_shape(form):
    """Value by value it has the shape of a draw: a row of a table for each element, not the first one for all."""

    def model():
        with pyro.plate("u", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(FORMS[form](z), 1.0), obs=Y)

    def reward():
        with pyro.plate("u", 4):
            pyro.factor("r", FORMS[form](pyro.sample("z", dist.Categorical(torch.ones(3)))))

    q = LOGITS.clone().requires_grad_()
    log_q = q.log_softmax(-1)
    bound = (log_q.exp() * (log_q - dist.Normal(TABLE, 1.0).log_prob(Y[:, None]) + math.log(3))).sum()
    payoff = -(log_q.exp() * TABLE).sum()
    for elbo, pair, exact in ((TraceELBO("enumerate"), model, bound), (TraceExpectation("enumerate"), reward, payoff)):
        pyro.clear_param_store()
        assert elbo.loss_and_grads(pair, draw) == pytest.approx(float(exact), abs=1e-4)
        (slope,) = torch.autograd.grad(exact, q, retain_graph=True)
        torch.testing.assert_close(pyro.param("logits").grad, slope, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["gather", "bmm", "loop"])
def test_a_site_of_the_model_alone_read_by_its_full_shape_is_summed(form):
    def model():
        with pyro.plate("u", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(FORMS[form](z), 1.0), obs=Y)

    exact = -(dist.Normal(TABLE, 1.0).log_prob(Y[:, None]) - math.log(3)).logsumexp(-1).sum()
    assert TraceELBO().loss(model, lambda: None) == pytest.approx(float(exact), abs=1e-4)


@pytest.mark.parametrize("number", [1, 4, 20])
def test_num_samples_does_not_take_the_place_of_a_sum(number):
    infer = {"enumerate": "parallel", "num_samples": number}

    def model(alone=False):
        with pyro.plate("u", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer=infer if alone else None)
            pyro.sample("x", dist.Normal(FORMS["index"](z), 1.0), obs=Y)

    joint = dist.Normal(TABLE, 1.0).log_prob(Y[:, None]) - math.log(3)
    log_q = LOGITS.log_softmax(-1)
    guided, alone = float((log_q.exp() * (log_q - joint)).sum()), -float(joint.logsumexp(-1).sum())
    for estimator in ("enumerate", "auto"):
        elbo = TraceELBO(estimator)
        assert elbo.loss(model, lambda: draw(infer)) == pytest.approx(guided, abs=1e-4)
        assert TraceELBO(estimator).loss(lambda: model(True), lambda: None) == pytest.approx(alone, abs=1e-4)
    sampled = TraceELBO("rloo", num_particles=2)
    sampled.loss(model, lambda: draw(infer))
    assert "num_samples is not read" in str(sampled.plan)


@pytest.mark.parametrize(("in_model", "in_guide"), itertools.product((False, True), repeat=2))
def test_a_mark_at_an_event_site_that_the_guide_draws(in_model, in_guide):
    x, p, q = torch.tensor(0.8), torch.tensor([0.3, 0.6]), torch.tensor([0.4, 0.7])
    mark = {"enumerate": "parallel"}

    def model():
        c = pyro.sample("c", dist.Bernoulli(0.4))
        z = pyro.sample("z", dist.Bernoulli(p).to_event(1), infer=mark if in_model else {})
        pyro.sample("x", dist.Normal(z.sum(-1) + c, 1.0), obs=x)

    def guide():
        pyro.sample("z", dist.Bernoulli(q).to_event(1), infer=mark if in_guide else {})

    zs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    log_q = dist.Bernoulli(q).log_prob(zs).sum(-1)
    joint = [
        dist.Bernoulli(p).log_prob(zs).sum(-1) + dist.Normal(zs.sum(-1) + c, 1.0).log_prob(x) + math.log(w)
        for c, w in ((0.0, 0.6), (1.0, 0.4))
    ]
    exact = float((log_q.exp() * (log_q - torch.stack(joint).logsumexp(0))).sum())
    assert TraceELBO("enumerate").loss(model, guide) == pytest.approx(exact, abs=1e-4)
    assert math.isfinite(TraceELBO("rloo", num_particles=3).loss_and_grads(model, guide))


@pytest.mark.parametrize("estimator", ["auto", "enumerate"])
def test_a_site_of_the_model_alone_has_no_dim_to_spare(estimator):
    """A decoder that takes the values' dim as the third, and no further one: without rows there is none between."""
    weight, m, x = torch.eye(3), torch.linspace(-1.0, 1.0, 8).reshape(4, 2), torch.linspace(0.5, -0.5, 8).reshape(4, 2)
    decode = torch.linspace(-1.0, 1.0, 10).reshape(5, 2)

    def joined(a, y):
        if y.dim() == 3:
            a, y = a.expand(len(y), -1, -1), y.expand(-1, 4, -1)
        return torch.cat([a, y], -1) @ decode

    def model():
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(torch.ones(4, 3)))
            pyro.sample("x", dist.Normal(joined(z, weight[y]), 1.0).to_event(1), obs=x)

    def guide():
        with pyro.plate("n", 4):
            pyro.sample("z", dist.Delta(m).to_event(1))

    at = torch.stack([torch.cat([m, weight[k].expand(4, 3)], -1) @ decode for k in range(3)], 1)
    terms = dist.Normal(at, 1.0).log_prob(x[:, None]).sum(-1) - math.log(3)
    exact = -float(terms.logsumexp(-1).sum() + dist.Normal(0.0, 1.0).log_prob(m).sum())
    assert TraceELBO(estimator).loss(model, guide) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("estimator", ["auto", "enumerate", "nvil", "rloo"])
@pytest.mark.parametrize("own", [True, False])
def test_a_guide_that_takes_a_gradient_by_itself(own, estimator):
    """In trial runs and in `loss()` too, which need none themselves."""
    start = torch.tensor([0.1, 0.2, 0.3, -0.4])

    def energy(a):
        return ((a - Y) ** 2).sum() / 2 + (a**4).sum() / 8

    def guide():
        a = start.clone().requires_grad_() if own else pyro.param("a", start.clone())
        (slope,) = torch.autograd.grad(energy(a), a, create_graph=not own)
        step = a - 0.5 * slope
        with pyro.plate("u", 4):
            pyro.sample("z", dist.Bernoulli(logits=step.detach() if own else step))

    def model():
        with pyro.plate("u", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=Y)

    q = torch.sigmoid(start - 0.5 * (start - Y + start**3 / 2))
    joint = dist.Normal(torch.tensor([[0.0], [2.0]]), 1.0).log_prob(Y) + torch.tensor([[0.6], [0.4]]).log()
    both = torch.stack([1 - q, q])
    exact = -float((both * (joint - both.log())).sum())
    elbo = TraceELBO(estimator, num_particles=2 if estimator == "rloo" else 1)
    for call in (elbo.loss, elbo.loss_and_grads):
        loss = call(model, guide)
        assert math.isfinite(loss)
        if estimator in ("auto", "enumerate"):
            assert loss == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_auto_takes_no_estimator_that_then_refuses(rows):
    """A site of the model alone in one of two plates joins the elements of the other."""
    x = torch.linspace(-0.5, 2.0, 2 * rows).reshape(rows, 2)
    phi = torch.tensor(0.4)

    def model():
        a, b = pyro.plate("A", 2, dim=-1), pyro.plate("B", rows, dim=-2)
        with a:
            c = pyro.sample("c", dist.Bernoulli(0.4))
        with a, b:
            z = pyro.sample("z", dist.Bernoulli(logits=c - 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("A", 2, dim=-1), pyro.plate("B", rows, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("phi", phi)))

    exact = 0.0
    for column in x.T:
        for bits in itertools.product((0.0, 1.0), repeat=rows):
            z = torch.tensor(bits)
            log_q = dist.Bernoulli(logits=phi.detach()).log_prob(z).sum()
            prior = torch.stack(
                [
                    dist.Bernoulli(logits=torch.tensor(c - 0.5)).log_prob(z).sum() + math.log(w)
                    for c, w in ((0, 0.6), (1, 0.4))
                ]
            ).logsumexp(0)
            exact += float(log_q.exp() * (log_q - prior - dist.Normal(z, 1.0).log_prob(column).sum()))
    assert TraceELBO("enumerate").loss(model, guide) == pytest.approx(exact, abs=1e-4)
    auto = TraceELBO()
    losses = [auto.loss_and_grads(model, guide) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    assert auto.plan.choices["z"] not in ("indecater", "bitflip1", "unordered_set")


NORMAL = {"enumerate": "parallel", "num_samples": 4000}


@pytest.mark.parametrize("bit", [False, True])
def test_draws_of_a_continuous_site_beside_each_other(bit):
    """Their mean lies within five standard errors of the exact loss and gradient; a single draw's seldom would."""
    loc = pyro.param("loc", torch.tensor(0.5))

    def model():
        b = pyro.sample("b", dist.Bernoulli(0.5)) if bit else 0.0
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + b, 1.0), obs=torch.tensor(1.3))

    def guide():
        if bit:
            pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("z", dist.Normal(pyro.param("loc"), 0.8), infer=NORMAL)

    half_log = 0.5 * math.log(2 * math.pi)
    squares = [(p, (1.3 - b - 0.5) ** 2 + 0.64) for p, b in (((0.7, 0), (0.3, 1)) if bit else ((1.0, 0),))]
    kl = 0.5 * (0.64 + 0.25 - 1) - math.log(0.8) + (0.7 * math.log(1.4) + 0.3 * math.log(0.6) if bit else 0.0)
    exact = kl + half_log + sum(p * s / 2 for p, s in squares)
    slope = 0.5 - sum(p * (1.3 - b - 0.5) for p, b in (((0.7, 0), (0.3, 1)) if bit else ((1.0, 0),)))
    torch.manual_seed(0)
    elbo = TraceELBO("enumerate" if bit else "auto")
    assert elbo.loss_and_grads(model, guide) == pytest.approx(exact, abs=5 * 1.3 / math.sqrt(4000))
    assert float(loc.grad) == pytest.approx(slope, abs=5 * 1.7 / math.sqrt(4000))
    assert "the mean over 4000 draws" in str(elbo.plan)
    sampled = TraceELBO("rloo", num_particles=2, vectorize_particles=False)
    sampled.loss(model, guide)
    assert ("num_samples is not read" in str(sampled.plan)) is bit


def test_a_program_that_reads_a_draw_as_one_number_has_one_draw():
    """And is right in the mean."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(float(z), 1.0), obs=torch.tensor(1.3))

    elbo = TraceELBO()
    elbo.loss(model, lambda: pyro.sample("z", dist.Normal(0.5, 0.8), infer=NORMAL))
    assert "num_samples is not read" in str(elbo.plan)
