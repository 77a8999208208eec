"""A hard draw, the relaxed draw behind it, and one more relaxed draw given the hard one."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.relaxations.concrete import corner
from pyro_discrete.relaxations.gumbel import (
    conditional_gumbel,
    conditional_logistic,
    gumbel_like,
    logistic_like,
    uniform_like,
)

__all__ = ["relaxed_pair"]


def relaxed_pair(logits: Tensor, *, one_hot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The hard draw b, the unsquashed relaxed draw z that b comes from, and another z given b, each like `logits`.

    b is detached; both z are differentiable in `logits` with the noise (and b) held.

    Source: Tucker et al. (2017), REBAR, appendix B and C; Grathwohl et al. (2018), appendix B.
    """
    if not one_hot:
        z = logits + logistic_like(logits)
        hard = (z > 0).to(logits.dtype)
        return hard, z, conditional_logistic(logits, hard, uniform_like(logits))
    log_p = logits.log_softmax(-1)
    z = log_p + gumbel_like(logits)
    hard = corner(z, one_hot=True)
    return hard, z, conditional_gumbel(log_p, hard)
