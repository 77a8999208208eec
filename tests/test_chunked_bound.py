"""A bound's particles in chunks: the same gradient with less held at once."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import TraceIWELBO
from pyro_discrete.diagnostics.bound_programs import bounded
from pyro_discrete.errors import SettingError
from pyro_discrete.testing import assert_contract, check_elbo
from tests.support.bounds import PROGRAMS

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


class Pair:
    """One discrete site a datum under subsampling, a term that the particles share, and which rows were run."""

    def __init__(self, family: str = "bernoulli", shared: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights, self.slopes, self.level = (
            torch.randn(3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
        )
        self.family, self.shared = family, shared
        self.rows: list[int] = []

    def site(self, logits: Tensor) -> Any:
        if self.family == "normal":
            return dist.Normal(logits, 1.0)
        if self.family == "categorical":
            return dist.Categorical(logits=torch.stack([logits, -logits, 0 * logits], -1))
        return dist.Bernoulli(logits=logits)

    def model(self) -> None:
        level = pyro.sample("level", dist.Bernoulli(logits=self.level[0])) if self.shared else 0.0
        pyro.sample("o", dist.Normal(self.level[0], 1.0), obs=torch.tensor(0.7, dtype=torch.float64))
        with pyro.plate("data", 6, subsample=torch.tensor([0, 2, 5])):
            z = pyro.sample("z", self.site(self.weights[0].expand(3)))
            self.rows.append(z.shape[0] if z.dim() > 1 else 1)
            pyro.sample("x", dist.Normal(z * self.weights[1] + level, 1.0), obs=X)

    def guide(self) -> None:
        if self.shared:
            pyro.sample("level", dist.Bernoulli(logits=self.level[1]))
        with pyro.plate("data", 6, subsample=torch.tensor([0, 2, 5])):
            pyro.sample("z", self.site(self.slopes[0] * X + self.slopes[1]))

    def gradient(self, elbo: TraceIWELBO, seed: int = 0) -> list[Tensor]:
        elbo.loss(self.model, self.guide)  # plans
        self.rows = []
        torch.manual_seed(seed)
        step = elbo.gradients(self.model, self.guide)
        found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
        return [step.loss, *(found[id(p)] for p in (self.weights, self.slopes, self.level))]


@pytest.mark.parametrize("row_chunk", [1, 3, 1000])
@pytest.mark.parametrize(
    ("estimator", "family"),
    [
        ("vimco", "bernoulli"),
        ("disarm", "bernoulli"),
        ("reinforce", "bernoulli"),
        ("reweighted_wake_sleep", "bernoulli"),
        ("gumbel_softmax", "bernoulli"),
        ("reinmax", "categorical"),
        ("reinforce", "normal"),
    ],
)
def test_chunks_have_the_gradient_of_all_particles(estimator: str, family: str, row_chunk: int) -> None:
    """One site's draws come in the same order whatever the chunks."""
    pair = Pair(family)
    settings: dict[str, Any] = {"num_particles": 5, "datum_plates": "data"}
    expected = pair.gradient(TraceIWELBO(estimator, **settings))
    found = pair.gradient(TraceIWELBO(estimator, row_chunk=row_chunk, **settings))
    columns = 2 if estimator == "disarm" else 1
    size = min(5, max(1, row_chunk // columns))
    assert pair.rows == [columns * min(size, 5 - start) for start in range(0, 5, size)] * 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", ["vimco", "disarm"])
def test_chunks_keep_the_contract_of_the_bound(estimator: str) -> None:
    """False-alarm probability 1e-6."""

    def make(particles: int, vectorize: bool) -> TraceIWELBO:
        settings = {"num_outer_samples": particles, "vectorize_particles": vectorize}
        return TraceIWELBO(estimator, num_particles=3, row_chunk=2 if vectorize else None, **settings)

    chosen = bounded([PROGRAMS["words_in_documents"]], 3)
    report = check_elbo(make, name=estimator, programs=chosen, draws=400, dtypes=(torch.float64,), false_alarm=1e-6)
    assert_contract(report)


def test_outer_samples_are_kept_together() -> None:
    pair = Pair()
    elbo = TraceIWELBO("vimco", num_particles=5, num_outer_samples=4, datum_plates="data", row_chunk=8)
    pair.gradient(elbo)
    assert pair.rows == [8, 8, 4] * 2


def test_loss_and_grads_is_that_of_gradients() -> None:
    pair = Pair()
    elbo = TraceIWELBO("vimco", num_particles=5, datum_plates="data", row_chunk=2)
    loss, *expected = pair.gradient(elbo)
    torch.manual_seed(0)
    assert elbo.loss_and_grads(pair.model, pair.guide) == loss.item()
    for parameter, gradient in zip((pair.weights, pair.slopes, pair.level), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("settings", "shared", "told"),
    [
        ({"estimator": "vimco", "dreg": True}, False, "dreg"),
        ({"estimator": {"z": "vimco", "level": "reinforce"}}, True, "share site 'level'"),
        ({"estimator": "nvil", "num_outer_samples": 2}, False, "'nvil' of site 'z' learns"),
        ({"estimator": "vimco", "vectorize_particles": False}, False, "not run at once"),
    ],
)
def test_what_cannot_be_chunked_is_refused(settings: dict[str, Any], shared: bool, told: str) -> None:
    pair = Pair("normal" if "dreg" in settings else "bernoulli", shared)
    elbo = TraceIWELBO(**settings, num_particles=4, row_chunk=2, datum_plates="data")
    with pytest.raises(SettingError, match=told):
        elbo.loss_and_grads(pair.model, pair.guide)
