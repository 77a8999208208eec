"""How a site is enumerated: its joint support, its score without mask, and the size of the table it makes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.errors import EnumerationError
from pyro_discrete.estimators.enumerate import Enumerate
from pyro_discrete.sites import base_distribution, cardinality, joint_support, without_mask

__all__ = ["mark_for_enumeration"]


def mark_for_enumeration(msg: Any, settings: Enumerate, marginal: bool, parallel: bool = True) -> None:
    """Mark a site's message for Pyro's enumeration, joint values of its `.to_event` dims included.

    `marginal` says that the site is in the model alone: a mask does not keep it from being summed out. Raises
    `EnumerationError` if its table is larger than `settings` allow, enumerated dims of earlier sites included.
    """
    fn = msg["fn"]
    elements = cardinality(fn) * math.prod(fn.shape())
    if elements > settings.max_elements:
        raise EnumerationError(
            f"Enumerating site {msg['name']!r} needs a table of {elements:.3g} elements ({cardinality(fn):.3g} "
            f"values by shape {tuple(fn.shape())}, enumerated dims of earlier sites included); at most "
            f"{settings.max_elements:.3g} are allowed (Enumerate(max_elements=...)). Use 'rloo' or 'nvil', "
            "put chains in pyro.markov, or enumerate fewer sites."
        )
    base = base_distribution(fn)
    if fn.event_dim > len(base.event_shape) or without_mask(fn) is not fn:
        msg["fn"] = _Enumerated(fn, marginal)
    msg["infer"] = {**msg["infer"], "enumerate": "parallel" if parallel else "sequential"}


class _Enumerated(TorchDistribution):
    """A distribution with joint values of its `.to_event` dims in its support, and a score without mask."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, marginal: bool) -> None:
        self.fn = without_mask(fn) if marginal else fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Enumerated:
        return _Enumerated(self.fn.expand(batch_shape), False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        return ScoreParts(self.fn.log_prob(value), without_mask(self.fn).log_prob(value), torch.zeros(()))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = joint_support(self.fn)
        return values.expand(values.shape[:1] + self.fn.shape()) if expand else values
