"""What an example is: a pair of Pyro's with its data, entered under its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_mean
from torch import Tensor

__all__ = ["EXAMPLES", "PARALLEL", "Example", "at_means", "example", "joined"]

PARALLEL: Any = {"enumerate": "parallel"}
"""The mark of a site that Pyro sums out."""


@dataclass(frozen=True)
class Example:
    """A pair with its arguments, and how many plates stand in each other."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    nesting: int


EXAMPLES: dict[str, Callable[[], Example]] = {}
"""By name, what makes an example; under the seed and in the param store of the caller."""


def example(make: Callable[[], Example]) -> Callable[[], Example]:
    """Enter a maker of an example under its name."""
    EXAMPLES[make.__name__] = make
    return make


def at_means(model: Callable[..., Any], prefix: str | tuple[str, ...]) -> AutoDelta:
    """The examples' guide: a point for each site of these names."""
    exposed = poutine.block(model, expose_fn=lambda msg: str(msg["name"]).startswith(prefix))
    return AutoDelta(exposed, init_loc_fn=init_to_mean)


def joined(one: Tensor, other: Tensor) -> list[Tensor]:
    """Both with the batch dims of either."""
    batch = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return [one.expand(*batch, one.shape[-1]), other.expand(*batch, other.shape[-1])]
