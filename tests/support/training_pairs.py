"""A small pair that `fit` trains, on data in memory or from a loader, and the comparison of two runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_discrete import FitResult, fit

DATA = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


QUIET: dict[str, Any] = {"progress": False, "log_every": 10}


class Pair(nn.Module):
    """Three bits a datum; the guide's network has a buffer that every step changes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
            self.decoder = nn.Linear(3, 3)

    def model(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def run(elbo: Any = "nvil", data: Any = DATA, **settings: Any) -> FitResult:
    """A run of a new pair, as in a new process."""
    pyro.clear_param_store()
    pair = Pair()
    elbo = elbo() if callable(elbo) else elbo
    settings = {**QUIET, "lr": 0.01, "seed": 1, **settings}
    if isinstance(data, Tensor):
        settings.setdefault("batch_size", 8)
    return fit(pair.model, pair.guide, data, elbo, **settings)


def assert_same(first: Any, second: Any, path: str = "") -> None:
    if isinstance(first, Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            if key != "ms_per_step":
                assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{path}/{index}")
    else:
        assert first == second or (first != first and second != second), path


def noisy(x: Tensor) -> Tensor:
    """A transform that draws from torch and from NumPy."""
    return x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.rand())  # noqa: NPY002


def loader(seed: int | None) -> DataLoader[Any]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(DATA), batch_size=8, shuffle=True, generator=generator)


class Streamed:
    """A stream of batches of the user's own."""

    def __init__(self) -> None:
        self.at = 0

    def next_batch(self) -> Tensor:
        self.at += 1
        return DATA.roll(self.at, 0)[:8]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
