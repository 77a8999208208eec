"""On the same draws chunks have the loss and the gradient of one run, and the estimators learn the same from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import TraceELBO, TraceExpectation, TraceIWELBO
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.families import Family
from pyro_discrete.testing import discover_estimators
from tests.support.same_draws import SameDraws

PARTICLES = 5
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


class Pair:
    """Sites that all data share, discrete and reparameterised, and two layers of a datum's own, one of them discrete.

    Under subsampling; with a term outside of the data's plate; the shared sites depend on each other.
    """

    def __init__(self, family: Family, shared: bool, reward: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)

        def parameter(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

        self.family, self.shared, self.reward = family, shared, reward
        self.p, self.q = parameter(8), parameter(8)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.p, self.q]

    def site(self, logits: Tensor) -> Any:
        if self.family is Family.BERNOULLI:
            return dist.Bernoulli(logits=torch.stack([logits, -0.5 * logits], -1)).to_event(1)
        of = dist.OneHotCategorical if self.family is Family.ONE_HOT else dist.Categorical
        return of(logits=torch.stack([logits, -logits, 0 * logits], -1))

    def number(self, z: Tensor) -> Tensor:
        """Of a value `[..., *event]`, `[...]`."""
        if self.family is Family.CATEGORICAL:
            return z.to(X)
        return (z.to(X) * torch.arange(1.0, z.shape[-1] + 1, dtype=X.dtype)).sum(-1)

    def globals(self, w: Tensor, m: Any) -> Tensor | float:
        if not self.shared:
            return 0.0
        a = pyro.sample("a", dist.Bernoulli(logits=w[0]))
        b = pyro.sample("b", dist.Normal(w[1] + 0.3 * a, 1.3))
        c = pyro.sample("c", self.site(w[2] + 0.5 * b))
        return a + 0.7 * b - self.number(c)

    def model(self) -> None:
        w = self.p
        shared = self.globals(w, "model")
        pyro.sample("o", dist.Normal(w[3] + 0.2 * torch.as_tensor(shared), 1.0), obs=torch.tensor(0.7).double())
        with pyro.plate("data", 6, subsample=torch.tensor([0, 2, 5])):
            z = pyro.sample("z", self.site(w[4] + 0.1 * shared + 0 * X))
            y = pyro.sample("y", dist.Normal(w[5] * self.number(z), 1.0))
            mean = y * w[6] + 0.3 * shared + self.number(z)
            if self.reward:
                pyro.factor("reward", -(mean - X).square())
            else:
                pyro.sample("x", dist.Normal(mean, 1.0), obs=X)

    def guide(self) -> None:
        w = self.q
        shared = self.globals(w, "guide")
        with pyro.plate("data", 6, subsample=torch.tensor([0, 2, 5])):
            z = pyro.sample("z", self.site(w[3] * X + w[4] + 0.2 * shared))
            pyro.sample("y", dist.Normal(w[5] * X + w[6] * self.number(z), w[7].exp()))


def after_steps(
    make: Callable[..., Any], pair: Pair, draws: SameDraws, kept: list[dict[Any, Tensor]], chunk: int | None
) -> tuple[list[Tensor], Any]:
    """Losses, gradients and what the estimators have learned, over some steps."""
    elbo = make(row_chunk=chunk)
    guide = draws.around(pair.guide)
    torch.manual_seed(0)
    elbo.loss(pair.model, guide)  # plans
    rows = elbo.plan.rows * elbo.plan.particles if elbo.plan.layout.inner else elbo.plan.rows
    draws.front = elbo.plan.rows
    seen: list[Tensor] = []
    optimiser = torch.optim.SGD([p for p in elbo.parameters() if p.requires_grad] or [torch.zeros(())], 0.1)
    for number in range(2):
        if chunk is None:
            with draws.recording():
                step = elbo.gradients(pair.model, guide)
            kept.append(draws.kept)
        else:
            draws.kept, most = kept[number], max(1, chunk // rows)
            sizes = [min(most, PARTICLES - at) for at in range(0, PARTICLES, most)]
            with draws.given(sizes):
                step = elbo.gradients(pair.model, guide)
            assert draws.run == 2 * len(sizes) - 1
        found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
        own = list(elbo.parameters())
        seen += [step.loss, *(found.get(id(p), torch.zeros_like(p)) for p in [*pair.parameters, *own])]
        for parameter in own:
            parameter.grad = found.get(id(parameter))
        optimiser.step()
        seen += [t.clone() for t in elbo.estimators.state_tensors()]
    return seen, elbo


def check(make: Callable[..., Any], pair: Pair, times: int, samples: int = 1) -> Any:
    """Chunks of so many times the rows that the plan of one run has."""
    bound = make is not None and isinstance(make(None), TraceIWELBO)
    draws, kept = SameDraws(("a", "b", "c") if bound else (), samples=samples), []
    expected, whole = after_steps(make, pair, draws, kept, None)
    found, elbo = after_steps(make, pair, draws, kept, times * whole.plan.rows)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 if a.dtype == torch.float64 else 1e-6)
    return elbo


def family_of(estimator: Estimator) -> Family | None:
    served = (Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT)
    return next((f for f in served if f in estimator.families), None)


def takes_chunks(estimator: Estimator) -> bool:
    through_mean = estimator.name == "double_cv" and any(p.requires_grad for p in estimator.parameters())
    return estimator.name != "enumerate" and not through_mean


ESTIMATORS = [
    pytest.param(variant, id=f"{cls.name}-{i}", marks=[pytest.mark.slow] if i > 0 else [])
    for cls in discover_estimators()
    for i, variant in enumerate(cls.variants())
    if takes_chunks(variant) and family_of(variant) is not None
]


def fresh(estimator: Estimator) -> Estimator:
    return copy.deepcopy(estimator).double()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_of_the_importance_weighted_bound(estimator: Estimator, shared: bool) -> None:
    family = family_of(estimator)
    assert family is not None
    if estimator.slope_rows and not estimator.particles_apart:
        pytest.skip("slopes of all particles together are refused: tests/steps/test_chunks.py")
    pair, samples = Pair(family, shared), 2 if estimator.min_particles > 1 or shared else 1
    plain = estimator.importance_weighted or estimator.slope_rows or estimator.differentiates_costs
    on_shared = "reinforce" if plain else fresh(estimator)
    a = on_shared if family is Family.BERNOULLI else "reinforce"

    def make(row_chunk: int | None) -> TraceIWELBO:
        return TraceIWELBO(
            {"z": fresh(estimator)} | ({"a": a, "c": on_shared} if shared else {}),
            num_particles=PARTICLES,
            num_outer_samples=samples,
            datum_plates="data",
            row_chunk=row_chunk,
        )

    check(make, pair, 2 * samples, samples)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("estimator", ["vimco", "disarm", "nvil", "reinforce"])
def test_of_the_doubly_reparameterised_bound(estimator: str, shared: bool) -> None:
    pair = Pair(Family.BERNOULLI, shared)
    chosen = {"z": estimator} | ({"a": "reinforce", "c": "disarm"} if shared else {})

    def make(row_chunk: int | None) -> TraceIWELBO:
        settings: dict[str, Any] = {"num_particles": PARTICLES, "num_outer_samples": 2, "datum_plates": "data"}
        return TraceIWELBO(chosen, dreg=True, row_chunk=row_chunk, **settings)

    elbo = check(make, pair, 4, samples=2)
    assert elbo.plan.layout.doubly == {"y"}


@pytest.mark.parametrize("reward", [False, True], ids=["evidence", "reward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_of_independent_particles(estimator: Estimator, reward: bool) -> None:
    family = family_of(estimator)
    assert family is not None
    if estimator.importance_weighted:
        pytest.skip("of the importance-weighted bound alone")
    pair = Pair(family, shared=True, reward=reward)
    a = fresh(estimator) if family is Family.BERNOULLI else "reinforce"

    def make(row_chunk: int | None) -> TraceELBO | TraceExpectation:
        chosen = {"z": fresh(estimator), "a": a, "c": fresh(estimator)}
        return (TraceExpectation if reward else TraceELBO)(chosen, num_particles=PARTICLES, row_chunk=row_chunk)

    check(make, pair, 2)
