"""The states of random number generators, for a run that is to draw what another one drew."""

from __future__ import annotations

from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

__all__ = ["random_state", "set_random_state", "set_torch_random_state", "torch_random_state"]


def torch_random_state() -> tuple[Tensor, list[Tensor]]:
    """The state of torch's random number generators, the only ones that a graph draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_torch_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Put torch's random number generators back into a state."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def random_state() -> Any:
    """The states of torch's, NumPy's and Python's generators."""
    return get_rng_state(), torch_random_state()


def set_random_state(state: Any) -> None:
    """Put all of them back into a state."""
    set_rng_state(state[0])
    set_torch_random_state(state[1])
