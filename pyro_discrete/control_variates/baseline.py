"""The input-dependent control variate: a small network of what the site's baseline may read."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = [
    "baseline_network",
]


def baseline_network(features: int, hidden: int, like: Tensor) -> nn.Sequential:
    """One hidden layer of tanh units, `[..., features]` to `[..., 1]`, zero at the start; in the dtype of `like`."""
    network = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(like)
    nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
    return network
