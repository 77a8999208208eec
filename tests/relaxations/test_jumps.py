"""Programs that jump as a relaxed value moves: refused where an estimator claims more, warned of where it does not.

Gradients of what is not refused are compared with brute force; each such test alarms falsely with a probability of at
most 1e-6.
"""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_discrete import RELAX, TraceELBO, TraceExpectation, TraceIWELBO, available_estimators
from pyro_discrete.errors import RelaxationError
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN
from pyro_discrete.inspection.trial import plain_trial
from pyro_discrete.planning.automatic import is_differentiable
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair
from tests.support.captured_pairs import captures_of

TABLE = torch.tensor([-1.0, 1.0])


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


def quietly(b):
    with torch.no_grad():
        return 2 * b


JUMPS = {
    "where": lambda b: torch.where(b > 0.5, 1.0, -1.0),
    "derived": lambda b: torch.where(b @ torch.eye(2) * 2 - 1 > 0, 1.0, -1.0),
    "mask": lambda b: (2 * b - 1) * (b + 1 >= 1.7),
    "round": lambda b: 2 * b.round() - 1,
    "floor": lambda b: (2 * b).floor() - 1,
    "sign": lambda b: (b - 0.5).sign(),
    "remainder": lambda b: (2 * b) % 2,
    "floor division": lambda b: (3 * b) // 2,
    "rounded division": lambda b: torch.div(3 * b, 2, rounding_mode="floor"),
    "integer": lambda b: TABLE[(1.2 * b).long()],
    "boolean": lambda b: (b - 0.5).clamp(min=0).bool().float(),
    "argmax": lambda b: torch.stack([0.3 + 0 * b, b]).argmax(0).float(),
    "topk": lambda b: torch.stack([0.3 + 0 * b, b]).topk(1, 0).indices[0].float(),
    "sort": lambda b: torch.stack([0.3 + 0 * b, b]).sort(0)[1][0].float(),
    "branch": lambda b: b * 2 if (b.sum(-1, keepdim=True) > 0.9).any() else b * 3,
    "number": lambda b: b * float(b.reshape(-1)[0]),
    "hardshrink": lambda b: F.hardshrink(b),
    "hard Gumbel": lambda b: F.gumbel_softmax(torch.stack([b, 1 - b], -1), hard=True)[..., 0],
    "coin": lambda b: torch.bernoulli(b.clamp(0, 1)),
    "detached": lambda b: b.detach() * 2,
    "data": lambda b: (b + 1).data,
    "no gradients": quietly,
    "custom function": lambda b: Rounded.apply(b * 1.4),
}

SMOOTH = {
    "linear": lambda b: 2 * b - 1,
    "compared for equality": lambda b: torch.where(b == 1, 1.0, -1.0),
    "as an integer": lambda b: TABLE[b.long()],
    "as a condition": lambda b: torch.where(b.bool(), 1.0, -1.0),
    "relu": lambda b: F.relu(2 * b - 1) + (1.5 * b - 1).relu(),
    "abs": lambda b: (b - 0.4).abs(),
    "clamp": lambda b: (2 * b - 1).clamp(-0.5, 0.7),
    "max": lambda b: torch.stack([0.3 + 0 * b, b]).max(0).values + b.amax(-1, keepdim=True),
    "topk values": lambda b: torch.stack([0.3 + 0 * b, b]).topk(1, 0).values[0],
    "shapes": lambda b: torch.zeros_like(b) + b * b.shape[-1] + torch.ones(b.shape),
    "finite": lambda b: torch.where(torch.isfinite(b * 1.0), b * 1.0, 0.0),
    "a custom function": lambda b: Steep.apply(b * 1.0),
    "a module": lambda b: nn.Sequential(nn.LayerNorm(2, elementwise_affine=False), nn.Tanh())(b * 1.0),
}


def pair(form, one_hot=False, dtype=torch.float32):
    logits = torch.tensor([0.2, -0.4], dtype=dtype, requires_grad=True)
    prior = torch.tensor([0.4, 0.6], dtype=dtype)
    data = torch.tensor([[0.3, -0.8], [0.9, 0.1]], dtype=dtype)

    def sites(given, prior):
        if one_hot:
            return dist.OneHotCategorical(**{given: prior})
        return dist.Bernoulli(**{given: prior}).to_event(1)

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", sites("probs", prior))
            pyro.sample("x", dist.Normal(form(z), 1.0).to_event(1), obs=data)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", sites("logits", logits))

    return model, guide, logits


@pytest.mark.parametrize("form", JUMPS.values(), ids=JUMPS)
@pytest.mark.parametrize("estimator", ["rebar", "relax"])
def test_a_jump_is_refused_by_name(estimator, form):
    pyro.set_rng_seed(0)
    model, guide, _ = pair(form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs row by row
        with pytest.raises(RelaxationError, match=r"'z'.* at test_jumps.py:\d+") as error:
            TraceELBO(estimator).loss_and_grads(model, guide)
        assert repr(estimator) in str(error.value)
        assert TraceELBO(estimator).loss(model, guide) > 0  # the discrete objective has no relaxed value


@pytest.mark.parametrize("form", ["where", "argmax", "integer", "detached"])
def test_of_one_hot_vectors_too(form):
    model, guide, _ = pair(JUMPS[form], one_hot=True)
    with pytest.raises(RelaxationError, match="'z'"):
        TraceELBO("rebar").loss_and_grads(model, guide)


@pytest.mark.statistical
@pytest.mark.parametrize("form", SMOOTH.values(), ids=SMOOTH)
def test_what_is_continuous_is_not_refused_and_right(form):
    """The z-test of two components at 5.2 standard errors."""
    pyro.set_rng_seed(1)
    model, guide, logits = pair(form)
    (exact,) = gradients(TraceELBO("enumerate"), model, guide, logits, 1)
    elbo = TraceELBO("rebar", num_particles=50)
    found = torch.stack(gradients(elbo, model, guide, logits, 40))
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 5.2 * error + 1e-5).all(), (found.mean(0), exact, error)


def gradients(elbo, model, guide, logits, steps):
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            logits.grad = None
            elbo.loss_and_grads(model, guide)
            found.append(logits.grad.clone())
    return found


@pytest.mark.statistical
@pytest.mark.parametrize("one_hot", [False, True], ids=["bits", "one_hot"])
@pytest.mark.parametrize("name", available_estimators())
def test_who_claims_to_be_unbiased_is_right_or_refuses(name, one_hot):
    """At each of two components 5.2 standard errors, of every estimator that there is."""
    estimator = available_estimators()[name].cls()
    if not estimator.unbiased or estimator.importance_weighted or estimator.families.isdisjoint(pair_families(one_hot)):
        pytest.skip("claims nothing here")
    pyro.set_rng_seed(2)
    model, guide, logits = pair(lambda b: torch.where(b * 2 > 1, 1.0, -1.0), one_hot)
    (exact,) = gradients(TraceELBO("enumerate"), model, guide, logits, 1)
    if estimator.rests_on_slopes:
        with pytest.raises(RelaxationError, match="'z'"):
            gradients(TraceELBO(estimator, num_particles=20), model, guide, logits, 1)
        return
    found = torch.stack(gradients(TraceELBO(estimator, num_particles=20), model, guide, logits, 60))
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 5.2 * error + 1e-5).all(), (found.mean(0), exact, error)


def pair_families(one_hot):
    return {Family.ONE_HOT if one_hot else Family.BERNOULLI}


RELAXED = [n for n, info in available_estimators().items() if issubclass(info.cls, RelaxedEstimator)]


@pytest.mark.parametrize("name", RELAXED)
def test_a_relaxation_warns_once_of_a_jump_and_never_of_a_kink(name):
    model, guide, _ = pair(JUMPS["where"])
    elbo = TraceELBO(name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            elbo.loss_and_grads(model, guide)
    (warning,) = (str(w.message) for w in told if "relaxed value" in str(w.message))
    assert all(word in warning for word in ("'z'", "gt()", "test_jumps.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (SMOOTH["relu"], SMOOTH["max"], JUMPS["detached"]):  # a slope left out on purpose is none's claim
            TraceELBO(name).loss_and_grads(*pair(form)[:2])


@pytest.mark.parametrize("objective", [TraceIWELBO, TraceExpectation], ids=lambda o: o.__name__)
@pytest.mark.parametrize("vectorised", [True, False], ids=["rows_at_once", "row_by_row"])
def test_under_other_objectives_and_row_by_row(objective, vectorised):
    model, guide, _ = pair(JUMPS["where"])
    with pytest.raises(RelaxationError, match="'z'"):
        objective("rebar", num_particles=2, vectorize_particles=vectorised).loss_and_grads(model, guide)


def test_where_steps_are_captured():
    model, guide, _ = pair(JUMPS["where"])
    with pytest.raises(RelaxationError, match="'z'"):
        TraceELBO("rebar", compile="graph").loss_and_grads(model, guide)


@pytest.mark.parametrize("estimator", ["rebar", "gumbel_softmax"])
def test_a_step_that_is_watched_in_every_run_can_be_captured(estimator, monkeypatch):
    monkeypatch.setattr(Plan, "dependencies", lambda self, pair: UNKNOWN)
    model, guide, logits = pair(SMOOTH["relu"])
    steps = []
    for compile in (False, "graph"):
        pyro.set_rng_seed(3)
        elbo = TraceELBO(estimator, compile=compile)
        steps.append(torch.stack(gradients(elbo, model, guide, logits, 6)))
    assert captures_of(elbo).count == 1, elbo.captures
    assert torch.equal(*steps)


def test_a_branch_that_is_taken_later_is_seen_when_it_is():
    jumps = False

    def form(b):
        return torch.where(b > 0.5, 1.0, -1.0) if jumps else b

    model, guide, _ = pair(form)
    elbo = TraceELBO("rebar")
    for _ in range(3):
        elbo.loss_and_grads(model, guide)
    jumps = True
    with pytest.raises(RelaxationError, match="'z'"):
        elbo.loss_and_grads(model, guide)


def test_a_draw_of_another_site_in_the_guide_is_followed_through_both_programs():
    a = torch.tensor([0.3], requires_grad=True)

    def guide():
        z = pyro.sample("z", dist.Bernoulli(logits=a[0]))
        pyro.sample("y", dist.Bernoulli(logits=torch.where(2 * z > 1, 1.0, -1.0)))

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Bernoulli(0.2 + 0.5 * z))

    with pytest.raises(RelaxationError, match="'z'"):
        TraceELBO({"z": "rebar", "y": "reinforce"}).loss_and_grads(model, guide)
    TraceELBO({"z": "reinforce", "y": "rebar"}).loss_and_grads(model, guide)  # it is z that jumps there


def test_terms_that_jump_by_themselves():
    class Edge(dist.TorchDistribution):
        arg_constraints, support, has_rsample = {}, dist.constraints.real, False  # pyright: ignore

        def __init__(self, at):
            self.at = at
            super().__init__(at.shape, validate_args=False)

        def expand(self, batch_shape, _instance=None):
            return Edge(self.at.expand(batch_shape))

        def log_prob(self, value):
            return -(value > self.at).float()

    def program(distribution):
        def model():
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", distribution(z), obs=torch.tensor(0.4))

        def guide():
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))

        return model, guide

    for jumping in (lambda z: Edge(2 * z), lambda z: dist.Uniform(0.0, 0.5 + z)):
        with pytest.raises(RelaxationError, match="'z'"):
            TraceELBO("rebar").loss_and_grads(*program(jumping))
    TraceELBO("rebar").loss_and_grads(*program(lambda z: dist.Laplace(2 * z, 1.0)))


def test_inside_the_programs_own_modes():
    """A device's context is a mode of torch's functions as well, which the watch must not take away."""

    def form(b):
        with torch.device("cpu"):
            pyro.deterministic("seen", b * 2)
            made = torch.zeros(2)
        return b + made

    model, guide, _ = pair(form)
    TraceELBO("rebar").loss_and_grads(model, guide)
    assert torch.overrides._get_current_function_mode() is None


def test_auto_takes_none_that_would_be_refused():
    for form, expected in ((JUMPS["where"], False), (JUMPS["mask"], False), (SMOOTH["as an integer"], True)):
        given = Pair(*pair(form)[:2], (), {})
        assert is_differentiable(given, plain_trial(given), "z") is expected


def test_estimators_without_relaxed_values_are_not_watched(monkeypatch):
    monkeypatch.setattr("pyro_discrete.steps.run.WatchJumps", None)
    model, guide, _ = pair(JUMPS["where"])
    for estimator in ("rloo", "double_cv", "reinforce", RELAX(black_box=True)):
        TraceELBO(estimator, num_particles=2).loss_and_grads(model, guide)
