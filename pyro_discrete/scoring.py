"""Scores of a site's value: its log-probability in guide or model, and what of it is differentiated how."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.util import is_identically_zero, scale_and_mask
from torch import Tensor

from pyro_discrete.errors import MissingDataError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.sites import base_distribution, without_mask

__all__ = ["first", "guide_log_prob", "log_prob", "padded"]


def first(tensor: Tensor, particles: int) -> Tensor:
    """The first K of the leading dim, without a node of the graph where that is all there is."""
    return tensor if tensor.shape[0] <= particles else tensor[:particles]


def padded(tensor: Tensor, batch_dims: int) -> Tensor:
    """A term with a leading dim and so many batch dims, of size 1 where it has none."""
    missing = 1 + batch_dims - tensor.dim()
    if missing == 1:
        return tensor.unsqueeze(0)
    return tensor.reshape((1,) * missing + tuple(tensor.shape)) if missing > 0 else tensor


def log_prob(fn: Any, msg: Any) -> Tensor:
    """The log-probability of a site's value by `fn`, neither scaled nor masked from outside."""
    try:
        return fn.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    except ValueError as error:
        value = msg["value"]
        if msg["is_observed"] and torch.is_tensor(value) and bool(value.isnan().any()):
            raise MissingDataError(
                f"The observed value of site {msg['name']!r} contains NaN. Drop or fill the missing data, or "
                f"use obs_mask."
            ) from error
        raise ValueError(f"While scoring site {msg['name']!r}: {error}") from error


def guide_log_prob(msg: Any, estimator: Estimator | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A guide site's cost term, its score if it has one, and its pathwise term if it has one.

    `estimator` is None for a site that none drew. A site whose row 0 is relaxed has no score.
    """
    fn, scale, mask = msg["fn"], msg["scale"], msg["mask"]
    if msg["is_observed"] and not isinstance(base_distribution(fn), Unit | Delta):
        # a value that the guide was conditioned on is not a draw of q
        return torch.zeros_like(log_prob(fn, msg)), None, None
    if estimator is None:
        parts = fn.score_parts(msg["value"], *msg["args"], **msg["kwargs"])
        log_q = scale_and_mask(parts.log_prob, scale, mask)
        pathwise = None
        if parts.entropy_term is parts.log_prob:
            pathwise = log_q
        elif not is_identically_zero(parts.entropy_term):
            pathwise = scale_and_mask(parts.entropy_term, scale, mask)
        score = None if is_identically_zero(parts.score_function) else parts.score_function
        return log_q, score, pathwise
    log_mass = log_prob(fn, msg)
    log_q = scale_and_mask(log_mass, scale, mask)
    if 0 in estimator.relaxed:
        return log_q, None, log_q
    bare = without_mask(fn)
    return log_q, log_mass if bare is fn else log_prob(bare, msg), None
