"""A long run on Fashion-MNIST with captured steps: how far an estimator gets, by train and test bounds.

Protocol: 200 Bernoulli latents, encoder 784-200-200-200 and decoder 200-200-200-784 with LeakyReLU(0.3), uniform prior
fixed, batch 100, each batch binarised anew, Adam 3e-4 (what an estimator learns: 1e-3), two draws. Published runs have
1e6 steps.

    python -m benchmarks.learning.long_run --estimator rloo --steps 50000 --out runs/long-rloo

A run that was stopped goes on by the same command, bit for bit from its last checkpoint; `--resume` insists that there
is one. `log.jsonl` has a line every 1000 steps: the training bound of those steps, milliseconds a step, seconds so far.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import pyro
import torch

from models.data.catalogue import load_data
from models.data.images import Images, binarise_once
from models.programs.sbn import SigmoidBeliefNetwork
from models.runs.evaluation import bounds
from models.runs.folder import taken
from models.runs.recording import Metrics
from pyro_discrete import FitState, TraceELBO, fit
from pyro_discrete.checkpoints import load_checkpoint, write_atomically

SETTINGS = {"rloo": 2, "disarm": 1, "double_cv": 2, "rodeo": 2, "arms": 1}
"""Particles, so that the model is evaluated at two draws a step."""
LOG_EVERY, BATCH = 1000, 100


class Log:
    """A callback of `fit` that writes a line at each record, and ends the run when its minutes are over.

    `spent`: seconds in the steps of this run and of those that it goes on from.
    """

    every = LOG_EVERY

    def __init__(self, metrics: Metrics, minutes: float) -> None:
        self.metrics, self.minutes = metrics, minutes
        self.spent, self._since, self._begun = 0.0, time.perf_counter(), time.perf_counter()

    def __call__(self, state: FitState) -> None:
        now = time.perf_counter()
        self.spent, self._since = self.spent + now - self._since, now
        line: Any = {"step": state.step, "elbo": -(state.loss or math.nan) / BATCH}
        line |= {"ms_per_step": state.records[-1]["ms_per_step"], "seconds": round(self.spent, 3)}
        self.metrics.append(line)
        if now - self._begun > 60 * self.minutes:
            state.stop(f"{self.minutes:g} minutes")

    def state_dict(self) -> dict[str, float]:
        return {"spent": self.spent + time.perf_counter() - self._since}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.spent, self._since = state["spent"], time.perf_counter()


def main() -> None:
    """Train, or go on, and print and write the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--estimator", choices=sorted(SETTINGS), default="rloo")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, whatever the steps")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, and start none")
    parser.add_argument("--compile", choices=("inductor", "graph", "no"), default="inductor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound-samples", type=int, default=100)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path, default=None)
    options = parser.parse_args()
    with taken(options.out):
        report = _run(options)
    print(json.dumps(report, indent=2))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    images = load_data(options.data, options.data_dir)
    assert isinstance(images, Images)
    checkpoint, metrics = options.out / "checkpoint.pt", Metrics(options.out / "log.jsonl")
    if options.resume or checkpoint.exists():
        metrics.resume(load_checkpoint(checkpoint)["step"])
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    program = SigmoidBeliefNetwork(images.train.mean(0), (200,), (200, 200))
    compiled = {"inductor": True, "graph": "graph", "no": False}[options.compile]
    elbo = TraceELBO(options.estimator, num_particles=SETTINGS[options.estimator], compile=compiled)
    elbo.loss(program.model, program.guide, binarise_once(images.train[:BATCH], "dynamic"))  # what it learns is built
    result = fit(
        program.model,
        program.guide,
        images.train,
        elbo,
        lr=3e-4,
        rates={"estimators.*": 1e-3} if any(True for _ in elbo.parameters()) else None,
        steps=options.steps,
        batch_size=BATCH,
        transform=torch.bernoulli,
        seed=options.seed,
        log_every=LOG_EVERY,
        callbacks=[Log(metrics, options.minutes)],
        checkpoint=checkpoint,
        checkpoint_every=2000,
        resume=True if options.resume else "auto",
        metadata={"estimator": options.estimator, "data": images.fingerprint},
    )
    report: dict[str, Any] = {"estimator": options.estimator, "steps": result.step, "stopped": result.stopped}
    report["ms_per_step"] = float(result.history["ms_per_step"].median())
    for split, grey, samples in (("train", images.train, 1), ("test", images.test, options.bound_samples)):
        found = bounds(program, binarise_once(grey, "dynamic"), samples)
        report |= {f"{split}_elbo": found.elbo, f"{split}_bound_{samples}": found.importance_weighted}
    write_atomically(options.out / "report.json", json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
