"""Label switching: the components of a mixture under the same names in every posterior draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_discrete.errors import SettingError, near_matches, refuses_unknown_keywords, shown

__all__ = [
    "relabel",
    "relabelling",
]


ROUNDS = 100

LEAST = 1e-6
"""The least probability of a label that a draw's labels are compared with."""


@refuses_unknown_keywords
def relabel(posterior: Any, site: str | None = None, *, components: Mapping[str, Any] | None = None) -> Any:
    r"""The posterior draws of a mixture with its components under the same names in every draw.

    The likelihood of a mixture stays the same if its components change names, and a sampler's chains (or one chain, on
    its way) may have them under other names: means over draws, and R-hat, then say nothing. Each draw's components are
    renamed so that its labels agree best with those of all draws,

    .. math:: \min_{\pi_s} \; - \sum_s \sum_n \log q_n\big(\pi_s(z_{sn})\big), \qquad
       q_n(k) = \tfrac1S \, \#\{s : \pi_s(z_{sn}) = k\},

    by turns the names of each draw given q (an assignment problem: the Hungarian method) and q given the names, until
    nothing changes.

    - `posterior`: what `to_inference_data` returns, an `xarray.Dataset` with dims `chain` and `draw` (or a `sample`
      dim's worth of draws as the first), or a dict from site names to tensors `[draws, ...]`. It is left as it is.
    - `site`: the labels, integers from 0 on; worked out if only one variable has integers.
    - `components`: the variables that are renamed with the labels, each with its dim of components: a name in a
      `Dataset`, a position in a dict, such as `{"locs": -1, "weights": -1}`; or more of them in a list (both dims of a
      matrix of transitions). Worked out if not given: every other variable's dims, beside those of draws and data, that
      have as many elements as there are components.

    Returns the same kind of object. Other labels of the same components (`z1`, `z2` along a chain) are renamed along if
    `components` has them with None in the place of a dim.

    Raises `SettingError` for names that are not there, labels that are no integers, or labels that the components'
    dims have no room for.

    Source: Stephens (2000), Dealing with label switching in mixture models, algorithm 2 with labels in the place of
    probabilities; Papastamoulis and Iliopoulos (2010), An artificial allocations based solution to the label switching
    problem; Kuhn (1955), The Hungarian method for the assignment problem.

    >>> import torch
    >>> draws = {"z": torch.tensor([[0, 0, 1], [1, 1, 0]]), "locs": torch.tensor([[-1.0, 2.0], [2.1, -0.9]])}
    >>> relabel(draws)["locs"]
    tensor([[-1.0000,  2.0000],
            [-0.9000,  2.1000]])
    """
    if hasattr(posterior, "posterior"):  # ArviZ's InferenceData, or DataTree
        return _with_posterior(posterior, relabel(_dataset(posterior.posterior), site, components=components))
    if isinstance(posterior, xr.Dataset):
        return _relabelled_dataset(posterior, site, components)
    if isinstance(posterior, Mapping) and posterior and all(torch.is_tensor(v) for v in posterior.values()):
        return _relabelled_draws(dict(posterior), site, components)
    raise SettingError(
        f"relabel: {shown(posterior)} given; what to_inference_data returns, an xarray.Dataset with dims chain and "
        "draw, or a dict from site names to tensors of draws is expected."
    )


def _dataset(group: Any) -> xr.Dataset:
    return group if isinstance(group, xr.Dataset) else group.to_dataset()


def _with_posterior(data: Any, made: xr.Dataset) -> Any:
    found = data.copy()
    if isinstance(data.posterior, xr.Dataset):
        found.posterior = made
    else:
        found["posterior"] = xr.DataTree(made)
    return found


def _relabelled_draws(
    draws: dict[str, Tensor], site: str | None, components: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """Of a dict of tensors: by way of a `Dataset`, whose dims are positions."""
    arrays = {n: v.detach().cpu().numpy() for n, v in draws.items()}
    plain = {n: (["chain", "draw", *(f"{n} {i}" for i in range(1, v.ndim))], v[None]) for n, v in arrays.items()}
    given = None
    if components is not None:
        given = {n: _positions(n, at, draws) for n, at in components.items()}
    made = _relabelled_dataset(xr.Dataset(plain), site, given)
    return {n: torch.as_tensor(made[n].values[0]).to(v) for n, v in draws.items()}


def _positions(name: str, at: Any, draws: Mapping[str, Tensor]) -> Any:
    if at is None or name not in draws:
        return at
    places = list(at) if isinstance(at, list | tuple) else [at]
    dims = draws[name].dim()
    for place in places:
        if isinstance(place, bool) or not isinstance(place, int) or not (1 - dims <= place < dims) or place == 0:
            raise SettingError(
                f"relabel: components has {shown(at)} for {name!r} of shape {tuple(draws[name].shape)}; the place of "
                "a dim behind that of the draws is expected."
            )
    return [f"{name} {place % dims}" for place in places]


def _relabelled_dataset(data: xr.Dataset, site: str | None, components: Mapping[str, Any] | None) -> xr.Dataset:
    if not {"chain", "draw"} <= {*data.dims}:
        raise SettingError(f"relabel: dims chain and draw are expected; there are {', '.join(map(str, data.dims))}.")
    site = _labels(data, site)
    labels = data[site].stack(_draw=("chain", "draw")).transpose("_draw", ...).values
    labels = labels.reshape(len(labels), -1)
    if not np.issubdtype(labels.dtype, np.integer) and not np.array_equal(labels, np.round(labels)):
        raise SettingError(f"relabel: {site!r} has values that are no whole numbers: labels are expected.")
    if labels.min() < 0:
        raise SettingError(f"relabel: {site!r} has negative values: labels from 0 on are expected.")
    named = _components(data, site, int(labels.max()) + 1, components)
    sizes = {data.sizes[dim] for dims in named.values() for dim in dims}
    count = max(sizes, default=int(labels.max()) + 1)
    if len(sizes) > 1 or labels.max() >= count:
        raise SettingError(
            f"relabel: {site!r} has labels up to {int(labels.max())}, and the dims of components have sizes "
            f"{sorted(sizes)}: one size, with room for every label, is expected."
        )
    names = relabelling(labels.astype(int), count)
    made = data.copy()
    renamed = {site, *(n for n, at in (components or {}).items() if at is None)}
    for name in renamed:
        made[name] = _renamed_labels(data[name], names)
    for name, dims in named.items():
        for dim in dims:
            made[name] = _reordered(made[name], dim, names)
    return made


def _labels(data: xr.Dataset, site: str | None) -> str:
    if site is None:
        whole = [str(n) for n, v in data.data_vars.items() if np.issubdtype(v.dtype, np.integer)]
        if len(whole) != 1:
            listed = ", ".join(map(repr, whole)) or "none"
            raise SettingError(f"relabel: variables of integers are {listed}; say which has the labels: site=...")
        return whole[0]
    if site not in data:
        raise SettingError(f"relabel: there is no {site!r}. {near_matches(site, map(str, data.data_vars))}")
    return site


def _components(data: xr.Dataset, site: str, least: int, given: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The dims of components of each variable that has any."""
    if given is not None:
        found: dict[str, list[str]] = {}
        for name, at in given.items():
            if name not in data:
                raise SettingError(f"relabel: there is no {name!r}. {near_matches(name, map(str, data.data_vars))}")
            dims = [] if at is None else [at] if isinstance(at, str) else list(at)
            missing = [d for d in dims if d not in data[name].dims]
            if missing:
                known = ", ".join(map(str, data[name].dims))
                raise SettingError(f"relabel: {name!r} has no dim {missing[0]!r}. It has {known}.")
            found[name] = dims
        return found
    shared = {"chain", "draw", *data[site].dims}
    free = {str(n): [d for d in v.dims if d not in shared] for n, v in data.data_vars.items() if n != site}
    sizes = sorted({data.sizes[d] for dims in free.values() for d in dims if data.sizes[d] >= max(2, least)})
    if not sizes:
        return {}
    if len(sizes) > 1:
        raise SettingError(
            f'relabel: dims of sizes {sizes} may be those of components; say which are: components={{"locs": ...}}.'
        )
    return {n: [str(d) for d in dims if data.sizes[d] == sizes[0]] for n, dims in free.items()}


def _renamed_labels(labels: xr.DataArray, names: np.ndarray) -> xr.DataArray:
    ordered = labels.transpose("chain", "draw", ...)
    flat = ordered.values.reshape(len(names), -1)
    values = np.take_along_axis(names, flat.astype(int), 1).reshape(ordered.shape).astype(labels.dtype)
    return ordered.copy(data=values).transpose(*labels.dims)


def _reordered(variable: xr.DataArray, dim: str, names: np.ndarray) -> xr.DataArray:
    ordered = variable.transpose("chain", "draw", dim, ...)
    values = ordered.values.reshape(len(names), ordered.sizes[dim], -1)
    order = np.argsort(names, 1)  # component k of a draw was called order[k]
    values = np.take_along_axis(values, order[:, :, None], 1).reshape(ordered.shape)
    return ordered.copy(data=values).transpose(*variable.dims)


def relabelling(labels: np.ndarray, count: int) -> np.ndarray:
    """New names `[draws, count]` of the components of each draw, from labels `[draws, data]`.

    Component k of draw s is called `names[s, k]`. The first draw's names are where the search begins.
    """
    draws, size = labels.shape
    one_hot = np.zeros((draws, size, count))
    np.put_along_axis(one_hot, labels[:, :, None], 1.0, 2)
    names = np.tile(np.arange(count), (draws, 1))
    shares = one_hot[0]
    for _ in range(ROUNDS):
        scores = np.log(np.clip(shares, LEAST, None))
        costs = -np.einsum("snj,nk->sjk", one_hot, scores)
        found = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
        shares = np.take_along_axis(one_hot, np.argsort(found, 1)[:, None, :], 2).mean(0)
        if np.array_equal(found, names):
            break
        names = found
    return names
