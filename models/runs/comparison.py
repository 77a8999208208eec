"""One program under several estimators: the same start, the same data, and their gradient noise at one shared point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.data.dataset import Dataset
from models.data.images import binarise_once
from models.runs.config import CHECKPOINT_NAME, RunConfig, build_elbo
from models.runs.estimators import bias
from models.runs.evaluation import GradientNoise, isolated
from models.runs.training import RunResult, Training, run
from pyro_discrete.diagnostics import EstimatorComparison, compare_estimators

__all__ = ["Comparison", "Row", "compare", "measure"]

WARM_UP = 200
"""Batches on which an estimator learns its baselines at the shared point before its noise is measured there."""
DRAWS = 200
"""Gradient estimates from which a variance is computed."""


@dataclass(frozen=True)
class Row:
    """One estimator's result; bounds in nats per element, from hard samples."""

    result: RunResult
    noise: GradientNoise

    @property
    def estimator(self) -> str:
        return self.result.training.config.estimator

    def to_dict(self) -> dict[str, Any]:
        steps, curve = self.result.metrics.curve("test_elbo")
        return {
            "estimator": self.estimator,
            "bias": bias(self.estimator),
            "particles": self.result.training.config.particles,
            **self.result.summary,
            "gradient_variance": {"guide": self.noise.guide, "model": self.noise.model, "draws": self.noise.draws},
            "test_elbo_curve": {"step": steps, "nats": curve},
        }


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked for, and the estimator at whose last parameters all gradients were `measured`.

    `batch`: the elements that they were measured on, of whose joint objective `measured` tells.
    """

    rows: list[Row]
    shared_point: str
    measured: EstimatorComparison
    batch: int

    @property
    def config(self) -> RunConfig:
        return self.rows[0].result.training.config

    @property
    def best(self) -> Row:
        """The row with the highest discrete test ELBO."""
        return max(self.rows, key=lambda row: row.result.bounds.elbo)

    def to_dict(self) -> dict[str, Any]:
        shared = self.config.to_dict()
        for own in ("estimator", "particles", "temperature"):
            del shared[own]
        point = f"parameters at the last step of {self.shared_point}; one batch of {self.config.batch_size}"
        return {"config": shared, "gradient_variance_at": point, "rows": [row.to_dict() for row in self.rows]}


def compare(
    configs: Sequence[RunConfig],
    data: Dataset,
    out: Path | None = None,
    *,
    resume: bool = False,
    checkpoint_every: int = 500,
    bound_samples: int = 100,
) -> Comparison:
    """Train under each config (they differ in the estimator) and measure all gradient noise at the best run's end.

    With `out`, each run has a folder of its own there; with `resume`, runs go on where they stopped. Raises what `run`
    raises.
    """
    for config in configs:
        build_elbo(config)  # a setting that one of them refuses should not cost the runs of the others
    results: list[RunResult] = []
    for config in configs:
        folder = None if out is None else out / config.estimator
        started = folder is not None and (folder / CHECKPOINT_NAME).exists()
        results.append(
            run(
                config,
                data,
                folder,
                resume=resume and started,
                checkpoint_every=checkpoint_every,
                bound_samples=bound_samples,
            )
        )
    best = max(results, key=lambda result: result.bounds.elbo)
    point = best.training.program.state_dict()
    measured = measure(point, configs, data)
    size = min(configs[0].batch_size, len(data.train))
    rows = [Row(result, _noise(measured, result.training.config.estimator, size)) for result in results]
    return Comparison(rows, best.training.config.estimator, measured, size)


def _noise(measured: EstimatorComparison, estimator: str, batch: int) -> GradientNoise:
    of = measured.dataset.sel(estimator=estimator)
    variances = {str(name): float(of["variance"].sel(parameter=name)) for name in of["parameter"].values}
    return GradientNoise.of(variances, batch, int(of["draws"]))


def measure(point: dict[str, torch.Tensor], configs: Sequence[RunConfig], data: Dataset) -> EstimatorComparison:
    """The configs' estimators at the program parameters `point`, on one batch of training elements.

    Only what an estimator itself learns is trained beforehand, on `WARM_UP` other batches: baselines fitted elsewhere
    would tell of their own past, not of this point.
    """
    config = configs[0]
    with isolated(config.seed):
        training = Training(config, data)
        program = training.program
        program.load_state_dict(point)
        return compare_estimators(
            program.model,
            program.guide,
            binarise_once(data.train[: config.batch_size], config.binarisation).to(config.device),
            estimators={each.estimator: build_elbo(each, rescaled=False) for each in configs},
            draws=DRAWS,
            warm_up=WARM_UP,
            next_batch=lambda: training.stream.next_batch().to(config.device),
            learning_rate=config.estimator_lr,
            progress=True,
        )
