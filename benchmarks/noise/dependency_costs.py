"""Gradient variance with costs that hold what a draw can change, beside full costs, on chains and trees of bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
import typer
from torch import Tensor, nn

from pyro_discrete import TraceELBO
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.inspection.dependencies import UNKNOWN
from pyro_discrete.inspection.wiring import Wiring

__all__ = ["WIRINGS", "Wired", "variance"]


class Wired(nn.Module):
    """Bits that are each other's parents, in the model by `parents` and in the guide by `guide_parents`.

    Every bit that is nobody's parent in the model is seen through noise. Parameters are drawn with a fixed seed.
    """

    def __init__(self, order: list[int], parents: dict[int, list[int]], guide: dict[int, list[int]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = len(parents)
        self.order, self.parents, self.guide_parents = order, parents, guide
        self.bias = nn.Parameter(0.5 * torch.randn(size, generator=generator))
        self.weight = nn.Parameter(0.7 * torch.randn(size, size, generator=generator))
        self.strength = 1.5 * torch.randn(size, size, generator=generator)
        inner = {p for each in parents.values() for p in each}
        self.leaves = [i for i in range(size) if i not in inner]
        self.data = torch.randn(size, generator=generator)

    def model(self) -> None:
        bits: dict[int, Tensor] = {}
        for i in self.order:
            logit = sum((self.strength[i, p] * (bits[p] - 0.5) for p in self.parents[i]), torch.zeros(()))
            bits[i] = pyro.sample(f"z{i}", dist.Bernoulli(logits=logit))
            if i in self.leaves:
                pyro.sample(f"x{i}", dist.Normal(2 * bits[i], 1.0), obs=self.data[i])

    def guide(self) -> None:
        bits: dict[int, Tensor] = {}
        waiting = list(self.guide_parents)
        while waiting:
            i = next(k for k in waiting if all(p in bits for p in self.guide_parents[k]))
            waiting.remove(i)
            logit = self.bias[i] + sum((self.weight[i, p] * (bits[p] - 0.5) for p in self.guide_parents[i]), 0.0)
            bits[i] = pyro.sample(f"z{i}", dist.Bernoulli(logits=logit))


def chain(length: int, guide: str) -> Wired:
    """The model from the top bit down to the data; the guide apart, or from the data up."""
    parents = {i: [i + 1] if i + 1 < length else [] for i in range(length)}
    up = {i: [i - 1] if i > 0 and guide == "up" else [] for i in range(length)}
    return Wired(list(reversed(range(length))), parents, up)


def tree(size: int, guide: str) -> Wired:
    """The model from the root to the leaves of a binary tree; the guide apart, or from the root as well."""
    parents = {i: [(i - 1) // 2] if i else [] for i in range(size)}
    return Wired(list(range(size)), parents, parents if guide == "down" else {i: [] for i in range(size)})


WIRINGS: dict[str, Callable[[bool], Wired]] = {
    "chain of 20, guide of separate bits": lambda small: chain(4 if small else 20, "apart"),
    "chain of 20, guide from the data up": lambda small: chain(4 if small else 20, "up"),
    "tree of 31, guide of separate bits": lambda small: tree(7 if small else 31, "apart"),
    "tree of 31, guide from the root down": lambda small: tree(7 if small else 31, "down"),
}


def variance(program: Wired, estimator: str, particles: int, draws: int, known: bool) -> float:
    """The variance of the guide's gradient, summed over its parameters; `known=False` keeps full costs."""
    torch.manual_seed(0)
    elbo = TraceELBO(estimator, num_particles=particles)
    elbo.loss(program.model, program.guide)
    forgotten = nullcontext() if known else mock.patch.object(Wiring, "of", return_value=UNKNOWN)
    samples = []
    for _ in range(draws):
        program.zero_grad()
        with forgotten:
            elbo.loss_and_grads(program.model, program.guide)
        gradients = [p.grad for p in program.parameters() if p.grad is not None]
        samples.append(torch.cat([g.flatten() for g in gradients]))
    return float(torch.stack(samples).var(0).sum())


def main(
    draws: Annotated[int, typer.Option(help="Gradients for each variance.", min=2)] = 400,
    small: Annotated[bool, typer.Option("--small", help="A few bits alone.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/dependency-costs"),
) -> None:
    """Measure each estimator on each wiring with both kinds of costs; print a table, save the figures."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("| wiring | estimator | full costs | what a draw can change | ratio |\n| --- | --- | --- | --- | --- |")
    for name, make in WIRINGS.items():
        for estimator, particles in (("reinforce", 1), ("rloo", 4), ("disarm", 1)):
            full, saved = (variance(make(small), estimator, particles, draws, known) for known in (False, True))
            rows.append({"wiring": name, "estimator": estimator, "full": full, "saved": saved, "draws": draws})
            print(f"| {name} | `{estimator}` | {full:.3g} | {saved:.3g} | {full / saved:.1f} |", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "dependency_costs.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
