"""The networks of an amortised guide: from the data of a call to the logits of all discrete sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_discrete.errors import SettingError, SiteShapeError
from pyro_discrete.guides.observations import features_of, pooled
from pyro_discrete.guides.variational import VariationalSite

__all__ = ["LogitNetworks"]

HIDDEN = 64
"""Hidden units of the networks that `amortize=True` makes."""
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A trace of the model on the data of a call, and the call's arguments."""


class LogitNetworks(nn.Module):
    """One network for the discrete sites of each set of plates; see `AutoDiscreteMeanField` for `amortize`, `input`."""

    def __init__(self, amortize: bool | int | nn.Module, input: Callable[..., Any] | None) -> None:
        super().__init__()
        self.input = input
        self.own = not isinstance(amortize, nn.Module)
        self.hidden = HIDDEN if amortize is True else amortize
        self.networks = nn.ModuleList([amortize] if isinstance(amortize, nn.Module) else [])
        self.groups: list[list[VariationalSite]] = []

    def make(
        self, sites: Mapping[str, VariationalSite], start: Mapping[str, Tensor], batch_dims: int, call: Call
    ) -> None:
        """Group the sites by their plates and make the networks, whose biases give the mean of the logits `start`."""
        groups: dict[tuple[str, ...], list[VariationalSite]] = {}
        for site in sites.values():
            groups.setdefault(tuple(f.name for f in site.plates), []).append(site)
        self.groups, self.batch_dims = list(groups.values()), batch_dims
        if not self.own and len(groups) > 1:
            listed = "; ".join(", ".join(repr(site.name) for site in group) for group in self.groups)
            raise SettingError(
                f"amortize= is a module, and the discrete sites are in different plates ({listed}), so that one "
                "network cannot serve them. Use amortize=True or a number of units."
            )
        for group in self.groups:
            features = self.features(group, call)
            if not self.own:
                continue
            assert isinstance(self.hidden, int)
            last = nn.Linear(self.hidden, sum(_numbers(site) for site in group))
            with torch.no_grad():
                last.bias.add_(torch.cat([start[site.name].reshape(-1, _numbers(site)).mean(0) for site in group]))
            self.networks.append(
                nn.Sequential(nn.Linear(features.shape[-1], self.hidden), nn.ReLU(), last).to(features)
            )

    def features(self, group: list[VariationalSite], call: Call) -> Tensor:
        """What the network of a group reads, `[*batch, features]`."""
        trace, args, kwargs = call
        plates = group[0].plates
        if self.input is not None:
            return pooled(self.input(*args, **kwargs), [f.dim for f in plates], self.batch_dims)
        return features_of(trace, [f.name for f in plates], self.batch_dims)

    def forward(self, call: Call) -> dict[str, Tensor]:
        """The logits of each discrete site, `[*batch, *event]`."""
        found: dict[str, Tensor] = {}
        for group, network in zip(self.groups, self.networks, strict=True):
            features = self.features(group, call)
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
