"""The demonstration behind `make demo`: two programs on the digits, each under several estimators."""

from __future__ import annotations

import json
from pathlib import Path

from models.data.catalogue import load_images
from models.reports.pictures import picture_comparisons
from models.runs.comparison import Comparison, compare
from models.runs.config import configure
from pyro_discrete.checkpoints import write_atomically

__all__ = ["ESTIMATORS", "demonstrate"]

ESTIMATORS = ("reinforce", "nvil", "rloo", "gumbel_softmax", "straight_through_gumbel_softmax")


def demonstrate(out: Path, steps: int, seed: int = 0) -> list[Comparison]:
    """Train both programs under `ESTIMATORS`, and write `demo.png` and `results.json` into the folder `out`.

    A sigmoid belief network small enough to enumerate comes last, with the exact gradient among its estimators.
    """
    images = load_images("digits")
    comparisons = []
    for program, latents, estimators in (
        ("sbn", None, ESTIMATORS),
        ("categorical_vae", None, ESTIMATORS),
        ("sbn", 6, (*ESTIMATORS[:4], "enumerate")),
    ):
        configs = [configure(program, name, latents=latents, steps=steps, seed=seed) for name in estimators]
        comparisons.append(compare(configs, images))
    results = [comparison.to_dict() for comparison in comparisons]
    write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")
    picture_comparisons(comparisons, images, out / "demo.png")
    return comparisons
