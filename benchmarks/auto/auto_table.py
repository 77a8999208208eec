"""The table behind "auto": variance times time of every unbiased estimator, by kind and number of sites and size.

`python -m benchmarks.auto.auto_table` measures and writes `TABLE_FILE`, which "auto" reads; the same again goes on with
the cells that are missing.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from torch import Tensor, nn

from models.data.catalogue import load_images
from pyro_discrete import NVIL, Estimator, Family, TraceELBO, available_estimators
from pyro_discrete.checkpoints import write_atomically
from pyro_discrete.distributions import (
    Arborescence,
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    Structure,
)
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.planning.automatic import TABLE_FILE, multiply_adds

__all__ = ["Cell", "Layers", "Shape", "candidates", "cells", "measure_cell", "products_of", "score"]

MANY = 1 << 20
"""Joint values of a site that are too many to be listed."""


@dataclass(frozen=True)
class Shape:
    """A program's size: images of a batch and pixels along a side, elements and values of a site, hidden units.

    `chosen`: of so many of the elements a site is a subset, if it is one. `law`: another structure of which a site is
    one, of so many elements: items, rows, links or nodes; `values` are the states of a chain.
    """

    batch: int
    side: int
    elements: int
    values: int
    hidden: int = 0
    chosen: int = 0
    law: type[Structure] | None = None

    @property
    def width(self) -> int:
        """Numbers of a value, as the networks read it."""
        if self.law is not None:
            choices = self.values if self.law is LinearChain else self.elements
            return (self.elements - (self.law is Arborescence)) * choices
        return self.elements * (self.values if self.values > 2 else 1)

    @property
    def parameters(self) -> tuple[int, ...]:
        """The shape of a site's logits."""
        n = self.elements
        if self.law is None or self.law is PlackettLuce:
            return (n if self.law else self.width,)
        return (n, self.values, self.values) if self.law is LinearChain else (n, n)

    def __str__(self) -> str:
        images = f"{self.batch} images of {self.side} x {self.side}, {self.elements} x {self.values} values"
        if self.law is not None:
            states = f" of {self.values} states" if self.law is LinearChain else ""
            images = f"{self.batch} images of {self.side} x {self.side}, {self.elements} {LAWS[self.law]}{states}"
        elif self.chosen:
            images = f"{self.batch} images of {self.side} x {self.side}, {self.chosen} of {self.elements} items"
        return images + (f", {self.hidden} hidden units" if self.hidden else "")


SMALL = {
    Family.BERNOULLI: {8: Shape(20, 8, 3, 2), 64: Shape(20, 8, 6, 2)},
    Family.ONE_HOT: {8: Shape(20, 8, 1, 8), 64: Shape(20, 8, 2, 8)},
    Family.STRUCTURE: {8: Shape(20, 8, 4, 2, chosen=2), 64: Shape(20, 8, 8, 2, chosen=3)},
}
"""For each family, the number of joint values of a site and the program that has such sites."""
SIZES = {
    Family.BERNOULLI: [
        *(Shape(20, 8, 30, 2), Shape(50, 8, 64, 2), Shape(50, 8, 200, 2)),
        *(Shape(50, 8, 200, 2, hidden=200), Shape(100, 28, 200, 2), Shape(100, 28, 200, 2, hidden=200)),
    ],
    Family.ONE_HOT: [
        *(Shape(20, 8, 5, 10), Shape(50, 8, 20, 10), Shape(50, 8, 20, 10, hidden=200)),
        *(Shape(100, 28, 20, 10), Shape(100, 28, 20, 10, hidden=200)),
    ],
    Family.STRUCTURE: [Shape(20, 8, 30, 2, chosen=10)],
    Family.DISCRETE: [Shape(20, 8, 8, 0)],
}
"""The same for sites of many joint values. A Categorical is looked up as a OneHotCategorical. Structures
without cells of their own are looked up as subsets, which every estimator for structures serves."""
LAWS: dict[type[Structure], str] = {
    PlackettLuce: "items in order",
    SequentialMatching: "rows matched in turn",
    GibbsMatching: "rows matched",
    LinearChain: "links",
    Arborescence: "nodes of a tree",
}
"""Structures with cells of their own, and what a site's elements are."""
LARGE_STRUCTURES: dict[type[Structure], Shape] = {
    law: Shape(20, 8, 20 if law is LinearChain else 10, 3, law=law) for law in LAWS
}
DEPTHS, PARTICLES = (1, 2, 5), (1, 4)
STEPS = 2000
"""Of rloo, before a cell is measured."""
SLOWEST = 1.0
"""Seconds of two steps from which on an estimator is left out of a cell."""
LEAST_DRAWS = 12
LEFT_OUT = {"arm", "relax", "optimal_control_variate"}
"""Estimators of which another is the better half: `disarm`, `rebar`; and one that wants a function of the user's."""


@dataclass(frozen=True)
class Cell:
    """What is measured: kind and joint values of a site, layers of such sites, particles, and the program's size."""

    family: Family
    support: int
    depth: int
    particles: int
    shape: Shape

    def key(self) -> dict[str, Any]:
        """As the table names it: what is looked up, and the program."""
        program = Layers(self)
        held = self.shape.side**2 + 2 * self.depth * self.shape.width
        return {
            "family": self.shape.law.__name__ if self.shape.law else self.family.value,
            "support": self.support,
            "depth": self.depth,
            "particles": self.particles,
            "work": self.shape.batch * held + multiply_adds(program.guide, program.model),
            "program": str(self.shape),
        }


def cells() -> list[Cell]:
    """All that the table holds. Small supports in one layer are enumerated whatever it says."""
    small = [Cell(f, s, 2, k, shape) for f, shapes in SMALL.items() for s, shape in shapes.items() for k in PARTICLES]
    many = [
        Cell(family, MANY, depth, particles, shape)
        for family, shapes in SIZES.items()
        for shape, depth, particles in product(shapes, DEPTHS, PARTICLES)
        if depth == 1 or not shape.hidden or shape.side == 8
        if depth < 5 or (shape.side == 8 and not shape.hidden and not shape.chosen)
    ]
    structures = [
        Cell(Family.STRUCTURE, MANY, depth, particles, shape)
        for depth, shape, particles in product((1, 2), LARGE_STRUCTURES.values(), PARTICLES)
    ]
    return small + many + structures


class Layers(nn.Module):
    """A belief network of sites of one family, one above the other, on the digits, enlarged where it is to be large."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.family, self.shape = cell.family, cell.shape
        sizes = [cell.shape.side**2] + [cell.shape.width] * cell.depth
        logits = [cell.shape.side**2] + [math.prod(cell.shape.parameters)] * cell.depth
        self.up = nn.ModuleList(self.network(a, b) for a, b in zip(sizes[:-1], logits[1:], strict=True))
        self.down = nn.ModuleList(self.network(b, a) for a, b in zip(logits[:-1], sizes[1:], strict=True))
        self.top = nn.Parameter(torch.zeros(logits[-1]))
        images = load_images("digits").train.reshape(-1, 1, 8, 8)
        self.images = nn.functional.interpolate(images, size=(cell.shape.side,) * 2).flatten(1)
        last = [part for part in self.down[0].modules() if isinstance(part, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.copy_(torch.logit(self.images.mean(0).clamp(0.01, 0.99)))
        self.next_batch()

    def network(self, inputs: int, outputs: int) -> nn.Module:
        hidden = self.shape.hidden
        if not hidden:
            return nn.Linear(inputs, outputs)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(0.3), nn.Linear(hidden, outputs))

    def next_batch(self) -> None:
        self.data = self.images[torch.randint(len(self.images), (self.shape.batch,))].bernoulli()

    def site(self, logits: Tensor) -> Any:
        if self.family is Family.BERNOULLI:
            return dist.Bernoulli(logits=logits).to_event(1)
        if self.shape.law is not None:
            return self.shape.law(logits.unflatten(-1, self.shape.parameters))
        if self.family is Family.STRUCTURE:
            return KSubset(logits, self.shape.chosen)
        if self.family is Family.DISCRETE:
            return dist.Poisson(nn.functional.softplus(logits)).to_event(1)
        table = logits.unflatten(-1, (self.shape.elements, self.shape.values))
        return dist.OneHotCategorical(logits=table).to_event(1)

    def flat(self, value: Tensor) -> Tensor:
        if self.shape.law is not None:
            value = nn.functional.one_hot(value, self.shape.width // value.shape[-1]).to(self.top.dtype)
            return value.flatten(-2)
        return value.flatten(-2) if self.shape.values > 2 else value

    def model(self) -> None:
        with pyro.plate("data", self.shape.batch):
            depth = len(self.down)
            z = pyro.sample(f"z{depth}", self.site(self.top))
            for layer in range(depth - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.site(self.down[layer](self.flat(z))))
            pyro.sample("x", dist.Bernoulli(logits=self.down[0](self.flat(z))).to_event(1), obs=self.data)

    def guide(self) -> None:
        with pyro.plate("data", self.shape.batch):
            below = self.data
            for layer, network in enumerate(self.up, start=1):
                below = self.flat(pyro.sample(f"z{layer}", self.site(network(below))))


def score(
    model: Callable[[], Any],
    guide: Callable[[], Any],
    parameters: Sequence[Tensor],
    estimator: Estimator | str,
    particles: int,
    seconds: float,
) -> dict[str, float]:
    """Variance of the gradient of some parameters, milliseconds a step, and their product."""
    elbo = TraceELBO(copy.deepcopy(estimator), num_particles=particles)
    torch.manual_seed(0)
    elbo.loss_and_grads(model, guide)
    own = list(elbo.parameters())
    optimiser = torch.optim.Adam(own, lr=1e-2) if own else None
    samples, started, deadline = [], time.process_time(), time.process_time() + seconds
    warming = 15 if own else 1
    while len(samples) < LEAST_DRAWS or (time.process_time() < deadline and len(samples) < 400):
        for parameter in parameters:
            parameter.grad = None
        elbo.loss_and_grads(model, guide)
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
        warming -= 1
        if warming < 0:
            samples.append(
                torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
            )
        elif warming == 0:
            started, deadline = time.process_time(), time.process_time() + seconds
    ms = 1e3 * (time.process_time() - started) / len(samples)
    variance = float(torch.stack(samples).double().var(0).sum())
    return {"variance": variance, "ms": ms, "product": variance * ms}


def candidates(family: Family | None) -> dict[str, Estimator]:
    """The unbiased estimators that serve a family (None: any), and those that are but for their scale, without it."""
    known = {n: e for n, e in available_estimators().items() if family is None or family in e.families}
    found = {n: e.cls() for n, e in known.items() if e.unbiased}
    kept = {n: e for n, e in found.items() if n not in LEFT_OUT}
    return {**kept, "nvil": NVIL(variance_normalisation=False)}


@lru_cache(maxsize=1)
def trained(cell: Cell, steps: int) -> Layers:
    """The program of a cell, away from its start, where f is next to linear."""
    program = Layers(cell)
    optimiser = torch.optim.Adam(program.parameters(), lr=1e-3)
    elbo = TraceELBO("rloo", num_particles=2)
    torch.manual_seed(0)
    for _ in range(steps):
        optimiser.zero_grad()
        elbo.loss_and_grads(program.model, program.guide)
        optimiser.step()
        program.next_batch()
    return program


def measure_cell(cell: Cell, seconds: float, steps: int = STEPS) -> list[list[Any]]:
    """Names and relative products of what serves a cell, the best first."""
    program = trained(replace(cell, particles=1), steps)
    up = list(program.up.parameters())
    products = products_of(program.model, program.guide, up, candidates(cell.family), cell.particles, seconds)
    best = min(v for v in products.values() if v > 0)
    return [[name, float(f"{v / best:.3g}")] for name, v in sorted(products.items(), key=lambda item: item[1])]


def products_of(
    model: Callable[[], Any],
    guide: Callable[[], Any],
    parameters: Sequence[Tensor],
    estimators: Mapping[str, Estimator | str],
    particles: int,
    seconds: float,
) -> dict[str, float]:
    """Variance times milliseconds of each estimator that the program allows and that is not too slow."""
    products = {}
    for name, estimator in estimators.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                first = TraceELBO(copy.deepcopy(estimator), num_particles=particles)
                for _ in range(2):
                    started = time.process_time()
                    first.loss_and_grads(model, guide)
                if time.process_time() - started < SLOWEST:
                    products[name] = score(model, guide, parameters, estimator, particles, seconds)["product"]
        except (DiscreteInferenceError, RuntimeError):
            continue
    return products


def main(
    seconds: Annotated[float, typer.Option(help="For each estimator in each cell.")] = 0.3,
    only: Annotated[int, typer.Option(help="Cells at most; 0: all.")] = 0,
    steps: Annotated[int, typer.Option(help="Of rloo, before a cell is measured.")] = STEPS,
    out: Annotated[Path, typer.Option(help="The table, which is gone on with.")] = TABLE_FILE,
) -> None:
    """Measure the cells that the table does not have, and write it."""
    torch.set_num_threads(1)
    measured: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    done = [{name: value for name, value in row.items() if name != "ranking"} for row in measured]
    missing = [cell for cell in cells() if cell.key() not in done]
    for cell in missing[: only or None]:
        key, ranking = cell.key(), measure_cell(cell, seconds, steps)
        measured.append({**key, "ranking": ranking})
        print(*key.values(), ranking[:4], flush=True)
        lines = ",\n".join(json.dumps(row) for row in measured)
        write_atomically(out, f"[\n{lines}\n]\n")


if __name__ == "__main__":
    typer.run(main)
