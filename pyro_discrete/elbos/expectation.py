"""The expectation of a reward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_discrete.elbos.elbo import advance_weight, checked_weight
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import refuses_unknown_keywords
from pyro_discrete.objectives.reward import ExpectedReward
from pyro_discrete.planning.select import Spec

__all__ = [
    "TraceExpectation",
]


class TraceExpectation(DiscreteELBO):
    r"""The expectation of a reward under the guide.

    .. math:: \max \; E_{q(z)}[f(z)] + \beta \, H(q)

    f is what the model says by `pyro.factor` and observed sites; its latent sites are where it receives the guide's
    draws, and their prior does not count. The guide may draw sites that the model does not have. Used like `TraceELBO`,
    with its estimators and arguments; those that are not explained here are explained there. The reward may be any
    function: with estimators that do not differentiate it ("reinforce", "rloo", "disarm", "enumerate", ...) it may be
    plain Python on NumPy. Where such a function takes arrays with dims on the left, all rows are evaluated at once,
    otherwise one by one, after a warning.

    - `entropy_weight`: beta >= 0, or a schedule from the step to it. The entropy of a site given the earlier ones is
      taken in closed form where its distribution has one.

    `loss()` is minus the expected reward by hard draws, without the entropy; `loss_and_grads` returns what was
    optimised. Raises `SiteMatchError` for a latent site of the model that the guide does not draw.

    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning;
    entropy regularisation as in Williams and Peng (1991), Function optimization using connectionist reinforcement
    learning algorithms.

    >>> import numpy as np
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> rewards = np.array([0.1, 0.7, 0.3])
    >>> def model():
    ...     arm = pyro.sample("arm", dist.Categorical(torch.ones(3)))
    ...     pyro.factor("reward", torch.as_tensor(rewards[arm.numpy()]))
    >>> def guide():
    ...     pyro.sample("arm", dist.Categorical(logits=pyro.param("logits", torch.zeros(3).double())))
    >>> loss = TraceExpectation("rloo", num_particles=4).loss_and_grads(model, guide)
    """

    objective: ExpectedReward
    weight: Tensor

    @refuses_unknown_keywords
    def __init__(
        self,
        estimator: Spec = "auto",
        *,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        compile: bool | Literal["graph"] = False,
        row_chunk: int | None = None,
        entropy_weight: float | Callable[[Any], Any] = 0.0,
    ) -> None:
        self.objective = ExpectedReward()
        super().__init__(
            estimator,
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
            strict_enumeration_warning=strict_enumeration_warning,
            compile=compile,
            row_chunk=row_chunk,
        )
        self.entropy_weight: float | Callable[[int], float] = checked_weight(entropy_weight, "entropy_weight")
        self.register_buffer("weight", torch.as_tensor(0.0), persistent=False)  # the step says what it is

    def _advance(self) -> None:
        if self.entropy_weight == 0.0:
            self.objective.weight = None
            return
        advance_weight(self.weight, self.entropy_weight, self.step, "entropy_weight")
        self.objective.weight = self.weight
