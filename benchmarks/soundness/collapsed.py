"""What NUTS evaluates: log density and gradient of a model collapsed, beside Pyro's own enumeration inside NUTS.

    python -m benchmarks.soundness.collapsed --out runs/collapsed

Densities are compared in double precision at random points of the unconstrained space, and are to be equal to 1e-6.
Times are of potential and gradient in single precision, by turns; the ratio is the median of the paired ratios, with an
interval that holds it with 95% (bootstrap). Programs that Pyro cannot enumerate have a time alone: their densities are
held to closed forms by the tests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_discrete import collapse

Potential = Callable[[Mapping[str, Tensor]], Tensor]

POINTS = 5


def mixture(x: Tensor) -> None:
    """A mixture of three Gaussians."""
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(3)))
    locs = pyro.sample("locs", dist.Normal(x.new_zeros(3), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def chain(x: Tensor) -> None:
    """A hidden Markov model of three states."""
    moves = pyro.sample("moves", dist.Dirichlet(x.new_ones(3, 3)).to_event(1))
    locs = pyro.sample("locs", dist.Normal(x.new_zeros(3), 3.0).to_event(1))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(Vindex(moves)[..., z, :]))
        pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def groups(x: Tensor) -> None:
    """Classes of groups, and of their members: a plate in a plate."""
    locs = pyro.sample("locs", dist.Normal(x.new_zeros(2, 2), 3.0).to_event(2))
    share = pyro.sample("share", dist.Beta(x.new_ones(()), x.new_ones(())))
    x = x.reshape(10, -1)
    with pyro.plate("groups", x.shape[1], dim=-1):
        group = pyro.sample("group", dist.Bernoulli(share)).long()
        with pyro.plate("members", 10, dim=-2):
            member = pyro.sample("member", dist.Bernoulli(0.3 + 0.4 * group)).long()
            pyro.sample("x", dist.Normal(Vindex(locs)[..., group, member], 1.0), obs=x)


def causes(x: Tensor) -> None:
    """Six bits that explain a datum together."""
    effects = pyro.sample("effects", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_full((6,), 0.3)).to_event(1))
        pyro.sample("x", dist.Normal(z @ effects, 1.0), obs=x)


def counts(x: Tensor) -> None:
    """Poisson counts behind noisy readings."""
    rate = pyro.sample("rate", dist.Gamma(x.new_full((), 2.0), x.new_full((), 0.5)))
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(rate))
        pyro.sample("x", dist.Normal(n, 0.5), obs=x)


@dataclass(frozen=True)
class Case:
    """A program with so many data; `both` says whether Pyro can enumerate it."""

    model: Callable[[Tensor], None]
    size: int
    both: bool = True

    @property
    def name(self) -> str:
        return f"{self.model.__name__}, {self.size:,}"

    def data(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.size, generator=torch.Generator().manual_seed(0), dtype=torch.double).abs().to(dtype)


CASES = (
    Case(mixture, 200),
    Case(mixture, 2_000),
    Case(chain, 20),
    Case(chain, 60),
    Case(groups, 500),
    Case(causes, 200, both=False),
    Case(counts, 200, both=False),
)


def potentials(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Potential]]:
    """A point of the unconstrained space, and the potential as NUTS has it: of the collapsed model, then Pyro's own."""
    found, start = [], {}
    for model in [collapse(case.model), *([case.model] if case.both else [])]:
        pyro.set_rng_seed(0)
        begin, potential, _, _ = initialize_model(model, (case.data(dtype),))
        start = start or begin
        found.append(potential)
    return {n: v.detach().to(dtype) for n, v in start.items()}, found


def evaluated(potential: Potential, at: Mapping[str, Tensor]) -> tuple[float, list[Tensor]]:
    """The potential and its gradient."""
    values = {n: v.detach().clone().requires_grad_() for n, v in at.items()}
    energy = potential(values)
    return energy.item(), list(torch.autograd.grad(energy, list(values.values())))


def difference(case: Case) -> float:
    """The largest relative difference of both potentials, and of their gradients, over some points."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        start, found = potentials(case, torch.double)
        most, generator = 0.0, torch.Generator().manual_seed(1)
        for _ in range(POINTS):
            at = {n: torch.randn(v.shape, generator=generator) for n, v in start.items()}
            (one, slopes), (other, others) = (evaluated(each, at) for each in found)
            most = max(most, abs(one - other) / max(1.0, abs(other)))
            for a, b in zip(slopes, others, strict=True):
                most = max(most, float(((a - b).abs() / b.abs().clamp(min=1.0)).max()))
        return most
    finally:
        torch.set_default_dtype(default)


def times(case: Case, turns: int) -> np.ndarray:
    """Seconds of an evaluation, `[turns, ways]`: by turns, after one of each that is not counted."""
    start, found = potentials(case, torch.float)
    for each in found:
        evaluated(each, start)
    result = np.zeros((turns, len(found)))
    for turn in range(turns):
        for way in np.roll(np.arange(len(found)), turn):
            begin = time.process_time()
            evaluated(found[way], start)
            result[turn, way] = time.process_time() - begin
    return result


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """Of the median, with 95%."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (1000, len(ratios))), 1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def line(case: Case, turns: int) -> str:
    """A row of the table."""
    seconds = 1e3 * times(case, turns)
    ours = f"{np.median(seconds[:, 0]):.2f}"
    if not case.both:
        return f"| {case.name} | {ours} | | | |"
    ratios = seconds[:, 0] / seconds[:, 1]
    low, high = interval(ratios)
    ratio = f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f})"
    return f"| {case.name} | {ours} | {np.median(seconds[:, 1]):.2f} | {ratio} | {difference(case):.0e} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure every program and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--only", help="programs whose name begins so")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    header = "| program, data | collapsed, ms | Pyro's enumeration, ms | ratio | largest difference |"
    lines = [header, "| --- " * 5 + "|"]
    print("\n".join(lines))
    for case in CASES:
        if options.only is None or case.name.startswith(options.only):
            lines.append(line(case, options.turns))
            print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "collapsed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
