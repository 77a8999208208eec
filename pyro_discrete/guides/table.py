"""A distribution over a few listed values, of free probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

__all__ = ["Table"]


class _Listed(constraints.Constraint):
    """One of some values."""

    is_discrete = True

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def check(self, value: Tensor) -> Tensor:
        return (value.unsqueeze(-1) == self.values).any(-1)


class Table(TorchDistribution):
    """One of the `values` `[K]`, in ascending order, with probabilities softmax(`logits`), `[*batch, K]`.

    It is to numbers, such as counts, what a Categorical is to the integers from 0.

    >>> table = Table(torch.tensor([0.0, 2.0, 5.0]), torch.tensor([0.0, 0.0, 1.0]))
    >>> table.enumerate_support().tolist(), round(table.log_prob(torch.tensor(5.0)).exp().item(), 3)
    ([0.0, 2.0, 5.0], 0.576)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, values: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.values = values
        self.logits = logits
        super().__init__(logits.shape[:-1], torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:  # type: ignore[override]
        return _Listed(self.values)

    @lazy_property
    def probs(self) -> Tensor:
        """`[*batch, K]`."""
        return self.logits.softmax(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Table:
        return Table(self.values, self.logits.expand(*batch_shape, len(self.values)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.values[torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each value; minus infinity for one that is not listed."""
        there = value.unsqueeze(-1) == self.values
        logits = self.logits.log_softmax(-1)
        there, logits = torch.broadcast_tensors(there, logits)
        found = logits.gather(-1, there.long().argmax(-1, keepdim=True)).squeeze(-1)
        return found.masked_fill(~there.any(-1), -torch.inf)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values
