"""Draws that an inference has made, of MCMC or any other, in the place of a guide's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_discrete.errors import SettingError, SiteMatchError, SiteShapeError, near_matches, shown
from pyro_discrete.families import Family
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.programs.pair import Pair, Program
from pyro_discrete.programs.sites import family_of, is_latent, latent_sites

__all__ = [
    "GivenDraws",
    "as_pair",
    "uncollapsed",
]


@dataclass(frozen=True)
class GivenDraws:
    """Draws of a model's sites: `values` are `[draws, *batch, *event]` each, chain after chain.

    `of(samples)` takes a dict of these, one with a dim for the chains in front, or a run that has `get_samples`.
    """

    values: Mapping[str, Tensor]
    grouped: bool = False

    @staticmethod
    def of(samples: Any) -> GivenDraws:
        """Raises `SettingError` for what is no such thing."""
        grouped = hasattr(samples, "get_samples")
        if grouped:
            samples = samples.get_samples(group_by_chain=True)
        if not isinstance(samples, Mapping) or not samples or not all(torch.is_tensor(v) for v in samples.values()):
            raise SettingError(
                f"samples={shown(samples)} given; an MCMC run, or a dict from site names to tensors of draws "
                "[draws, *shape], is expected."
            )
        values = {name: value.detach() for name, value in samples.items()}
        sizes = {name: value.shape[: 1 + grouped] for name, value in values.items()}
        if len(set(sizes.values())) > 1 or not all(map(math.prod, sizes.values())) or () in sizes.values():
            listed = ", ".join(f"{n!r}: {tuple(v.shape)}" for n, v in values.items())
            raise SettingError(f"samples: as many draws of each site are expected, at least one; given are {listed}.")
        return GivenDraws(values, grouped)

    def fitted(self, trial: Trial) -> tuple[dict[str, Tensor], int]:
        """The draws of a model's latent sites `[draws, *batch, *event]`, and how many chains they are of.

        Raises `SiteMatchError` for names that no site has, or latent sites that have no draws and cannot be summed
        out, and `SiteShapeError` for draws of another shape.
        """
        latent = latent_sites(trial.model_trace)
        missing = [n for n, m in latent.items() if family_of(m["fn"]) in (None, Family.CONTINUOUS)]
        missing = [n for n in missing if n not in self.values]
        if missing:
            raise SiteMatchError(
                f"samples has no draws of {', '.join(map(repr, missing[:5]))}, which the model draws, and which cannot "
                "be summed out. Give those of every continuous site."
            )
        sites = {n: m for n, m in latent.items() if n in self.values}
        strangers = self.values.keys() - trial.model_trace.nodes.keys()
        if strangers or not sites:
            name = min(strangers, default=next(iter(self.values)))
            raise SiteMatchError(
                f"samples has draws of {name!r}, which is no latent site. {near_matches(name, latent)}"
            )
        found, chains = {}, 1
        for name, msg in sites.items():
            value, shape = self.values[name], tuple(msg["fn"].shape())
            while shape and shape[0] == 1 and len(shape) + 1 + self.grouped > value.dim():
                shape = shape[1:]
            leading = value.dim() - len(shape)
            if leading not in ((2,) if self.grouped else (1, 2)) or tuple(value.shape[leading:]) != shape:
                raise SiteShapeError(
                    f"samples[{name!r}] has shape {tuple(value.shape)}; draws of shape {tuple(msg['fn'].shape())} are "
                    "expected, with a dim for the draws in front, or two for chains and draws."
                )
            chains = value.shape[0] if leading == 2 else 1
            found[name] = value.reshape(-1, *msg["fn"].shape())
        if len({len(v) for v in found.values()}) > 1:
            raise SiteShapeError(f"samples: {', '.join(f'{n!r} has {len(v)} draws' for n, v in found.items())}.")
        return found, chains


def as_pair(model: Program, draws: GivenDraws, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pair:
    """The model, and as its guide the part of it that draws the sites of which there are draws."""

    def hidden(msg: Any) -> bool:
        drawn = is_latent(msg) and msg["name"] in draws.values
        return msg["type"] == "sample" and not site_is_subsample(msg) and not drawn

    return Pair(model, poutine.block(model, hide_fn=hidden), args, kwargs)


def uncollapsed(model: Program) -> Program:
    """The model itself, of one whose discrete sites are summed out by `collapse`."""
    return getattr(model, "uncollapsed", model)
