"""Rows in chunks, and a bound's particles in chunks: the same gradient with less held at once."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import TraceELBO, TraceIWELBO
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.testing import assert_contract, check_elbo, discover_estimators
from pyro_discrete.testing.small_programs import plates as plate_programs
from pyro_discrete.testing.small_programs import sites as site_programs
from pyro_discrete.testing.small_programs.bounds import bounded
from pyro_discrete.testing.small_programs.program import Program
from tests.support.bounds import PROGRAMS as BOUND_PROGRAMS

BOUND = TraceIWELBO("vimco", num_particles=7, row_chunk=3)
PROGRAMS = [p for m in (plate_programs, site_programs) for p in vars(m).values() if isinstance(p, Program)]
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def serves(estimator: Estimator) -> bool:
    special = estimator.name == "enumerate" or estimator.importance_weighted
    return not (special or (estimator.name == "double_cv" and any(p.requires_grad for p in estimator.parameters())))


VARIANTS = [
    pytest.param(variant, id=f"{cls.name}-{i}", marks=[pytest.mark.slow] if i > 0 else [])
    for cls in discover_estimators()
    for i, variant in enumerate(cls.variants())
    if serves(variant)
]


def after_steps(program: Program, estimator: Estimator, row_chunk: int | None) -> list[Tensor]:
    with program.running(torch.float64) as pair:
        elbo = TraceELBO(copy.deepcopy(estimator), num_particles=4, row_chunk=row_chunk)
        seen = []
        for seed in range(3):
            torch.manual_seed(seed)
            step = elbo.gradients(pair.model, pair.guide, *pair.args)
            found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
            every = [*pair.parameters.values(), *elbo.estimators.parameters()]
            seen += [step.loss, *(found.get(id(p), torch.zeros_like(p)) for p in every)]
        return [*seen, *elbo.estimators.buffers()]


@pytest.mark.parametrize("estimator", VARIANTS)
def test_one_chunk_of_all_rows_is_the_step_itself(estimator: Estimator) -> None:
    served = [p for p in PROGRAMS if p.families <= estimator.families and p.vectorizable]
    program = next((p for p in served if p.name in ("one_hot_plate", "fair_bernoulli")), served[0])
    for a, b in zip(after_steps(program, estimator, None), after_steps(program, estimator, 1000), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("estimator", ["rloo", "disarm"])
def test_chunks_keep_the_contract(estimator: str) -> None:
    """False-alarm probability 1e-4."""

    def make(particles: int, vectorize: bool) -> TraceELBO:
        chunk = max(2, particles // 3) if vectorize else None
        return TraceELBO(estimator, num_particles=particles, vectorize_particles=vectorize, row_chunk=chunk)

    chosen = [p for p in PROGRAMS if p.name in ("fair_bernoulli", "subsampled_plate")]
    report = check_elbo(make, name=estimator, min_particles=2, programs=chosen, draws=1000, dtypes=(torch.float64,))
    assert_contract(report)


class Seen:
    """A program that notes how many rows it is run over, on which data, and what is drawn."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.data: list[list[int]] = []
        self.drawn: list[list[float]] = []

    def model(self) -> None:
        with pyro.plate("data", 10, subsample_size=4):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            self.rows.append(z.shape[0] if z.dim() > 1 else 1)
            self.drawn.append(z.flatten().tolist())
            pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=torch.zeros(4))

    def guide(self) -> None:
        with pyro.plate("data", 10, subsample_size=4) as index:
            self.data.append(index.tolist())
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))).expand([4]))


def test_no_chunk_has_more_rows_and_all_see_the_same_data():
    program, elbo = Seen(), TraceELBO("rloo", num_particles=7, row_chunk=3)
    elbo.loss_and_grads(program.model, program.guide)
    program.rows, program.data = [], []
    elbo.loss_and_grads(program.model, program.guide)
    assert program.rows == [3, 3, 1] * 2
    assert len({tuple(each) for each in program.data}) == 1


@pytest.mark.parametrize("elbo", [TraceELBO("rloo", num_particles=7, row_chunk=3), BOUND], ids=["elbo", "bound"])
def test_the_second_run_of_a_chunk_draws_what_the_first_one_did(elbo: TraceELBO | TraceIWELBO) -> None:
    program = Seen()
    elbo.loss_and_grads(program.model, program.guide)
    program.drawn = []
    elbo.loss_and_grads(program.model, program.guide)
    assert program.drawn[:3] == program.drawn[3:]
    assert len({tuple(each) for each in program.data[-6:]}) == 1


def test_the_baseline_is_of_all_particles():
    """Costs are all the same, so leave-one-out leaves nothing, even where each particle is a chunk."""
    program, elbo = Seen(), TraceELBO("rloo", num_particles=6, row_chunk=1)
    elbo.loss_and_grads(program.model, program.guide)
    pyro.param("logit").grad = None
    elbo.loss_and_grads(program.model, program.guide)
    gradient = pyro.get_param_store()._params["logit"].grad
    assert gradient is not None
    assert gradient.abs().item() < 1e-5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"row_chunk": 0}, "row_chunk=0"),
        ({"row_chunk": 8, "compile": "graph"}, "without compile"),
        ({"row_chunk": 8, "estimator": "double_cv"}, "'double_cv' of site 'z' differentiates"),
        ({"row_chunk": 8, "vectorize_particles": False}, "not run at once"),
    ],
)
def test_what_cannot_be_run_in_chunks_is_refused(settings: dict[str, Any], told: str) -> None:
    program = Seen()
    with pytest.raises(SettingError, match=told):
        TraceELBO(**{"estimator": "rloo", "num_particles": 4, **settings}).loss_and_grads(program.model, program.guide)


def test_a_single_row_needs_no_chunks() -> None:
    program, elbo = Seen(), TraceELBO("reinforce", row_chunk=8)
    elbo.loss_and_grads(program.model, program.guide)
    assert elbo.plan.runs_once()


# A bound's particles in chunks


class Flattens(Reinforce):
    """Does not keep the dims of particles and plates in what it hands on."""

    def draw(self, site: SiteView) -> Draw:
        value = site.sample()
        return Draw(value.unsqueeze(0), extra={"noise": torch.zeros(value.numel())})


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
        elbo.gradients(self.model, self.guide)  # and sees what a step does of programs that count
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

    chosen = bounded([BOUND_PROGRAMS["words_in_documents"]], 3)
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
        ({"estimator": {"z": "vimco", "level": "rebar"}}, True, "'rebar' of site 'level', which they share"),
        ({"estimator": "muprop"}, False, "'muprop' of site 'z'"),
        ({"estimator": Flattens()}, False, "hands on 'noise' of shape"),
        ({"estimator": "vimco", "vectorize_particles": False}, False, "not run at once"),
    ],
)
def test_what_cannot_be_chunked_is_refused(settings: dict[str, Any], shared: bool, told: str) -> None:
    pair = Pair("bernoulli", shared)
    elbo = TraceIWELBO(**settings, num_particles=4, row_chunk=2, datum_plates="data")
    with pytest.raises(SettingError, match=told):
        elbo.loss_and_grads(pair.model, pair.guide)
