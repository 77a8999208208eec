"""A captured step gives what the eager one gives, bit for bit, whatever the estimator."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_discrete import (
    NVIL,
    ExponentialDecay,
    GumbelSoftmax,
    LinearDecay,
    TraceELBO,
    TraceExpectation,
    TraceIWELBO,
)
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.testing import discover_estimators
from pyro_discrete.testing.small_programs.program import Program
from tests.support.captured_programs import a_program_for


def run(program: Program, estimator: Estimator, compile: Any, steps: int = 5) -> tuple[list[Any], DiscreteELBO]:
    """Losses, gradients and the estimators' state after some steps of gradient descent."""
    seen: list[Any] = []
    with program.running(torch.float32) as pair:
        bound = TraceIWELBO if estimator.importance_weighted else TraceELBO
        elbo = bound(copy.deepcopy(estimator), num_particles=max(2, estimator.min_particles), compile=compile)
        torch.manual_seed(3)
        for _ in range(steps):
            seen.append(torch.tensor(elbo.loss_and_grads(pair.model, pair.guide, *pair.args)))
            parameters = {id(p): p for p in [*pair.parameters.values(), *elbo.parameters()]}
            with torch.no_grad():
                for parameter in parameters.values():
                    if parameter.grad is not None:
                        seen.append(parameter.grad.clone())
                        parameter.sub_(0.01 * parameter.grad)
                        parameter.grad = None
        seen += [value for value in elbo.state_dict().values() if torch.is_tensor(value)]
    return seen, elbo


VARIANTS = [
    pytest.param(variant, id=f"{cls.name}-{i}", marks=[pytest.mark.slow] if i > 0 else [])
    for cls in discover_estimators()
    for i, variant in enumerate(cls.variants())
]


@pytest.mark.parametrize("estimator", VARIANTS)
def test_graph_equals_eager(estimator: Estimator) -> None:
    program = a_program_for(estimator)
    expected, _ = run(program, estimator, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, elbo = run(program, estimator, "graph")
    assert elbo.captures is not None
    assert (elbo.captures.count, elbo.captures.made) == (1, 1), str(elbo.captures)
    assert len(expected) == len(got)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


class Network:
    """A program with everything at once: modules, a constrained param, a subsampled plate, dropout, a float."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(8, 5), nn.Dropout(0.3), nn.Linear(5, 4)).to(dtype)
        self.decoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).to(dtype)
        self.data = (torch.rand(20, 8) > 0.5).to(dtype)
        self.dtype = dtype

    def model(self, x: Tensor, weight: float) -> None:
        pyro.module("decoder", self.decoder)
        prior = pyro.param("prior", torch.full((4,), 0.4, dtype=self.dtype), dist.constraints.unit_interval)
        with pyro.plate("data", 20, subsample_size=6) as i:
            with pyro.poutine.scale(scale=weight):
                z = pyro.sample("z", dist.Bernoulli(prior).expand([6, 4]).to_event(1))
            logits = self.decoder(z.reshape(-1, 4)).reshape(*z.shape[:-1], 8)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x[i])

    def guide(self, x: Tensor, weight: float) -> None:
        with pyro.plate("data", 20, subsample_size=6) as i:
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x[i])).to_event(1))

    def parameters(self) -> list[Tensor]:
        return [
            *self.encoder.parameters(),
            *self.decoder.parameters(),
            *self.encoder.buffers(),
            *self.decoder.buffers(),
        ]


def trained(compile: Any, dtype: torch.dtype, estimator: Any, **settings: Any) -> tuple[list[Any], Network, TraceELBO]:
    pyro.clear_param_store()
    network = Network(dtype)
    elbo = TraceELBO(estimator, compile=compile, vectorize_particles=False, **settings)  # batch statistics mix rows
    svi = SVI(network.model, network.guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    torch.manual_seed(1)
    losses = [svi.step(network.data, 1 - 1 / (2 + i)) for i in range(12)]
    return losses, network, elbo


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings", [{"estimator": "rloo", "num_particles": 3}, {"estimator": {"z": NVIL(learning_rate=0.01)}}]
)
def test_svi_with_everything(settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Subsampling, dropout, batch statistics, an annealed float, a constrained param, an own optimiser."""
    expected, by_hand, eager = trained(False, dtype, **copy.deepcopy(settings))
    stored = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    got, captured, elbo = trained("graph", dtype, **settings)
    assert elbo.captures is not None
    assert elbo.captures.count == 1, str(elbo.captures)
    assert got == expected
    assert all(torch.equal(a, b) for a, b in zip(by_hand.parameters(), captured.parameters(), strict=True))
    assert set(pyro.get_param_store().keys()) == set(stored)
    assert all(torch.equal(value, stored[name]) for name, value in pyro.get_param_store().items())
    states = (eager.state_dict(), elbo.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True) if torch.is_tensor(a)
    )


def reward_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("reward", (z * x).sin())


def reward_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x * pyro.param("slope", torch.tensor(0.4))))


def impossible_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])))
        pyro.sample("x", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * z, 1.0), obs=x)


def impossible_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7, 0.0]).expand(len(x), 3)))


def test_exact_sums_leave_out_what_is_impossible():
    """Values of probability zero, whose cost is infinite or no number."""
    x, results = torch.linspace(-2, 2, 6), []
    for compile in (False, "graph"):
        pyro.clear_param_store()
        elbo = TraceELBO("enumerate", compile=compile)
        svi = SVI(impossible_model, impossible_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        results.append(([svi.step(x) for _ in range(6)], pyro.param("slope").item()))
    assert str(elbo.captures).startswith("1 captured step(s), 1 made")
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-6)


OBJECTIVES: dict[str, Callable[[Any], DiscreteELBO]] = {
    "expectation": lambda compile: TraceExpectation("rloo", num_particles=3, compile=compile),
    "bound": lambda compile: TraceIWELBO("disarm", num_particles=3, compile=compile),
    "annealed": lambda compile: TraceELBO(
        "rloo", num_particles=2, kl_weight=LinearDecay(0.1, 1.0, steps=8), compile=compile
    ),
    "temperature": lambda compile: TraceELBO(
        GumbelSoftmax(temperature=ExponentialDecay(1.0, 0.1, rate=0.2)), compile=compile
    ),
    "dict": lambda compile: TraceELBO({"z": "disarm"}, compile=compile),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_and_schedules(objective: str) -> None:
    x, results = torch.linspace(-2, 2, 6), []
    for compile in (False, "graph"):
        pyro.clear_param_store()
        elbo = OBJECTIVES[objective](compile)
        svi = SVI(reward_model, reward_guide, pyro.optim.Adam({"lr": 0.05}), elbo)
        torch.manual_seed(2)
        losses = [svi.step(x) for _ in range(10)]
        results.append((losses, pyro.param("slope").item(), int(elbo.step)))
        assert compile is False or str(elbo.captures).startswith("1 captured step(s), 1 made"), str(elbo.captures)
    assert results[0] == results[1]
