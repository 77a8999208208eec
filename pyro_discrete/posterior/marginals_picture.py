"""Probabilities of discrete values as a picture: of a posterior's marginals, and of draws in ArviZ' groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import validation_enabled
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical

from pyro_discrete.errors import SettingError, near_matches
from pyro_discrete.posterior.mixtures import MixtureOfDraws
from pyro_discrete.programs.sites import base_distribution
from pyro_discrete.tables.alike_names import grouped, in_one, pattern_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "picture_draws",
    "picture_marginals",
]


MOST_VALUES = 60
"""Of so many values the first are drawn."""


MOST_TICKS = 12


NEXT_TO_NOTHING = 1e-3
"""A count's last values of so little probability are left out."""


@dataclass(frozen=True)
class _Panel:
    """Probabilities `[elements, values]` of one site, or of several alike ones; `chains`: those of each chain of draws.

    `binary`: whether there is one probability to show for an element, that of 1.
    """

    title: str
    table: np.ndarray
    elements: str
    binary: bool
    first: int = 0
    chains: np.ndarray | None = None
    names: Sequence[str] = ()


def picture_marginals(marginals: Mapping[str, Any], *, draws: int = 1, path: str | Path | None = None) -> Figure:
    """What `DiscretePosterior.marginals()` found: a panel for each site, one for all sites that a number tells apart.

    A single site has a bar for each value; many elements are a map of values by elements, with the probability as its
    darkness; of bits, the probability of 1. Of counts without an end the values that hold nearly all are shown.

    - `marginals`: site names to distributions. `draws`: how many of these there are along the leftmost dim, to average
      over. `path`: where the picture is saved, too.

    Needs matplotlib (the extra "plots"). Raises `SettingError` where there is no discrete distribution.

    >>> import pyro.distributions as dist
    >>> figure = picture_marginals({"z": dist.Categorical(torch.tensor([0.2, 0.5, 0.3]))})
    >>> [float(f"{bar.get_height():.2f}") for bar in figure.axes[0].patches]
    [0.2, 0.5, 0.3]
    """
    found = {name: _probabilities(fn, draws) for name, fn in marginals.items()}
    known = {name: each for name, each in found.items() if each is not None}
    if not known:
        raise SettingError("picture_marginals: no discrete site is among the marginals: there is nothing to draw.")
    names = list(known)
    keys = [(pattern_of(n), known[n][0].shape, known[n][1], known[n][0].shape[0] == 1 or n) for n in names]
    panels = []
    for group in grouped(keys):
        members = [names[i] for i in group]
        table = torch.cat([known[n][0] for n in members])
        several = members if len(members) > 1 else ()
        panels.append(
            _Panel(
                in_one(members), table.numpy(), "site" if several else "element", known[members[0]][1], names=several
            )
        )
    return _drawn(panels, path)


def picture_draws(
    data: Any, var_names: Sequence[str] | None = None, *, ax: Any = None, path: str | Path | None = None
) -> Figure:
    """How often draws have each value, for the discrete variables of ArviZ' `InferenceData` (or `DataTree`).

    ArviZ draws a density, a mean and an interval of whatever is in `posterior`, which say little of categories. Here
    a variable without dims has a bar for each value, and a dot for each chain, which should lie together; one with dims
    is a map of values by elements, of bits the share of 1.

    - `var_names`: which of them; by default all whose draws are whole numbers, NaN left out.
    - `ax`: axes to draw on, one for each of these, such as an ArviZ plot returned; what they held is cleared.
    - `path`: where the picture is saved, too.

    Needs matplotlib (the extra "plots"). Raises `SettingError` for unknown variables, those that are not whole
    numbers, and another number of axes.

    >>> import xarray as xr
    >>> draws = xr.Dataset({"z": (("chain", "draw"), [[0, 1, 1, 2], [1, 1, 2, 0]])})
    >>> figure = picture_draws({"posterior": draws})
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [0.25, 0.5, 0.25]
    """
    posterior = data["posterior"]
    variables = {str(name): posterior[name] for name in posterior.data_vars}
    for name in var_names or ():
        if name not in variables:
            raise SettingError(f"picture_draws: there is no variable {name!r}. {near_matches(name, variables)}")
    chosen = list(variables if var_names is None else var_names)
    if var_names is None:
        chosen = [name for name in chosen if _whole(variables[name].values)]
    bad = [name for name in chosen if not _whole(variables[name].values)]
    if bad or not chosen:
        told = f"draws of {', '.join(map(repr, bad))} are not whole numbers" if bad else "no variable has whole numbers"
        raise SettingError(f"picture_draws: {told}; ArviZ' own plots are for these.")
    return _drawn([_counted(name, variables[name]) for name in chosen], path, ax)


def _whole(values: np.ndarray) -> bool:
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return values.dtype.kind in "biuf" and known.size > 0 and bool((known == np.floor(known)).all())


def _counted(name: str, draws: Any) -> _Panel:
    """Shares of the draws `[chain, draw, *dims]`, over those that are not NaN."""
    dims = [str(d) for d in draws.dims if d not in ("chain", "draw")]
    values = draws.transpose("chain", "draw", *dims).values
    values = values.reshape(*values.shape[:2], -1)
    low, high = int(np.nanmin(values)), int(np.nanmax(values))
    binary = low >= 0 and high <= 1
    low, high = (0, 1) if binary else (low, high)
    with np.errstate(invalid="ignore"):
        known = (~np.isnan(values.astype(float))).sum(1)
        each = np.stack([(values == v).sum(1) for v in range(low, high + 1)], -1)  # [chain, elements, values]
        table, chains = each.sum(0) / known.sum(0)[:, None], each / known[..., None]
    return _Panel(name, table, " x ".join(dims), binary, low, chains if not dims and len(chains) > 1 else None)


def _probabilities(fn: Any, draws: int) -> tuple[Tensor, bool] | None:
    """`[elements, values]`, averaged over draws on the left, and whether these are bits; None of what is no such."""
    base = base_distribution(fn)
    if isinstance(base, Bernoulli):
        ones = base.probs.detach().cpu().reshape(draws, -1).mean(0)
        return torch.stack([1 - ones, ones], -1), True
    if isinstance(base, Categorical | OneHotCategorical):
        probabilities = base.probs.detach().cpu()
    elif base.event_shape == () and getattr(base.support, "is_discrete", False):
        reach = torch.nan_to_num(base.mean + 4 * base.variance.clamp(min=0).sqrt(), nan=math.inf).max()
        values = torch.arange(min(math.ceil(reach) + 1 if torch.isfinite(reach) else MOST_VALUES, MOST_VALUES))
        each = values.to(base.mean).reshape(-1, *(1,) * len(base.batch_shape)).expand(-1, *base.batch_shape)
        probabilities = _mass(base, each).detach().cpu().movedim(0, -1)
    else:
        return None
    table = probabilities.reshape(draws, -1, probabilities.shape[-1]).mean(0)
    counts = not isinstance(base, Categorical | OneHotCategorical)
    return (table[:, : int((table.amax(0) > NEXT_TO_NOTHING).nonzero().max()) + 1] if counts else table), False


def _mass(base: Any, values: Tensor) -> Tensor:
    """Of counts `[values, *batch]`; zero beyond the last one."""
    if isinstance(base, MixtureOfDraws):
        return base.log_prob(values).exp()
    with validation_enabled(False):
        found = base.log_prob(values).exp()
    top = getattr(base, "total_count", None) if isinstance(base, Binomial) else None
    return found if top is None else torch.where(values <= top, found, 0.0)


def _drawn(panels: Sequence[_Panel], path: str | Path | None, ax: Any = None) -> Figure:
    from matplotlib.figure import Figure  # of the extra "plots"

    if ax is None:
        figure = Figure(figsize=(7, 0.4 + 2.2 * len(panels)), layout="constrained")
        axes = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    else:
        axes = list(np.atleast_1d(np.asarray(ax, dtype=object)).ravel())
        if len(axes) != len(panels):
            raise SettingError(
                f"picture_draws: {len(axes)} axes given, one for each of {len(panels)} variables expected."
            )
        figure = axes[0].figure
    for each, panel in zip(axes, panels, strict=True):
        if ax is not None:
            each.clear()
        draw = _draw_bars if len(panel.table) == 1 else _draw_ones if panel.binary else _draw_map
        draw(each, replace(panel, table=panel.table[:, :MOST_VALUES]))
        beyond = f", the first {MOST_VALUES} values of {panel.table.shape[1]}" * (panel.table.shape[1] > MOST_VALUES)
        each.set_title(panel.title + beyond, fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_bars(axes: Any, panel: _Panel) -> None:
    values = np.arange(panel.first, panel.first + panel.table.shape[1])
    axes.bar(values, panel.table[0], color="#56B4E9")
    for number, chain in enumerate(panel.chains if panel.chains is not None else ()):
        axes.plot(
            values, chain[0][: len(values)], "o", color="black", markersize=3, label="" if number else "each chain"
        )
    if panel.chains is not None:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="value", ylabel="probability", ylim=(0, 1.05))
    axes.set_xticks(values[:: -(-len(values) // MOST_TICKS)])
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ones(axes: Any, panel: _Panel) -> None:
    """Bits: the probability of 1 of each element."""
    ones = panel.table[:, 1]
    style = {"width": 1.0} if len(ones) > 60 else {}
    axes.bar(np.arange(len(ones)), ones, color="#56B4E9", **style)
    axes.set(ylabel="probability of 1", ylim=(0, 1.05))
    axes.spines[["top", "right"]].set_visible(False)
    _label_elements(axes, panel)


def _draw_map(axes: Any, panel: _Panel) -> None:
    """Values by elements."""
    low, count = panel.first - 0.5, panel.table.shape[1]
    extent = (-0.5, len(panel.table) - 0.5, low, low + count)
    image = axes.imshow(
        panel.table.T, vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower", extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    values = np.arange(panel.first, panel.first + count)
    axes.set_yticks(values[:: -(-count // MOST_TICKS)])
    axes.set_ylabel("value")
    axes.figure.colorbar(image, ax=axes, label="probability")
    _label_elements(axes, panel)


def _label_elements(axes: Any, panel: _Panel) -> None:
    count = len(panel.table)
    places = list(range(0, count, max(1, math.ceil(count / MOST_TICKS))))
    axes.set_xticks(places, [panel.names[i] for i in places] if panel.names else [str(i) for i in places])
    axes.set_xlabel(panel.elements)
    axes.tick_params(axis="x", labelsize=8)
