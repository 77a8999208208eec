"""The subset toy of Ahmed et al. (2023): bias and variance of gradients at 5 of 10 items, over their ten instances.

    python -m benchmarks.literature.subsets --out benchmarks/results

An instance is made by NumPy from one of the authors' seeds: logits standard normal, b their absolute values; the cost
of a subset is the squared distance of its indicators from b. A gradient is that of one draw (`particles` where it is
more). Each estimator gives 10,000, after 100 steps of 250 in which those that learn something do so (by Adam, rate
0.01) while the logits stay as they are.
Measured as the authors do, all by angles:

- bias, the cosine distance of the mean gradient from the exact one;
- spread, the variance of the cosine between a gradient and the mean one (their "variance");
- error, the mean cosine distance of a gradient from the exact one;

and by lengths: the distance of the mean gradient from the exact one (less what the noise of 10,000 explains), and the
variance, over the exact gradient's norm and its square. All are means over the instances.

Source: Ahmed, Zeng, Niepert and Van den Broeck (2023), SIMPLE: a gradient estimator for k-subset sampling; settings and
measures from the authors' tractable_dist/k-subset_distribution.ipynb (github.com/UCLA-StarAI/SIMPLE).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyro
import torch
import typer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.literature.results import record
from pyro_discrete import Estimator, GumbelSoftmax, TraceExpectation
from pyro_discrete.distributions import KSubset

ITEMS, CHOSEN = 10, 5
SEEDS = (1234, 1067, 9198, 9453, 6240, 7044, 1755, 7898, 3131, 1277)
"""The authors'."""
ELEMENTS = 250
"""So many independent gradients in one step, as a plate."""


@dataclass(frozen=True)
class Estimate:
    """An estimator and its particles."""

    make: Callable[[], str | Estimator]
    particles: int = 1


ESTIMATES = {
    "straight_through": Estimate(lambda: "straight_through"),
    "gumbel_softmax(relaxation=marginals), t = 0.5": Estimate(lambda: GumbelSoftmax(0.5, relaxation="marginals")),
    "gumbel_softmax(relaxation=marginals), t = 1": Estimate(lambda: GumbelSoftmax(1.0, relaxation="marginals")),
    "gumbel_softmax, t = 0.5": Estimate(lambda: GumbelSoftmax(0.5)),
    "straight_through_gumbel_softmax": Estimate(lambda: "straight_through_gumbel_softmax"),
    "gumbel_rao": Estimate(lambda: "gumbel_rao"),
    "reinforce": Estimate(lambda: "reinforce"),
    "nvil": Estimate(lambda: "nvil"),
    "optimal_control_variate": Estimate(lambda: "optimal_control_variate"),
    "rloo, 2 particles": Estimate(lambda: "rloo", 2),
    "muprop": Estimate(lambda: "muprop"),
    "double_cv, 2 particles": Estimate(lambda: "double_cv", 2),
    "rebar": Estimate(lambda: "rebar"),
    "relax": Estimate(lambda: "relax"),
    "sum_and_sample": Estimate(lambda: "sum_and_sample"),
    "unordered_set": Estimate(lambda: "unordered_set"),
}


def instance(seed: int) -> tuple[Tensor, Tensor]:
    """Logits and b, both `[items]`."""
    numbers = np.random.RandomState(seed)
    return torch.from_numpy(numbers.randn(ITEMS)), torch.from_numpy(np.abs(numbers.randn(ITEMS)))


def pair(logits: Tensor, b: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """Model and guide of independent subsets, each with logits of its own: its gradient is one estimate."""

    def model() -> None:
        with pyro.plate("elements", ELEMENTS):
            subset = pyro.sample("subset", KSubset(torch.zeros_like(logits), CHOSEN))
            pyro.factor("reward", -(subset - b).square().sum(-1))

    def guide() -> None:
        wide = pyro.param("logits", lambda: logits.expand(ELEMENTS, -1).clone())
        with pyro.plate("elements", ELEMENTS):
            pyro.sample("subset", KSubset(wide, CHOSEN))

    return model, guide


def exact_gradient(logits: Tensor, b: Tensor) -> Tensor:
    """By a sum over all subsets."""
    logits = logits.clone().requires_grad_()
    law = KSubset(logits, CHOSEN)
    every = law.enumerate_support()
    return torch.autograd.grad(law.log_prob(every).exp() @ (every - b).square().sum(-1), logits)[0]


def gradients(estimate: Estimate, logits: Tensor, b: Tensor, calls: int, warm_up: int, seed: int) -> Tensor:
    """`[calls x elements, items]`, after so many steps of what the estimator learns; the logits stay where they are."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide = pair(logits, b)
    elbo = TraceExpectation(estimate.make(), num_particles=estimate.particles)
    elbo.loss_and_grads(model, guide)
    learned, wide = list(elbo.parameters()), pyro.param("logits").unconstrained()
    optimiser = torch.optim.Adam(learned, lr=0.01) if learned else None
    found = []
    for step in range(warm_up + calls):
        wide.grad = None
        elbo.loss_and_grads(model, guide)
        if step >= warm_up:
            found.append(wide.grad)
        elif optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
    return torch.cat(found)


def measures(found: Tensor, exact: Tensor) -> dict[str, float]:
    """As this module says, of gradients `[N, items]`."""
    mean, size = found.mean(0), exact.norm()
    variance = float(found.var(0).sum() / size**2)
    away = float((mean - exact).square().sum() / size**2)
    return {
        "bias": float(1 - cosine_similarity(mean, exact, dim=0)),
        "spread": float(cosine_similarity(found, mean.expand_as(found), dim=-1).var()),
        "error": float(1 - cosine_similarity(found, exact.expand_as(found), dim=-1).mean()),
        "distance": math.sqrt(max(away - variance / len(found), 0.0)),
        "variance": variance,
    }


def main(
    out: Annotated[Path, typer.Option(help="Folder of literature.json and literature.png.")],
    names: Annotated[str, typer.Option(help="Of the estimators, between semicolons.")] = ";".join(ESTIMATES),
    calls: Annotated[int, typer.Option(help="Steps of 250 gradients each.", min=1)] = 40,
    warm_up: Annotated[int, typer.Option(help="Steps before, of estimators that learn.")] = 100,
    instances: Annotated[int, typer.Option(help="Of the authors' ten.", min=1, max=10)] = 10,
) -> None:
    """Measure each estimator, print its row, and keep it."""
    torch.set_num_threads(1)
    for name in names.split(";"):
        started, rows = time.process_time(), []
        for seed in SEEDS[:instances]:
            logits, b = instance(seed)
            rows.append(
                measures(gradients(ESTIMATES[name], logits, b, calls, warm_up, seed), exact_gradient(logits, b))
            )
        mean = {what: float(np.mean([row[what] for row in rows])) for what in rows[0]}
        found = mean | {"gradients": calls * ELEMENTS, "seconds": round(time.process_time() - started, 1)}
        shown = ", ".join(f"{what} {value:.3g}" for what, value in found.items())
        print(f"{name}: {shown}", flush=True)
        record(out, "subsets", {name: found})


if __name__ == "__main__":
    typer.run(main)
