"""A guide's networks, and what they read: observed values and arguments, aligned with the plates of their sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import SettingError, SiteShapeError
from pyro_discrete.guides.arguments import Reading, read, readings
from pyro_discrete.guides.variational import VariationalSite
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.sites import base_distribution, is_random_observation, sample_sites

__all__ = [
    "LogitNetworks",
    "features_of",
    "pooled",
    "trace_on_data",
]


def trace_on_data(model: Any, subsamples: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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


def features_of(trace: Any, plates: Collection[str], batch_dims: int, more: Sequence[Tensor] = ()) -> Tensor:
    """All observed values of the run as `[*batch, features]`, averaged over plates that are not in `plates`.

    There are `batch_dims` batch dims, of size 1 where none of the plates is. Categories are one-hot, what is masked or
    not a number is zero. `more` are features of the same kind. Raises `SettingError` if there is nothing at all.
    """
    parts = [_aligned(msg, plates, batch_dims) for msg in sample_sites(trace).values() if is_random_observation(msg)]
    parts += [part.to(parts[0]) for part in more] if parts else more
    if not parts:
        raise SettingError(
            "amortize=... given for a model that observes nothing (or hides it by poutine.block) and is given no "
            "tensor: there are no data for a network to read. Give them by input=, a function of the model's "
            "arguments, or use amortize=False."
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
    if isinstance(base, Structure):
        own = len(base.event_shape)
        there = there[(..., *(0,) * own)][(..., *(None,) * len(base.vertex_shape))]
        value, event_dim = base.vertex(value), event_dim - own + len(base.vertex_shape)
    value = value.to(base.logits.dtype if isinstance(base, Categorical | Structure) else base.mean.dtype)
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


HIDDEN = 64
"""Hidden units of the networks that `amortize=True` makes."""


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A trace of the model on the data of a call, and the call's arguments."""


class LogitNetworks(nn.Module):
    """One network for the discrete sites of each set of plates; see `AutoDiscreteMeanField` for `amortize`, `input`."""

    def __init__(self, amortize: bool | int | nn.Module, input: Callable[..., Any] | None) -> None:
        super().__init__()
        self.input = input
        self.own: bool = not isinstance(amortize, nn.Module)
        self.hidden = HIDDEN if amortize is True else amortize
        self.networks: nn.ModuleList = nn.ModuleList([amortize] if isinstance(amortize, nn.Module) else [])
        self.groups: list[list[VariationalSite]] = []
        self.reads: list[list[Reading]] = []

    def make(
        self, model: Any, sites: Mapping[str, VariationalSite], start: Mapping[str, Tensor], batch_dims: int, call: Call
    ) -> None:
        """Group the sites by their plates and make the networks, whose biases give the mean of the logits `start`."""
        groups: dict[tuple[str, ...], list[VariationalSite]] = {}
        for site in sites.values():
            groups.setdefault(tuple(f.name for f in site.plates), []).append(site)
        self.groups = list(groups.values())
        self.batch_dims: int = batch_dims
        if not self.own and len(groups) > 1:
            listed = "; ".join(", ".join(repr(site.name) for site in group) for group in self.groups)
            raise SettingError(
                f"amortize= is a module, and the discrete sites are in different plates ({listed}), so that one "
                "network cannot serve them. Use amortize=True or a number of units."
            )
        for group in self.groups:
            plates = [f.name for f in group[0].plates]
            self.reads.append([] if self.input is not None else readings(model, *call, plates, not self.own))
            features = self.features(model, len(self.reads) - 1, call)
            if not self.own:
                continue
            assert isinstance(self.hidden, int)
            last = nn.Linear(self.hidden, sum(_numbers(site) for site in group))
            with torch.no_grad():
                last.bias.add_(torch.cat([start[site.name].reshape(-1, _numbers(site)).mean(0) for site in group]))
            self.networks.append(
                nn.Sequential(nn.Linear(features.shape[-1], self.hidden), nn.ReLU(), last).to(features)
            )

    def features(self, model: Any, group: int, call: Call) -> Tensor:
        """What the network of a group reads, `[*batch, features]`."""
        trace, args, kwargs = call
        plates = self.groups[group][0].plates
        if self.input is not None:
            return pooled(self.input(*args, **kwargs), [f.dim for f in plates], self.batch_dims)
        more = [read(reading, model, *call, self.batch_dims) for reading in self.reads[group]]
        return features_of(trace, [f.name for f in plates], self.batch_dims, more)

    def forward(self, model: Any, call: Call) -> dict[str, Tensor]:
        """The logits of each discrete site, `[*batch, *event]`."""
        found: dict[str, Tensor] = {}
        for i, (group, network) in enumerate(zip(self.groups, self.networks, strict=True)):
            features = self.features(model, i, call)
            logits, sizes = network(features), [_numbers(site) for site in group]
            expected = (*features.shape[:-1], sum(sizes))
            if tuple(logits.shape) != expected:
                names = ", ".join(f"{site.name!r} ({size})" for site, size in zip(group, sizes, strict=True))
                raise SiteShapeError(
                    f"The network of amortize= made {tuple(logits.shape)} of {tuple(features.shape)}; {expected} is "
                    f"expected, the logits of {names} in this order."
                )
            for site, part in zip(group, logits.split(sizes, -1), strict=True):
                batch = part.shape[:-1][self.batch_dims - len(site.fn.batch_shape) :]
                found[site.name] = part.reshape((*batch, *site.event_shape))
        return found


def _numbers(site: VariationalSite) -> int:
    """How many logits an element of the site's batch has."""
    return math.prod(site.event_shape)
