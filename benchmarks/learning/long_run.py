"""A long run on Fashion-MNIST with captured steps: how far an estimator gets, by train and test bounds.

Protocol: 200 Bernoulli latents, encoder 784-200-200-200 and decoder 200-200-200-784 with LeakyReLU(0.3), uniform prior
fixed, batch 100, each batch binarised anew, Adam 3e-4, two draws. Published runs have 1e6 steps.

    python -m benchmarks.learning.long_run --estimator rloo --steps 100000 --out runs/long-rloo

A run that was stopped goes on by the same command, from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyro
import torch

from models.data.catalogue import load_images
from models.data.images import binarise_once
from models.programs.sbn import SigmoidBeliefNetwork
from models.runs.evaluation import bounds
from pyro_discrete import TraceELBO, fit

SETTINGS = {"rloo": 2, "disarm": 1, "double_cv": 2, "rodeo": 2, "arms": 1}
"""Particles, so that the model is evaluated at two draws a step."""


def main() -> None:
    """Train, or go on, and print and write the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--estimator", choices=sorted(SETTINGS), default="rloo")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", choices=("inductor", "graph", "no"), default="inductor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound-samples", type=int, default=100)
    parser.add_argument("--data", default="fashion-mnist")
    options = parser.parse_args()
    images = load_images(options.data)
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    program = SigmoidBeliefNetwork(images.train.mean(0), (200,), (200, 200))
    compiled = {"inductor": True, "graph": "graph", "no": False}[options.compile]
    elbo = TraceELBO(options.estimator, num_particles=SETTINGS[options.estimator], compile=compiled)
    result = fit(
        program.model,
        program.guide,
        images.train,
        elbo,
        lr=3e-4,
        steps=options.steps,
        batch_size=100,
        transform=torch.bernoulli,
        seed=options.seed,
        log_every=1000,
        checkpoint=options.out / "checkpoint.pt",
        checkpoint_every=2000,
        resume="auto",
        metadata={"estimator": options.estimator, "data": images.fingerprint},
    )
    report = {"estimator": options.estimator, "steps": result.step}
    report["ms_per_step"] = float(result.history["ms_per_step"].median())
    for split, grey, samples in (("train", images.train, 1), ("test", images.test, options.bound_samples)):
        found = bounds(program, binarise_once(grey, "dynamic"), samples)
        report |= {f"{split}_elbo": found.elbo, f"{split}_bound_{samples}": found.importance_weighted}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
