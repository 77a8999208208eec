"""What keeps plate elements apart may be a number: a mask, an index, a matrix. Plans hold whatever these are."""

import dataclasses
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule

from pyro_discrete import DiscretePosterior, TraceELBO, collapse

X, CHANCES = torch.tensor([1.0, -0.5, 0.7]), torch.tensor([0.4, 0.3, 0.6])
EYE, DENSE = torch.eye(3), torch.tensor([[0.0, 1.0, 0.5], [0.7, 0.0, 1.0], [1.0, 1.0, 0.3]])
ZERO, SOME = torch.zeros(3), torch.tensor([1.0, 0.5, 2.0])
OFF, ON = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)


def model_of(located, around=None):
    """Three bits in a plate, and what `located(z, numbers)` makes of them."""

    def model(numbers):
        with pyro.plate("p", 3):
            z = pyro.sample("z", dist.Bernoulli(CHANCES))
            with poutine.mask(mask=around(numbers) if around else True):
                pyro.sample("x", dist.Normal(located(z, numbers), 1.0), obs=X)
            pyro.sample("y", dist.Normal(z, 2.0), obs=X)

    return model


def guide(numbers):
    with pyro.plate("p", 3):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor([0.3, -0.2, 0.5]))))


def outside(numbers):
    with pyro.plate("p", 3):
        z = pyro.sample("z", dist.Bernoulli(CHANCES))
        pyro.sample("y", dist.Normal(z, 2.0), obs=X)
    pyro.sample("x", dist.Normal((numbers * z).sum(-1, keepdim=True), 1.0), obs=torch.tensor(2.0))


def a_part(z, numbers):
    found = torch.zeros_like(z)
    found[..., 1:] = z[..., :-1] * numbers.flatten()[1]
    return found + z


class Turned(torch.autograd.Function):
    """An operation that nobody knows."""

    @staticmethod
    def forward(ctx, z, weights):
        return z + weights * z.as_strided(z.shape, z.stride()).unfold(-1, 3, 1).sum(-1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


FORMS = {
    "matrix": (model_of(lambda z, a: z @ a.T), EYE, DENSE),
    "weights": (model_of(lambda z, w: z + w * z.roll(1, -1)), ZERO, SOME),
    "where": (model_of(lambda z, k: torch.where(k, z.roll(1, -1), z)), OFF, ON),
    "comparison": (model_of(lambda z, x: torch.where(x > 0, z, z.flip(-1))), SOME, SOME - 1),
    "index": (model_of(lambda z, i: z[..., i]), torch.arange(3), torch.tensor([2, 0, 1])),
    "mask": (model_of(lambda z, k: z + z.roll(1, -1), around=lambda k: k), OFF, ON),
    "steps": (model_of(lambda z, n: z + z.roll(1, -1) * (torch.arange(3) < n)), torch.tensor(0), torch.tensor(2)),
    "outside": (outside, ZERO, SOME),
    "outside of one": (outside, torch.tensor([1.0, 0.0, 0.0]), SOME),
    "softmax": (model_of(lambda z, w: z + w * z.softmax(-1)), ZERO, SOME),
    "part": (model_of(a_part), EYE, DENSE),
    "read as well": (
        model_of(lambda z, w: torch.where(w.sum() > 0, z.flip(-1), z) + 0.5 * torch.as_tensor(z.tolist())),
        ZERO,
        SOME,
    ),
    "unknown": (model_of(lambda z, w: Turned.apply(z, w)), ZERO, SOME),
}


def right(model, *arguments):
    """Loss, its gradient, the log evidence, and the posterior's marginals, by each joint value."""
    q = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    loss, joint, values = torch.zeros(()), [], list(itertools.product([0.0, 1.0], repeat=3))
    for each in values:
        z = torch.tensor(each)
        log_q = dist.Bernoulli(logits=q).log_prob(z).sum()
        joint.append(poutine.trace(poutine.condition(model, {"z": z})).get_trace(*arguments).log_prob_sum())
        loss = loss - log_q.exp() * (joint[-1] - log_q)
    (gradient,) = torch.autograd.grad(loss, q)
    evidence = torch.stack(joint).logsumexp(0)
    shares = (torch.stack(joint) - evidence).exp()
    return float(loss.detach()), gradient, float(evidence), (shares[:, None] * torch.tensor(values)).sum(0)


def step(elbo, model, *arguments):
    q = pyro.param("q", torch.tensor([0.3, -0.2, 0.5])).unconstrained()
    q.grad = None
    return elbo.loss_and_grads(model, guide, *arguments), q.grad.clone()


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_exact_at_other_numbers(form):
    model, first, then = FORMS[form]
    elbo = TraceELBO("enumerate")
    for numbers in (first, first.clone(), then, first, then.clone()):
        loss, gradient = step(elbo, model, numbers)
        wanted = right(model, numbers)
        assert loss == pytest.approx(wanted[0], abs=1e-4)
        assert torch.allclose(gradient, wanted[1], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_collapsed_at_other_numbers(form):
    model, first, then = FORMS[form]
    collapsed = collapse(model)
    for numbers in (first, then, first):
        found = poutine.trace(collapsed).get_trace(numbers).log_prob_sum()
        assert float(found) == pytest.approx(right(model, numbers)[2], abs=1e-4)


@pytest.mark.parametrize("form", ["matrix", "mask", "outside", "unknown"])
def test_posteriors_at_other_numbers(form):
    model, first, then = FORMS[form]
    for numbers in (first, then):
        posterior = DiscretePosterior(model, lambda numbers: None)
        assert torch.allclose(posterior.marginals(numbers)["z"].mean.float(), right(model, numbers)[3], atol=1e-4)


@pytest.mark.parametrize("compiled", [False, "graph"])
@pytest.mark.parametrize("estimator", ["reinforce", "rloo"])
@pytest.mark.parametrize("form", FORMS)
def test_sampled_steps_are_those_of_a_plan_made_there(form, estimator, compiled):
    model, first, then = FORMS[form]
    settings = {"num_particles": 2, "compile": compiled} if estimator == "rloo" else {"compile": compiled}
    elbo, fresh = TraceELBO(estimator, **settings), TraceELBO(estimator, **settings)
    for _ in range(2):
        step(elbo, model, first)
    for _ in range(2):
        torch.manual_seed(1)
        found = step(elbo, model, then)
        torch.manual_seed(1)
        wanted = step(fresh, model, then)
        assert found[0] == pytest.approx(wanted[0], rel=1e-5)
        assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)
    assert math.isfinite(found[0])


@dataclasses.dataclass
class Batch:
    matrix: torch.Tensor


class Holder(PyroModule):
    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", EYE.clone())

    def forward(self, _):
        model_of(lambda z, a: z @ self.matrix.T)(None)


def held_by(kind):
    """A model that holds a matrix, and what puts another one there."""
    if kind == "buffer":
        holder = Holder()
        return holder, lambda value: holder.matrix.copy_(value)
    if kind == "attribute":
        holder = Holder()
        return holder, lambda value: setattr(holder, "matrix", value)
    if kind == "array":
        array = EYE.numpy().copy()
        return model_of(lambda z, a: z @ torch.as_tensor(array).T), lambda value: np.copyto(array, value.numpy())
    if kind == "container":
        held = {"matrix": EYE}
        return model_of(lambda z, a: z @ held["matrix"].T), lambda value: held.update(matrix=value)
    matrix = EYE.clone()
    return model_of(lambda z, a: z @ matrix.T), matrix.copy_


@pytest.mark.parametrize("kind", ["buffer", "attribute", "array", "container", "closure"])
def test_numbers_that_a_program_holds(kind):
    model, put = held_by(kind)
    elbo = TraceELBO("enumerate")
    for value in (EYE, DENSE, EYE):
        put(value)
        assert step(elbo, model, None)[0] == pytest.approx(right(model, None)[0], abs=1e-4)


@pytest.mark.parametrize("given", [Batch, lambda a: {"deep": [a]}, lambda a: (a,)], ids=["class", "dict", "tuple"])
def test_numbers_inside_of_an_argument(given):
    def matrix(a):
        return a.matrix if isinstance(a, Batch) else a["deep"][0] if isinstance(a, dict) else a[0]

    model, elbo = model_of(lambda z, a: z @ matrix(a).T), TraceELBO("enumerate")
    for value in (EYE, DENSE):
        assert step(elbo, model, given(value))[0] == pytest.approx(right(model, given(value))[0], abs=1e-4)


def test_one_plan_holds_for_all_numbers():
    model, first, then = FORMS["weights"]
    elbo = TraceELBO("enumerate")
    step(elbo, model, first)
    plan = elbo.plan
    assert "the term of site 'x' joins elements of plate 'p'" in plan.reason
    step(elbo, model, then)
    assert elbo.plan is plan


def test_a_draw_of_many_values_may_switch_what_is_joined():
    def model(numbers):
        k = pyro.sample("k", dist.Categorical(torch.ones(40)))
        with pyro.plate("p", 3):
            z = pyro.sample("z", dist.Bernoulli(CHANCES))
            loc = torch.where(k.unsqueeze(-1) == 29, z.roll(1, -1), z)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=X)

    evidence = []
    for k in range(40):
        for each in itertools.product([0.0, 1.0], repeat=3):
            values = {"k": torch.tensor(k), "z": torch.tensor(each)}
            evidence.append(poutine.trace(poutine.condition(model, values)).get_trace(None).log_prob_sum())
    found = poutine.trace(collapse(model)).get_trace(None).log_prob_sum()
    assert float(found) == pytest.approx(float(torch.stack(evidence).logsumexp(0)), abs=1e-4)


def test_a_sum_may_switch_what_is_joined():
    def model(numbers):
        with pyro.plate("p", 8):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            loc = torch.where(z.sum(-1, keepdim=True) == 3, z.roll(1, -1), z)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.linspace(-1, 2, 8))

    evidence = []
    for each in itertools.product([0.0, 1.0], repeat=8):
        trace = poutine.trace(poutine.condition(model, {"z": torch.tensor(each)})).get_trace(None)
        evidence.append(trace.log_prob_sum())
    found = poutine.trace(collapse(model)).get_trace(None).log_prob_sum()
    assert float(found) == pytest.approx(float(torch.stack(evidence).logsumexp(0)), abs=1e-4)
