"""Rows in chunks: the same gradient with less held at once."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import TraceELBO, TraceIWELBO
from pyro_discrete.diagnostics import plate_programs, site_programs
from pyro_discrete.diagnostics.programs import Program
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.testing import assert_contract, check_elbo, discover_estimators

BOUND = TraceIWELBO("vimco", num_particles=7, row_chunk=3)
PROGRAMS = [p for m in (plate_programs, site_programs) for p in vars(m).values() if isinstance(p, Program)]


def serves(estimator: Estimator) -> bool:
    special = estimator.name == "enumerate" or estimator.importance_weighted
    return not (special or estimator.slope_rows or estimator.differentiates_costs)


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
        ({"row_chunk": 8, "estimator": "rebar"}, "'rebar'"),
        ({"row_chunk": 8, "vectorize_particles": False}, "not run at once"),
    ],
)
def test_what_cannot_be_run_in_chunks_is_refused(settings: dict[str, Any], told: str) -> None:
    program = Seen()
    with pytest.raises(SettingError, match=told):
        TraceELBO(**{"estimator": "rloo", "num_particles": 4, **settings}).loss_and_grads(program.model, program.guide)
