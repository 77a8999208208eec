"""Storchastic's step for one shape: the score function with two draws, each the other's baseline.

Started by `python -m benchmarks.steps.step_time`, which hands it a shape as JSON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from typing import Any

try:
    import storch
    import torch
    from torch import nn
    from torch.distributions import Bernoulli, Independent, OneHotCategorical
    from torch.nn.functional import binary_cross_entropy_with_logits
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\nThis Python has no {missing.name}.") from None

DRAWS = 2


def dense(sizes: list[int]) -> nn.Sequential:
    """Linear layers with LeakyReLU(0.3) between them."""
    layers: list[nn.Module] = []
    for below, above in pairwise(sizes):
        layers += [nn.Linear(below, above), nn.LeakyReLU(0.3)]
    return nn.Sequential(*layers[:-1])


def make(settings: dict[str, Any]) -> Any:
    """A function that makes one step."""
    latents, hidden, pixels, batch = settings["latents"], settings["hidden"], settings["pixels"], settings["batch"]
    categorical = settings["kind"] == "categorical"
    widths = [pixels, latents[0] * latents[1]] if categorical else [pixels, *latents]
    encoder = nn.ModuleList([dense([a, *hidden, b]) for a, b in pairwise(widths)])
    decoder = nn.ModuleList([dense([b, *reversed(hidden), a]) for a, b in pairwise(widths)])
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    first = {"n_samples": DRAWS, "baseline_factory": "batch_average"}
    data = (torch.rand(batch, pixels) < 0.4).float()
    methods = [  # the first layer's two draws are each other's baseline; a layer above has one for each of them
        storch.method.ScoreFunction(f"z{i}", **({"baseline_factory": None} if i else first))
        for i in range(len(encoder))
    ]

    def step() -> None:
        optimiser.zero_grad()
        x = storch.denote_independent(data, 0, "data")
        below, cost, drawn = x - 0.4, 0.0, []
        for network, method in zip(encoder, methods, strict=True):
            logits = network(below)
            if categorical:
                logits = logits.reshape(logits.shape[:-1] + tuple(latents))
                q = Independent(OneHotCategorical(logits=logits), 1)
            else:
                q = Independent(Bernoulli(logits=logits), 1)
            z = method(q)
            cost = cost + q.log_prob(z)
            below = z.flatten(-2) if categorical else z
            drawn.append(below)
        for network, value, above in zip(decoder, [x, *drawn], drawn, strict=False):
            logits = network(above)
            target = value * torch.ones_like(logits)
            cost = cost + binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        storch.add_cost(cost, "loss")
        storch.backward()
        optimiser.step()

    return step


def main() -> None:
    """Answer "version", or a number of steps by their times in ms of the processor, until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads, help="The shape.")
    torch.set_num_threads(1)
    step = make(parser.parse_args().settings)
    for _ in range(3):
        step()
    for line in sys.stdin:
        if line.strip() == "version":
            print(json.dumps(f"Storchastic {version('storchastic')}"), flush=True)
            continue
        times = []
        for _ in range(int(line)):
            started = time.process_time()
            step()
            times.append(1000 * (time.process_time() - started))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
