"""What each part of NVIL is worth: each switched off by itself, on a belief network of two stochastic layers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from benchmarks.noise.variance import measure
from models.data.catalogue import BatchStream, load_images
from models.data.images import Images, binarise_once
from models.programs.program import Program
from models.runs.config import RunConfig, build_program, configure
from models.runs.evaluation import bounds, isolated
from pyro_discrete import NVIL, TraceELBO
from pyro_discrete.checkpoints import write_atomically

__all__ = ["PARTS", "VARIANTS", "train_variant"]

PARTS = ("constant", "network", "variance_normalisation", "local_signals")
VARIANTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    **{f"without `{part}`": {part: False} for part in PARTS},
    "without any": dict.fromkeys(PARTS, False),
}


def train_variant(config: RunConfig, switches: Mapping[str, Any], images: Images) -> Program:
    """The program trained by NVIL with some parts switched off; the start and the batches depend on the seed alone."""
    with isolated(config.seed):
        program = build_program(config, images)
        elbo = TraceELBO(NVIL(**switches))
        stream = BatchStream(images.train, config.batch_size, config.binarisation, config.seed)
        with isolated(config.seed):
            elbo.loss(program.model, program.guide, binarise_once(images.train[: config.batch_size], "dynamic"))
        groups: list[dict[str, Any]] = [{"params": list(program.parameters()), "lr": config.lr}]
        own = list(elbo.parameters())
        if own:
            groups.append({"params": own, "lr": config.estimator_lr})
        optimiser = torch.optim.Adam(groups)
        for _ in tqdm(range(config.steps), desc=f"seed {config.seed}, {dict(switches)}", leave=False, disable=None):
            optimiser.zero_grad()
            elbo.loss_and_grads(program.model, program.guide, stream.next_batch())
            optimiser.step()
    return program


def variance_at(
    point: Mapping[str, Tensor], config: RunConfig, switches: Mapping[str, Any], images: Images, **limits: Any
) -> dict[str, float]:
    """The guide's gradient variance at `point`, as the variant has it and without its rescaling."""
    found = {}
    for name, more in (("as_trained", {}), ("unscaled", {"variance_normalisation": False})):
        elbo = TraceELBO(NVIL(**{**switches, **more}))
        measured = measure(point, config, images, **limits, elbo=elbo)
        found[name] = measured.guide
    return found


def section(result: Mapping[str, Any]) -> str:
    """The results as a section of markdown."""
    config, seeds = result["config"], result["seeds"]
    heads = [f"test ELBO, {seeds} seeds", "lowest to highest", "variance, unscaled", "variance as trained"]
    lines = [
        "## NVIL, part by part",
        "",
        f"| {config['layers']} layers of {config['latents']} units, {config['data']} | {' | '.join(heads)} |",
        "| --- " * (len(heads) + 1) + "|",
    ]
    for name, row in result["rows"].items():
        elbos = row["test_elbo"]
        spread = f"{min(elbos):.2f} to {max(elbos):.2f}"
        noise = row["variance"]
        numbers = f"{noise['unscaled']:,.2f} | {noise['as_trained']:,.2f}"
        lines.append(f"| {name} | {statistics.mean(elbos):.2f} | {spread} | {numbers} |")
    return "\n".join([*lines, ""])


def main(
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 2000,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.", min=1)] = 3,
    draws: Annotated[int, typer.Option(help="Gradient estimates for each variance.", min=2)] = 500,
    warm_up_steps: Annotated[int, typer.Option(help="Steps for the baselines before that.", min=0)] = 300,
    latents: Annotated[int, typer.Option(help="Units of each layer.", min=1)] = 200,
    data: Annotated[str, typer.Option(help="digits or fashion-mnist.")] = "digits",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/nvil-ablation"),
) -> None:
    """Train each variant of NVIL, measure their noise where the full one ended: nvil_ablation.json and .md."""
    torch.set_num_threads(1)
    images = load_images(data)
    test = binarise_once(images.test, "dynamic")
    configs = [
        configure("sbn", NVIL.name, data=data, layers=2, latents=latents, steps=steps, seed=seed)
        for seed in range(seeds)
    ]
    programs: dict[str, list[Program]] = {}
    for name, switches in tqdm(VARIANTS.items(), desc="training", unit="variant", disable=None):
        programs[name] = [train_variant(config, switches, images) for config in configs]
    point = programs["all parts"][0].state_dict()
    measured = replace(configs[0], estimator_lr=1e-2)
    limits = {"draws": draws, "seconds": 60.0, "warm_up_steps": warm_up_steps}
    rows = {}
    for name, switches in tqdm(VARIANTS.items(), desc="measuring", unit="variant", disable=None):
        elbos = [bounds(program, test, samples=10).elbo for program in programs[name]]
        noise = variance_at(point, measured, switches, images, **limits)
        rows[name] = {"switches": switches, "test_elbo": elbos, "variance": noise}
    result = {"config": configs[0].to_dict(), "seeds": seeds, "limits": limits, "rows": rows}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "nvil_ablation.json", json.dumps(result, indent=2) + "\n")
    write_atomically(out / "nvil_ablation.md", section(result))
    typer.echo(section(result))


if __name__ == "__main__":
    typer.run(main)
