"""Training a toy by one estimator, with its objective measured on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_discrete import Estimator, TraceExpectation

__all__ = ["Run", "curve", "shown"]

Pair = tuple[Callable[[], Any], Callable[[], Any]]


@dataclass(frozen=True)
class Run:
    """One line of a table: an estimator, its particles, and how many steps it is given."""

    make: Callable[[], str | Estimator]
    particles: int
    steps: int

    def scaled(self, scale: float) -> Run:
        """The same for a part of the steps, at least one."""
        return replace(self, steps=max(1, round(scale * self.steps)))


def curve(pair: Pair, run: Run, cost: Callable[[Tensor], float], *, rate: float, seed: int) -> dict[str, Any]:
    """Maximise the reward of a pair whose one parameter is `logits`, by Adam.

    Gives "curve", step -> `cost(logits)` before it, some fifty times and at the end, and the processor's "seconds" for
    all of it. The estimator's own parameters are trained by the same optimiser. Steps are captured ones.
    """
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide = pair
    elbo = TraceExpectation(run.make(), num_particles=run.particles, compile="graph")
    elbo.loss_and_grads(model, guide)  # makes the parameters of the guide and of the estimator
    logits = pyro.param("logits").unconstrained()
    optimiser = torch.optim.Adam([logits, *elbo.parameters()], lr=rate)
    every, found, started = max(1, run.steps // 50), {}, time.process_time()
    for step in range(run.steps):
        if step % every == 0:
            found[str(step)] = cost(logits.detach())
        optimiser.zero_grad()
        elbo.loss_and_grads(model, guide)
        optimiser.step()
    found[str(run.steps)] = cost(logits.detach())
    return {"particles": run.particles, "curve": found, "seconds": round(time.process_time() - started, 1)}


def shown(found: dict[str, Any]) -> str:
    """A curve in a line, some ten of its points."""
    points = list(found["curve"].items())
    some = [*points[: -1 : max(1, len(points) // 10)], points[-1]]
    costs = ", ".join(f"{step}: {cost:.3f}" for step, cost in some)
    return f"{found['particles']} particles, {found['seconds']} s; {costs}"
