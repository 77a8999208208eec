"""A look at the surrogates that an estimator returns while the engine runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from pyro_discrete.estimators.base import Draw, Estimator, Surrogate
from pyro_discrete.programs.parameters import leaf_parameters

__all__ = ["auxiliary_leaks"]


@contextmanager
def auxiliary_leaks(estimator: type[Estimator], leaks: list[str]) -> Iterator[None]:
    """Note in `leaks` every auxiliary loss of this class with a gradient, other than zero, on what is not its own."""
    original = estimator.surrogate

    def surrogate(self: Any, draw: Draw, cost: Tensor) -> Surrogate:
        out = original(self, draw, cost)
        if isinstance(out.auxiliary, Tensor) and out.auxiliary.requires_grad:
            own = set(map(id, self.parameters()))
            others = [leaf for leaf in leaf_parameters(out.auxiliary) if id(leaf) not in own]
            gradients = (
                torch.autograd.grad(out.auxiliary.sum(), others, retain_graph=True, allow_unused=True) if others else ()
            )
            worst = max((g.abs().max().item() for g in gradients if g is not None), default=0.0)
            if worst > 0 and not leaks:
                leaks.append(f"its auxiliary loss has a gradient of {worst:.3g} on the program's parameters.")
        return out

    with patch.object(estimator, "surrogate", surrogate):
        yield
