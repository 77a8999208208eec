"""What a guide's network reads: the observed values of one run of the model, aligned with the plates of its sites."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Categorical, Independent

from pyro_discrete.errors import SettingError
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.sites import base_distribution, is_random_observation, sample_sites

__all__ = ["features_of", "observed_run", "pooled"]


def observed_run(model: Any, subsamples: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A trace of the model on this call's data, hidden from all handlers around it, with the given subsamples."""
    with poutine.block(), torch.no_grad(), _Subsampled(subsamples):
        return poutine.trace(model).get_trace(*args, **kwargs)


class _Subsampled(Messenger):
    """Gives plates the subsamples that they have in the guide."""

    def __init__(self, subsamples: Mapping[str, Any]) -> None:
        super().__init__()
        self.subsamples = subsamples

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self.subsamples:
            msg["value"], msg["done"] = self.subsamples[msg["name"]], True


def features_of(trace: Any, plates: Collection[str], batch_dims: int) -> Tensor:
    """All observed values of the run as `[*batch, features]`, averaged over plates that are not in `plates`.

    There are `batch_dims` batch dims, of size 1 where none of the plates is. Categories are one-hot, what is masked or
    not a number is zero. Raises `SettingError` if the model observes nothing.
    """
    parts = [_aligned(msg, plates, batch_dims) for msg in sample_sites(trace).values() if is_random_observation(msg)]
    if not parts:
        raise SettingError(
            "amortize=... given for a model that observes nothing (or hides it by poutine.block): there are no data "
            "for a network to read. Give the data by input=, a function of the model's arguments, or use "
            "amortize=False."
        )
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def pooled(features: Any, dims: Iterable[int], batch_dims: int) -> Tensor:
    """What an `input` function returned, `[*batch, features]`, averaged over batch dims other than `dims`."""
    if not torch.is_tensor(features) or not 1 <= features.dim() <= 1 + batch_dims:
        got = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
        raise SettingError(
            f"The function input= returned {got}; a tensor [*plates, features] with at most {batch_dims} plate dims is "
            "expected."
        )
    features = features.reshape((1,) * (1 + batch_dims - features.dim()) + tuple(features.shape))
    return _mean_over(features, [d for d in range(-batch_dims, 0) if d not in set(dims)])


def _aligned(msg: Any, plates: Collection[str], batch_dims: int) -> Tensor:
    fn, value = msg["fn"], msg["value"].detach()
    base = base_distribution(fn)
    event_dim = fn.event_dim
    there = _mask(msg).expand(value.shape)
    if isinstance(base, Categorical):
        value = torch.nn.functional.one_hot(value.long(), base.logits.shape[-1])
        there, event_dim = there.unsqueeze(-1), event_dim + 1
    value = value.to(base.mean.dtype if not isinstance(base, Categorical) else base.logits.dtype)
    value = torch.where(there, value.nan_to_num(), 0.0)
    batch = tuple(value.shape[: value.dim() - event_dim])
    value = value.reshape((1,) * (batch_dims - len(batch)) + batch + (-1,))
    return _mean_over(value, [f.dim for f in plates_of(msg) if f.dim is not None and f.name not in plates])


def _mean_over(features: Tensor, dims: Iterable[int]) -> Tensor:
    """The mean over batch dims, counted from the right of the batch, which are kept with size 1."""
    for dim in dims:
        if features.shape[dim - 1] > 1:
            features = features.mean(dim - 1, keepdim=True)
    return features


def _mask(msg: Any) -> Tensor:
    """Where the observed value counts, broadcastable to its shape: masks of the site, and of its distribution."""
    value, fn = msg["value"], msg["fn"]
    mask = torch.ones((), dtype=torch.bool, device=value.device)
    if msg["mask"] is not None:
        given = torch.as_tensor(msg["mask"], device=value.device)
        mask = mask & given.reshape(tuple(given.shape) + (1,) * fn.event_dim)
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            given = torch.as_tensor(fn._mask, device=value.device)
            mask = mask & given.reshape(tuple(given.shape) + (1,) * fn.event_dim)
        fn = fn.base_dist
    return mask
