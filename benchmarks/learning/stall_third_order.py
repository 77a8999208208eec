"""Why the straight-through Gumbel-Softmax never leaves the collapse of `stall.py`: a force of third order."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.learning.stall import Mixture, collapsed, four_clusters, two_clusters, two_components
from models.runs.evaluation import isolated
from pyro_discrete import (
    Estimator,
    GappedStraightThrough,
    GumbelRao,
    ReinMax,
    StraightThrough,
    StraightThroughGumbelSoftmax,
    TraceELBO,
)
from pyro_discrete.checkpoints import write_atomically

__all__ = ["PAIRS", "WHOLE", "driven", "grown", "held_back", "trained"]

Make = Callable[[], TraceELBO]


def held_back(temperature: float, points: int = 200_001) -> float:
    r"""What the straight-through Gumbel-Softmax takes from the force of third order: 2 gamma / c1, 0 at t = 0.

    With w = sigmoid((h + logistic noise) / t), D = sign(2 w - 1) and G = 2 w (1 - w) / t = dM/dh of the soft value
    M = 2 w - 1: c1 = E[G] and gamma = dE[D G]/dh, both at h = 0.
    """
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    w = (uniform.logit() / temperature).sigmoid()
    weight = 2 * w * (1 - w) / temperature
    return float(2 * (weight * (2 * uniform - 1).abs()).mean() / weight.mean())


def driven(x: Tensor) -> float:
    """What parts two components at s^2 = V, in third order: 1 - kurtosis / 3."""
    centred = x - x.mean()
    return float(1 - centred.pow(4).mean() / centred.square().mean().square() / 3)


def of_draws(estimator: Callable[[], Estimator], draws: int) -> Make:
    """The mean of so many draws' gradients in each step."""
    return lambda: TraceELBO(estimator(), num_particles=draws)


DRAWS = 30
"""How many draws a step's gradient is the mean of, where noise is to be left out."""
PAIRS: dict[str, tuple[float, Make]] = {
    "enumerate": (0.0, lambda: TraceELBO("enumerate")),
    "reinmax": (0.0, of_draws(ReinMax, DRAWS)),
    "straight_through": (1.0, of_draws(StraightThrough, DRAWS)),
    "gapped_straight_through": (1.0, of_draws(GappedStraightThrough, DRAWS)),
    "gumbel_rao, t = 0.65": (held_back(0.65), of_draws(lambda: GumbelRao(0.65), DRAWS)),
    **{
        f"straight_through_gumbel_softmax, t = {t}": (
            held_back(t),
            of_draws(lambda t=t: StraightThroughGumbelSoftmax(t), DRAWS),
        )
        for t in (1.0, 0.65, 0.35, 0.2)
    },
}
"""What holds two components back, and the estimator."""
WHOLE: dict[str, Make] = {
    "enumerate": lambda: TraceELBO("enumerate"),
    **{
        f"straight_through_gumbel_softmax, t = {t}, draws: {draws}": of_draws(
            lambda t=t: StraightThroughGumbelSoftmax(t), draws
        )
        for t in (0.65, 0.1)
        for draws in (1, DRAWS)
    },
}
"""What trains the mixture of four."""


def grown(make: Make, start: float = 0.4, steps: int = 150) -> float:
    """By how much two components have parted in gradient descent, d over its first value, with the scale fitted.

    `two_components` start at d = start sqrt(V), where the gradients of a and of the scale vanish to second order.
    """
    x = two_clusters()
    variance = float(x.square().mean())
    d, a, log_scale = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for value in (
            start * math.sqrt(variance),
            2 * start / math.sqrt(variance),
            math.log(variance * (1 - start**2)) / 2,
        )
    )
    model, guide = two_components(x, d, a, log_scale.exp)
    with isolated(0):
        elbo = make()
        for _ in range(steps):
            d.grad = a.grad = log_scale.grad = None
            elbo.loss_and_grads(model, guide)
            with torch.no_grad():
                for parameter, rate in ((d, 0.5 * (2 * log_scale).exp()), (a, 2 / variance), (log_scale, 0.3)):
                    assert parameter.grad is not None
                    parameter -= rate * parameter.grad / len(x)
    return float(d.detach()) / (start * math.sqrt(variance))


def trained(make: Make, own_scales: bool, seed: int, steps: int) -> dict[str, float]:
    """Adam over all data: the lowest and the last exact negative bound, and the exact gradient's norm at the end.

    All in nats a datum.
    """
    x = four_clusters()
    with isolated(seed):
        mixture = Mixture(x, seed)
        mixture.own_scales = own_scales
        elbo, exact = make(), TraceELBO("enumerate")
        optimiser = torch.optim.Adam(mixture.parameters(), lr=0.03)
        lowest = math.inf
        for step in range(steps):
            optimiser.zero_grad()
            elbo.loss_and_grads(mixture.model, mixture.guide, x)
            optimiser.step()
            if step % 10 == 9:
                lowest = min(lowest, exact.loss(mixture.model, mixture.guide, x) / len(x))
        optimiser.zero_grad()
        last = exact.loss_and_grads(mixture.model, mixture.guide, x) / len(x)
        norm = nn.utils.get_total_norm([p.grad for p in mixture.parameters() if p.grad is not None])
        return {"lowest": min(lowest, last), "last": last, "gradient": float(norm) / len(x)}


def section(result: Mapping[str, Any]) -> str:
    """The results as tables of markdown."""
    lines = [f"| | holds back, of {driven(two_clusters()):.2f} | d has grown |", "| --- | --- | --- |"]
    for name, found in result["pairs"].items():
        lines.append(f"| {name} | {PAIRS[name][0]:.2f} | {found:.2f} |")
    lines += ["", "| | one scale | a scale for each component |", "| --- | --- | --- |"]
    for name, both in result["mixture"].items():
        lines.append(f"| {name} | " + " | ".join(_summary(runs) for runs in both.values()) + " |")
    return "\n".join([*lines, ""])


def _summary(runs: list[dict[str, float]]) -> str:
    left = sum(run["lowest"] < collapsed() - 0.02 for run in runs)
    last = [run["last"] for run in runs]
    gradient = statistics.median(run["gradient"] for run in runs)
    return f"{left} of {len(runs)} leave; {min(last):.2f} to {max(last):.2f}; {gradient:.3f}"


def main(
    seeds: Annotated[int, typer.Option(help="Starts of the mixture.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Training steps of the mixture.", min=1)] = 450,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/stall"),
) -> None:
    """Measure whether two components part, against theory, and where a mixture of four comes to rest.

    Writes stall_third_order.json and stall_third_order.md.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "stall_third_order.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"pairs": {}, "mixture": {}}

    def keep() -> None:
        write_atomically(path, json.dumps(result, indent=2) + "\n")
        write_atomically(out / "stall_third_order.md", section(result))

    for name, (_, make) in tqdm(PAIRS.items(), desc="pairs", unit="estimator", disable=None):
        if name not in result["pairs"]:
            result["pairs"][name] = grown(make)
            keep()
    for name, make in tqdm(WHOLE.items(), desc="mixture", unit="estimator", disable=None):
        for scales in ("one", "own"):
            runs = result["mixture"].setdefault(name, {}).setdefault(scales, [])
            while len(runs) < seeds:
                runs.append(trained(make, scales == "own", len(runs), steps))
                keep()
    typer.echo(section(result))


if __name__ == "__main__":
    typer.run(main)
