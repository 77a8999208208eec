"""Draws from a site's distribution, by the faster of the ways that have its law."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Categorical, Independent, OneHotCategorical
from torch.nn.functional import one_hot

__all__ = ["drawn"]


def drawn(fn: Any) -> Tensor:
    """A draw, of the shape of `fn()`. Rows of categories that share their parameters are drawn from these at once.

    `fn()` draws an exponential number for each category of each row; a table of sums, looked into once for each row,
    takes an eighth of the time with 10 categories, and less with more.
    """
    base = fn
    while isinstance(base, Independent | MaskedDistribution):
        base = base.base_dist
    own = getattr(type(base), "sample", None)
    if own is Categorical.sample and _shares_rows(base._param):
        return _categories(base)
    if own is OneHotCategorical.sample and _shares_rows(base._param):
        return one_hot(_categories(base._categorical), base._param.shape[-1]).to(base._param.dtype)
    return fn()


def _shares_rows(parameter: Tensor) -> bool:
    plain = type(parameter) in (Tensor, torch.nn.Parameter)
    return plain and parameter.dim() > 1 and len(parameter) > 1 and parameter.stride(0) == 0


@torch.no_grad()
def _categories(fn: Categorical) -> Tensor:
    probs = fn.probs[0] if "probs" in vars(fn) else fn.logits[0].softmax(-1)
    values = torch.multinomial(probs.reshape(-1, probs.shape[-1]), fn.batch_shape[0], replacement=True)
    return values.T.reshape(fn.batch_shape).contiguous()
