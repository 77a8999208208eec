"""Label switching: the components of a mixture under the same names in every posterior draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, OneHotCategorical

from pyro_discrete.errors import SettingError, near_matches, refuses_unknown_keywords, shown
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.posterior.given_draws import GivenDraws
from pyro_discrete.programs.sites import base_distribution

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "relabel",
    "relabelling",
    "renaming",
]


ROUNDS = 100

LEAST = 1e-6
"""The least probability of a label that a draw's labels are compared with."""


SAME = 1e-3
"""So far apart at most are a datum's probabilities of its labels, computed before and after components are renamed."""


@refuses_unknown_keywords
def relabel(
    posterior: Any,
    site: str | None = None,
    *,
    components: Mapping[str, Any] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    r"""The posterior draws of a mixture with its components under the same names in every draw.

    The likelihood of a mixture stays the same if its components change names, and a sampler's chains (or one chain, on
    its way) may have them under other names: means over draws, and R-hat, then say nothing. Each draw's components are
    renamed so that its labels agree best with those of all draws,

    .. math:: \min_{\pi_s} \; - \sum_s \sum_n \log q_n\big(\pi_s(z_{sn})\big), \qquad
       q_n(k) = \tfrac1S \, \#\{s : \pi_s(z_{sn}) = k\},

    by turns the names of each draw given q (an assignment problem: the Hungarian method) and q given the names, until
    nothing changes.

    - `posterior`: what `to_inference_data` returns, an `xarray.Dataset` with dims `chain` and `draw` (or a `sample`
      dim's worth of draws as the first), or a dict from site names to tensors `[draws, ...]`; or a `DiscretePosterior`
      of given draws (`samples=`), whose labels are not drawn: their probabilities given each draw are compared, and
      what is returned gives marginals, samples and most probable values under the same names. It is left as it is.
    - `site`: the labels, integers from 0 on; worked out if only one variable has integers. Of a `DiscretePosterior` all
      discrete sites (those of a chain) if none is named.
    - `components`: the variables that are renamed with the labels, each with its dim of components: a name in a
      `Dataset`, a position in a dict, such as `{"locs": -1, "weights": -1}`; or more of them in a list (both dims of a
      matrix of transitions). A `DiscretePosterior`'s are its draws', as those of a dict. Worked out if not given: every
      other variable's dims, beside those of draws and data, that have as many elements as there are components.
    - `args`, `kwargs`: what the program of a `DiscretePosterior` is called with.

    Returns the same kind of object. Other labels of the same components (`z1`, `z2` along a chain) are renamed along if
    `components` has them with None in the place of a dim.

    Raises `SettingError` for names that are not there, labels that are no integers, or labels that the components' dims
    have no room for, and where a program tells its components apart (by a fixed table), so that renamed draws would not
    give the renamed labels.

    Source: Stephens (2000), Dealing with label switching in mixture models, algorithm 2, of drawn labels with these in
    the place of probabilities; Papastamoulis and Iliopoulos (2010), An artificial allocations based solution to the
    label switching problem; Kuhn (1955), The Hungarian method for the assignment problem.

    >>> import torch
    >>> draws = {"z": torch.tensor([[0, 0, 1], [1, 1, 0]]), "locs": torch.tensor([[-1.0, 2.0], [2.1, -0.9]])}
    >>> relabel(draws)["locs"]
    tensor([[-1.0000,  2.0000],
            [-0.9000,  2.1000]])
    """
    import xarray as xr  # here and below, as it is slow to import

    if site is not None and not isinstance(site, str):
        raise SettingError(
            f"relabel: site={shown(site)} given, a site's name expected; what the program of a DiscretePosterior is "
            "called with goes into args=(...)."
        )
    if isinstance(posterior, DiscretePosterior):
        return _relabelled_posterior(posterior, site, components, tuple(args), dict(kwargs or {}))
    if args or kwargs:
        raise SettingError("relabel: args and kwargs are for the program of a DiscretePosterior; here nothing is run.")
    if hasattr(posterior, "posterior"):  # ArviZ's InferenceData, or DataTree
        return _with_posterior(posterior, relabel(_dataset(posterior.posterior), site, components=components))
    if isinstance(posterior, xr.Dataset):
        return _relabelled_dataset(posterior, site, components)
    if isinstance(posterior, getattr(xr, "DataTree", ())):  # a group of what ArviZ 1 makes
        return xr.DataTree(_relabelled_dataset(posterior.to_dataset(), site, components))
    if isinstance(posterior, Mapping) and posterior and all(torch.is_tensor(v) for v in posterior.values()):
        return _relabelled_draws(dict(posterior), site, components)
    raise SettingError(
        f"relabel: {shown(posterior)} given; what to_inference_data returns, an xarray.Dataset with dims chain and "
        "draw, a dict from site names to tensors of draws, or a DiscretePosterior of draws is expected."
    )


def _relabelled_posterior(
    posterior: DiscretePosterior,
    site: str | None,
    components: Mapping[str, Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> DiscretePosterior:
    """Of the probabilities of labels, given every draw."""
    import xarray as xr

    if posterior.draws is None:
        raise SettingError(
            "relabel: a DiscretePosterior without samples= given. A guide's draws have no chains to switch between: "
            "its components have one name each."
        )
    before = _probabilities(posterior, site, args, kwargs)
    shares = np.concatenate([p.reshape(len(p), -1, p.shape[-1]) for p in before.values()], 1)
    count, given = shares.shape[-1], posterior.draws
    leading = {n: 2 if given.grouped or len(v) != len(shares) else 1 for n, v in given.values.items()}
    draws = {n: v.reshape(len(shares), *v.shape[leading[n] :]) for n, v in given.values.items()}
    if components is None:
        named = {n: [f"{n} {i}" for i in range(1, v.dim()) if v.shape[i] == count] for n, v in draws.items()}
    else:
        missing = [n for n in components if n not in draws]
        if missing:
            raise SettingError(f"relabel: there is no {missing[0]!r}. {near_matches(missing[0], draws)}")
        named = {n: _positions(n, at, draws) for n, at in components.items() if at is not None}
    names = renaming(shares)
    made = dict(given.values)
    for name, dims in named.items():
        value = xr.DataArray(
            draws[name].cpu().numpy()[None],
            dims=["chain", "draw", *(f"{name} {i}" for i in range(1, draws[name].dim()))],
        )
        for dim in dims:
            if value.sizes[dim] != count:
                raise SettingError(
                    f"relabel: {name!r} has {value.sizes[dim]} elements in a dim of components, and labels have "
                    f"{count} values; as many are expected."
                )
            value = _reordered(value, dim, names)
        made[name] = torch.as_tensor(value.values[0]).to(given.values[name]).reshape(given.values[name].shape)
    found = DiscretePosterior(posterior.model)
    found.draws = GivenDraws(made, given.grouped)
    after = _probabilities(found, site, args, kwargs)
    order = np.argsort(names, 1)
    for name, probs in before.items():
        at = order.reshape(len(order), *(1,) * (probs.ndim - 2), count)
        off = np.abs(np.take_along_axis(probs, np.broadcast_to(at, probs.shape), -1) - after[name]).max()
        if not off < SAME:
            listed = ", ".join(f"{n!r}" for n, dims in named.items() if dims) or "nothing"
            raise SettingError(
                f"relabel: with the components of {listed} renamed, the labels {name!r} do not follow (a probability "
                f"is off by {off:.2g}): either other draws have components as well, or some dim is none of components "
                '(say which are: components={"locs": -1}), or the program tells its components apart by a fixed table, '
                "so that there is nothing to rename."
            )
    return found


def _probabilities(
    posterior: DiscretePosterior, site: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Each labels' probabilities given every draw, `[draws, *batch, labels]`."""
    fns = {n: base_distribution(fn) for n, fn in posterior.marginals(*args, **kwargs).items()}
    labels = {n: fn for n, fn in fns.items() if isinstance(fn, Bernoulli | Categorical | OneHotCategorical)}
    if site is not None:
        if site not in labels:
            raise SettingError(f"relabel: there are no labels {site!r}. {near_matches(site, labels)}")
        labels = {site: labels[site]}
    found = {n: _of_labels(fn).detach().double().cpu().numpy() for n, fn in labels.items()}
    if len({p.shape[-1] for p in found.values()}) != 1:
        listed = ", ".join(f"{n!r} of {p.shape[-1]} values" for n, p in found.items()) or "none"
        raise SettingError(f"relabel: discrete sites are {listed}; say which has the labels: site=...")
    absent = [n for n, p in found.items() if np.isnan(p).any()]
    if absent:
        raise SettingError(f"relabel: {absent[0]!r} is not there in every draw; labels that always are, are expected.")
    return found


def _of_labels(fn: Any) -> Tensor:
    return torch.stack([1 - fn.probs, fn.probs], -1) if isinstance(fn, Bernoulli) else fn.probs


def _dataset(group: Any) -> xr.Dataset:
    import xarray as xr

    return group if isinstance(group, xr.Dataset) else group.to_dataset()


def _with_posterior(data: Any, made: xr.Dataset) -> Any:
    import xarray as xr

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
    import xarray as xr

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
    one_hot = np.zeros((*labels.shape, count))
    np.put_along_axis(one_hot, labels[:, :, None], 1.0, 2)
    return renaming(one_hot)


def renaming(probabilities: np.ndarray) -> np.ndarray:
    """New names `[draws, count]` of the components of each draw, from the probabilities `[draws, data, count]` that
    each datum has each label in it: the sum of the Kullback-Leibler divergences from these to their mean is least."""
    from scipy.optimize import linear_sum_assignment  # here, as it is slow to import

    names = np.tile(np.arange(probabilities.shape[-1]), (len(probabilities), 1))
    shares = probabilities[0]
    for _ in range(ROUNDS):
        scores = np.log(np.clip(shares, LEAST, None))
        costs = -np.einsum("snj,nk->sjk", probabilities, scores)
        found = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
        shares = np.take_along_axis(probabilities, np.argsort(found, 1)[:, None, :], 2).mean(0)
        if np.array_equal(found, names):
            break
        names = found
    return names
