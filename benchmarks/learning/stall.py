"""Why hard-forward relaxations (and exact gradients) stall on a Gaussian mixture where soft ones learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro import poutine
from torch import Tensor, nn
from tqdm import tqdm

from models.runs.evaluation import isolated
from pyro_discrete import GumbelSoftmax, ReinMax, StraightThrough, StraightThroughGumbelSoftmax, TraceELBO
from pyro_discrete.checkpoints import write_atomically

__all__ = ["CONDITIONS", "ESTIMATORS", "growth", "soft_threshold", "train", "two_components"]

Program = Callable[[], None]

ESTIMATORS: dict[str, Any] = {
    "enumerate": lambda: TraceELBO("enumerate"),
    "rloo, 4 particles": lambda: TraceELBO("rloo", num_particles=4),
    "straight_through": lambda: TraceELBO(StraightThrough()),
    "straight_through_gumbel_softmax": lambda: TraceELBO(StraightThroughGumbelSoftmax(0.65)),
    "reinmax": lambda: TraceELBO(ReinMax(1.0)),
    "gumbel_softmax, t = 0.35": lambda: TraceELBO(GumbelSoftmax(0.35)),
    "gumbel_softmax, t = 1": lambda: TraceELBO(GumbelSoftmax(1.0)),
    "gumbel_softmax, t = 0.35, analytic": lambda: TraceELBO(GumbelSoftmax(0.35, kl="analytic")),
}
SOFT = {
    "gumbel_softmax, t = 0.35": (0.35, False),
    "gumbel_softmax, t = 1": (1.0, False),
    "gumbel_softmax, t = 0.35, analytic": (0.35, True),
}
"""The soft ones' temperatures, and whether their divergence is analytic (it is linear by default at integers)."""
FOLLOWED = ("reinmax", "straight_through_gumbel_softmax", "gumbel_softmax, t = 0.35")
"""Those whose gradients are compared with the exact one on the way."""
MIXTURE = [name for name in ESTIMATORS if name not in ("straight_through", "gumbel_softmax, t = 1")]
"""Those that are trained on the whole mixture."""
CONDITIONS = {
    "none": "as it stands",
    "narrow": "scale held narrow at first",
    "light": "divergence at 0.1 at first",
    "soft": "soft values at first",
    "own": "a scale for each component",
}
"""What is changed: in the first third of the training, or (`own`) all along."""
COMPONENTS = 4
DRAWS = 400
"""How many draws a mean gradient is the mean of."""


def soft_threshold(temperature: float, analytic: bool = False, points: int = 200_001) -> float:
    r"""The ratio V / s^2 above which two coinciding components part under soft values: c2 (c1 - 1/4) / c1^2.

    With w = sigmoid(logistic noise / t): c1 = E[2 w (1 - w)] / t, c2 = E[(2 w - 1)^2]. It is 1 at t = 0. With an
    analytic divergence it is c2 / (4 c1^2).
    """
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    w = (uniform.logit() / temperature).sigmoid()
    c1, c2 = (2 * w * (1 - w)).mean() / temperature, (2 * w - 1).square().mean()
    return float(c2 * (0.25 if analytic else c1 - 0.25) / c1**2)


def two_clusters(seed: int = 0) -> Tensor:
    """A thousand points about -3 and 3, of mean zero: `[1000]`."""
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = noise + torch.tensor([3.0, -3.0], dtype=torch.float64).repeat_interleave(500)
    return x - x.mean()


def two_components(x: Tensor, d: Tensor, a: Tensor, scale: Callable[[], Any]) -> tuple[Program, Program]:
    """Model with means -d and d and the given scale, guide q(z = 1 | x) = sigmoid(a x)."""

    def model() -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2, dtype=torch.float64) / 2))
            pyro.sample("x", dist.Normal(torch.stack([-d, d])[z], scale()), obs=x)

    def guide() -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=torch.stack([-a * x / 2, a * x / 2], -1)))

    return model, guide


def growth(name: str, ratio: float, steps: int = 200) -> float:
    """By how much two nearly coinciding components part in gradient descent, with V / s^2 = ratio held.

    The point d = a = 0 of `two_components` is the collapsed one.
    """
    x = two_clusters()
    variance = float(x.square().mean())
    scale = math.sqrt(variance / ratio)
    d = torch.tensor(0.1 * scale, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(0.2 / math.sqrt(variance), dtype=torch.float64, requires_grad=True)
    model, guide = two_components(x, d, a, lambda: scale)
    with isolated(0):
        elbo = ESTIMATORS[name]()
        for _ in range(steps):
            d.grad = a.grad = None
            elbo.loss_and_grads(model, guide)
            assert d.grad is not None
            assert a.grad is not None
            with torch.no_grad():
                d -= 0.5 * scale**2 * d.grad / len(x)
                a -= 2.0 / variance * a.grad / len(x)
    return float(d.detach()) / (0.1 * scale)


class Mixture(nn.Module):
    """Four Gaussians with learned weights, means and scale, and a network as the guide; it starts broad."""

    def __init__(self, x: Tensor, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.locs = nn.Parameter(x.mean() + torch.randn(COMPONENTS, dtype=torch.float64))
            self.network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, COMPONENTS)).double()
        self.log_scales = nn.Parameter((1.1 * x.std()).log().expand(COMPONENTS).clone())
        self.logits = nn.Parameter(torch.zeros(COMPONENTS, dtype=torch.float64))
        self.weight_of_divergence, self.own_scales = 1.0, False

    def model(self, x: Tensor) -> None:
        """The usual mixture."""
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=self.weight_of_divergence):
                z = pyro.sample("z", dist.Categorical(logits=self.logits))
            scale = self.log_scales.exp()[z] if self.own_scales else self.log_scales.mean().exp()
            pyro.sample("x", dist.Normal(self.locs[z], scale), obs=x)

    def guide(self, x: Tensor) -> None:
        """Responsibilities by a network."""
        with pyro.plate("data", len(x)), poutine.scale(scale=self.weight_of_divergence):
            pyro.sample("z", dist.Categorical(logits=self.network(x.unsqueeze(-1) / 4)))


def four_clusters() -> Tensor:
    """Four hundred points about -6, -2, 2 and 6, half a unit wide: `[400]`."""
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.tensor([-6.0, -2.0, 2.0, 6.0], dtype=torch.float64).repeat(100) + 0.5 * noise


def train(name: str, condition: str, seed: int, steps: int) -> float:
    """Exact negative bound, in nats a datum, after so many steps of Adam over all data."""
    x = four_clusters()
    with isolated(seed):
        mixture = Mixture(x, seed)
        mixture.own_scales = condition == "own"
        elbo, soft = ESTIMATORS[name](), TraceELBO(GumbelSoftmax(0.35))
        optimiser = torch.optim.Adam(mixture.parameters(), lr=0.03)
        if condition == "narrow":
            with torch.no_grad():
                mixture.log_scales.fill_(math.log(0.4 * float(x.std())))
        for step in range(steps):
            early = 3 * step < steps
            mixture.log_scales.requires_grad_(not (early and condition == "narrow"))
            mixture.weight_of_divergence = 0.1 if early and condition == "light" else 1.0
            optimiser.zero_grad()
            used = soft if early and condition == "soft" else elbo
            used.loss_and_grads(mixture.model, mixture.guide, x)
            optimiser.step()
        mixture.weight_of_divergence = 1.0
        return TraceELBO("enumerate").loss(mixture.model, mixture.guide, x) / len(x)


def directions(name: str, seed: int, steps: int) -> dict[str, list[float]]:
    """Along the training with a scale for each component: step -> loss, and cosines of mean and exact gradient.

    The mean is that of `DRAWS` draws; one cosine for the guide's network, one for the components.
    """
    x, found = four_clusters(), {}
    with isolated(seed):
        mixture = Mixture(x, seed)
        mixture.own_scales = True
        elbo, exact = ESTIMATORS[name](), TraceELBO("enumerate")
        optimiser = torch.optim.Adam(mixture.parameters(), lr=0.03)
        groups = [list(mixture.network.parameters()), [mixture.locs, mixture.log_scales, mixture.logits]]
        for step in range(steps + 1):
            if step in (0, steps // 30, steps // 10, steps // 3, steps):
                means = [torch.zeros(sum(p.numel() for p in group), dtype=torch.float64) for group in groups]
                for number in range(DRAWS + 1):
                    optimiser.zero_grad()
                    loss = (elbo if number else exact).loss_and_grads(mixture.model, mixture.guide, x)
                    flat = [torch.cat([_gradient(p).flatten() for p in group]) for group in groups]
                    if number == 0:
                        right, value = flat, loss / len(x)
                    else:
                        means = [mean + each for mean, each in zip(means, flat, strict=True)]
                cosines = [float(torch.cosine_similarity(m, r, 0)) for m, r in zip(means, right, strict=True)]
                found[str(step)] = [value, *cosines]
            optimiser.zero_grad()
            elbo.loss_and_grads(mixture.model, mixture.guide, x)
            optimiser.step()
    return found


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def collapsed() -> float:
    """The negative bound of one Gaussian for everything, in nats a datum."""
    return math.log(float(four_clusters().std(correction=0)) * math.sqrt(2 * math.pi * math.e))


def section(result: Mapping[str, Any]) -> str:
    """The results as a section of markdown."""
    ratios = list(next(iter(result["growth"].values())))
    heads = ["", "parts above", *(f"V/s² = {r}" for r in ratios)]
    lines = ["## The stall", "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, row in result["growth"].items():
        cells = [f"{SOFT_THRESHOLDS.get(name, 1.0):.2f}", *(f"{row[r]:.2f}" if r in row else "" for r in ratios)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    heads = ["", *CONDITIONS.values()]
    lines += ["", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, row in result["mixture"].items():
        lines.append(f"| {name} | " + " | ".join(_summary(row[r]) for r in CONDITIONS if r in row) + " |")
    followed = result.get("directions", {})
    if followed:
        steps = list(next(iter(followed.values())))
        lines += ["", "| | " + " | ".join(f"step {s}" for s in steps) + " |", "| --- " * (len(steps) + 1) + "|"]
        for name, row in followed.items():
            cells = [f"{row[s][0]:.2f}: {row[s][1]:.2f}, {row[s][2]:.2f}" for s in steps]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


SOFT_THRESHOLDS = {name: soft_threshold(*settings) for name, settings in SOFT.items()}


def _summary(losses: list[float]) -> str:
    alike = sum(loss > collapsed() - 0.05 for loss in losses)
    return f"{min(losses):.2f} to {max(losses):.2f}, {alike} of {len(losses)} collapsed"


def main(
    seeds: Annotated[int, typer.Option(help="Starts of the mixture.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="Training steps of the mixture.", min=3)] = 450,
    ratios: Annotated[str, typer.Option(help="V / s^2, separated by commas.")] = "0.2,0.4,0.6,0.8,0.95,1.05,1.4",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/stall"),
) -> None:
    """Measure when coinciding components part, what keeps a mixture from the collapse, and where estimates point.

    Writes stall.json and stall.md.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "stall.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"growth": {}, "mixture": {}}

    def keep() -> None:
        write_atomically(path, json.dumps(result, indent=2) + "\n")
        write_atomically(out / "stall.md", section(result))

    for name in tqdm(ESTIMATORS, desc="growth", unit="estimator", disable=None):
        row = result["growth"].setdefault(name, {})
        for ratio in ratios.split(","):
            if ratio not in row:
                row[ratio] = growth(name, float(ratio))
                keep()
    for name in tqdm(MIXTURE, desc="mixture", unit="estimator", disable=None):
        row = result["mixture"].setdefault(name, {})
        for condition in CONDITIONS:
            losses = row.setdefault(condition, [])
            while len(losses) < seeds:
                losses.append(train(name, condition, len(losses), steps))
                keep()
    for name in tqdm(FOLLOWED, desc="directions", unit="estimator", disable=None):
        if name not in result.setdefault("directions", {}):
            result["directions"][name] = directions(name, 0, steps)
            keep()
    typer.echo(section(result))


if __name__ == "__main__":
    typer.run(main)
