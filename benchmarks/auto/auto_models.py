"""How near "auto" comes to the best hand-chosen unbiased estimator on the programs of models/: variance times time."""

from __future__ import annotations

import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.auto.auto_table import candidates, products_of
from models.data.catalogue import BatchStream, load_data
from models.runs.config import build_program, configure
from models.runs.evaluation import isolated
from pyro_discrete import Family, TraceELBO
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.planning.automatic import TABLE_FILE, ranking

__all__ = ["PROGRAMS", "compare_auto", "foretold"]

PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "sbn, 200 units": ("sbn", {}),
    "sbn, 2 layers of 50": ("sbn", {"layers": 2, "latents": 50}),
    "sbn, 6 units": ("sbn", {"latents": 6}),
    "categorical_vae, 20 x 10": ("categorical_vae", {}),
    "gmm": ("gmm", {"guide": "amortised"}),
    "lca": ("lca", {"guide": "amortised"}),
    "hmm": ("hmm", {"guide": "amortised"}),
}


def compare_auto(program: str, settings: dict[str, Any], particles: int, steps: int, seconds: float) -> dict[str, Any]:
    """Products of "auto" and of every unbiased estimator that serves, after some steps of rloo."""
    config = configure(program, "rloo", particles=2, **settings)
    data = load_data(config.data)
    with isolated(config.seed):
        built = build_program(config, data)
        stream = BatchStream(data.train, min(config.batch_size, 50), config.binarisation, config.seed)
        optimiser = torch.optim.Adam(built.parameters(), lr=1e-3)
        elbo = TraceELBO("rloo", num_particles=2)
        for _ in range(steps):
            optimiser.zero_grad()
            elbo.loss_and_grads(built.model, built.guide, stream.next_batch())
            optimiser.step()
        x = stream.next_batch()
        guide = [p for n, p in built.named_parameters() if "encoder" in n]
        model_of, guide_of = partial(built.model, x), partial(built.guide, x)
        chosen = TraceELBO(num_particles=particles)
        chosen.loss(model_of, guide_of)
        taken = sorted({site.estimator.partition("(")[0] for site in chosen.plan.sites})
        measured = candidates(None)
        if len(taken) > 1:  # else it is that estimator, whose measurement would only be repeated
            measured = {"auto": "auto", **measured}
        products = products_of(model_of, guide_of, guide, measured, particles, seconds)
    auto = products.pop("auto", products.get(taken[0], math.inf))
    best = min(products, key=lambda name: products[name])
    return {
        "particles": particles,
        "auto": taken,
        "best": best,
        "ratio": 1.0 if auto == products[best] else auto / products[best] if products[best] else math.inf,
        "products": {"auto": auto, **products},
    }


def foretold() -> list[float]:
    """For each cell of many joint values, its product for what the other cells would take; 1 if that is its best."""
    table = json.loads(TABLE_FILE.read_text())
    ratios = []
    for cell in table:
        if cell["support"] == max(other["support"] for other in table):
            others = [other for other in table if other is not cell]
            law = cell["family"]
            family = Family(law) if law in set(Family) else Family.STRUCTURE
            known = (family, math.inf, cell["depth"], cell["particles"], cell["work"], others, law)
            measured = dict(cell["ranking"])
            ratios.append(next(measured[name] for name in ranking(*known)[0] if name in measured))
    return ratios


def main(
    steps: Annotated[int, typer.Option(help="Of rloo before the comparison.", min=1)] = 2000,
    seconds: Annotated[float, typer.Option(help="For each estimator.")] = 0.2,
    only: Annotated[str, typer.Option(help="Programs, by the beginning of their name, separated by commas.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/auto-models"),
) -> None:
    """Print a table of "auto" beside the best estimator chosen by hand, and save the figures."""
    torch.set_num_threads(1)
    print(
        "| program | particles | auto takes | best by hand | auto / best |\n| --- | --- | --- | --- | --- |", flush=True
    )
    results: dict[str, Any] = {}
    for name, (program, settings) in PROGRAMS.items():
        if only and not name.startswith(tuple(only.split(","))):
            continue
        for particles in (1, 4):
            found = compare_auto(program, settings, particles, steps, seconds)
            results[f"{name}, {particles}"] = found
            auto = ", ".join(f"`{n}`" for n in found["auto"])
            print(f"| {name} | {particles} | {auto} | `{found['best']}` | {found['ratio']:.2f} |", flush=True)
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "auto_models.json", json.dumps(results, indent=2) + "\n")
    left_out = foretold()
    near = sum(ratio <= 1.3 for ratio in left_out)
    print(
        f"\nOf the table's {len(left_out)} cells with many joint values {near} are met within 1.3 by what the others "
        f"would take; geometric mean {statistics.geometric_mean(left_out):.2f}, at worst {max(left_out):.2f}."
    )


if __name__ == "__main__":
    typer.run(main)
