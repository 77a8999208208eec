"""The way into ArviZ: draws of the guide, predictions, log-likelihoods and weights with named dims, and k-hat."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import SettingError, near_matches
from pyro_discrete.posterior.discrete_posterior import outside_of_inference_mode
from pyro_discrete.posterior.draws import PosteriorDraws, draw_posterior
from pyro_discrete.posterior.given_draws import GivenDraws, as_pair, uncollapsed
from pyro_discrete.posterior.pareto import k_hat
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair, Program
from pyro_discrete.programs.sites import base_distribution, is_random_observation, latent_sites

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "pareto_k",
    "to_inference_data",
]


@outside_of_inference_mode
def to_inference_data(
    model: Program,
    guide: Program | None,
    *args: Any,
    num_samples: int = 1000,
    samples: Any = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """What a trained pair, or an MCMC run, says, as ArviZ's `InferenceData` (its `DataTree` from version 1 on).

    Groups, with one chain of `num_samples` draws:

    - `posterior`: the latent sites `[chain, draw, *plates, *event]`: the guide's, discrete and continuous, and discrete
      ones of the model alone, drawn from their posterior given the guide's draw.
    - `posterior_predictive`: new data from the model given these draws; `observed_data`: the data themselves.
    - `log_likelihood`: of each datum given a draw, `[chain, draw, *plates]`, without a plate's scale; a masked datum
      has zero. `az.loo` and `az.compare` read it. Importance weights are not applied to it: draws are the guide's.
      Sites of the model alone are summed out of it; given a draw of a datum's own latent site in the guide, it is no
      predictive density of the datum, and a warning says so. Observed sites that depend on the same ones (along a
      chain, or data whose plate these are outside of) have one log-likelihood together, named "x_0 + x_1" or "x
      together".
    - `sample_stats`: `log_weight`, log p(x, z) - log q(z | x), and `lp`, log p(x, z), both scaled and masked; z are the
      guide's sites.
    - `constant_data`: tensors among the arguments that are not observed values (`x_argument` if a site is named `x`).

    With `samples`, and None in the place of the guide, the draws are those of an `MCMC` run, with its chains, or of a
    dict from site names to `[draws, *batch, *event]` (or `[chains, draws, ...]`), as in `DiscretePosterior`: beside
    them stand the discrete sites, drawn given each of them. There is no `log_weight` then.

    Dims bear the names of plates, their coords are the (sub-sampled) indices; `coords` and `dims` (site -> names of its
    event dims) go before these. A structure's dims are named by what they count: `order_place` of a ranking, `z_item`
    of a subset, a matching's `_row`, a chain's `_link`, a tree's `_node` (from 1). Programs that cannot take a leading
    dim of draws run one draw at a time.

    Raises `SettingError` if `num_samples` is no positive number, `SiteMatchError` where the model has latent sites that
    the guide has not and that cannot be summed out, `EnumerationError` where their sum is too large.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(mean + z, 1.0), obs=x)
    >>> def guide(x):
    ...     pyro.sample("mean", dist.Normal(0.3, 0.5))
    >>> data = to_inference_data(model, guide, torch.tensor([0.0, 1.2]), num_samples=100)
    >>> dict(data.posterior["z"].sizes)
    {'chain': 1, 'draw': 100, 'data': 2}
    """
    import arviz as az

    model = uncollapsed(model)
    if (guide is None) is (samples is None):
        raise SettingError("to_inference_data: a guide is expected, or None in its place and samples=; not both.")
    if guide is None:
        given = GivenDraws.of(samples)
        pair = as_pair(model, given, args, kwargs)
        draws = draw_posterior(pair, 1, given)
    else:
        pair = Pair(model, guide, args, kwargs)
        draws = draw_posterior(pair, _positive(num_samples))
    _warn_of_local_sites(draws)
    names = _DimNames(draws, dims or {})
    observed = {n: m for n, m in draws.sites.items() if is_random_observation(m)}
    observed_data = {n: _array(m["value"].expand(_full_shape(m))) for n, m in observed.items()}
    groups = {
        "posterior": _chains(draws.posterior, draws.chains),
        "posterior_predictive": _chains(draws.predictive, draws.chains),
        "log_likelihood": _chains(draws.log_likelihood, draws.chains),
        "sample_stats": _chains(
            {"lp": draws.log_joint} if guide is None else {"log_weight": draws.log_weight, "lp": draws.log_joint},
            draws.chains,
        ),
        "observed_data": observed_data,
        "constant_data": {
            f"{n}_argument" if n in names.dims else n: value
            for n, value in _constants(pair, [m["value"] for m in observed.values()]).items()
        },
    }
    groups = {name: {n: names.filled(n, v) for n, v in group.items()} for name, group in groups.items() if group}
    named = {"coords": {**names.coords, **(coords or {})}, "dims": names.dims}
    if "posterior" in inspect.signature(az.from_dict).parameters:
        return az.from_dict(**groups, **named)
    return az.from_dict(groups, **named)  # version 1, which has the name InferenceData too, for a warning


@outside_of_inference_mode
def pareto_k(
    model: Program, guide: Program, *args: Any, num_samples: int = 1000, plate: str | None = None, **kwargs: Any
) -> float | xr.DataArray:
    r"""The Pareto k-hat of the guide as a proposal for the posterior: below 0.7 it is close, above it is not.

    It is the shape of the generalised Pareto distribution that fits the largest importance weights
    :math:`p(x, z) / q(z | x)` of `num_samples` draws. One number for all latent variables together; with many data it
    is large for nearly every mean-field guide. With `plate`, the name of a plate, one number for each of its
    elements, from the sites inside it: dims `[plate]`. Where weights have no tail, as they are constant up to rounding,
    have few values, or none above three times their mean, it is at most what a fit says, and 0 where that is an alarm.

    Sites of the model alone are summed out of the weights. Raises `SettingError` for an unknown plate, too few draws
    (25 at least), or a guide that draws nothing.

    Source: Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work? Evaluating variational inference.

    >>> import pyro, pyro.distributions as dist
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    >>> def guide():
    ...     pyro.sample("z", dist.Normal(0.5, 0.8))
    >>> pyro.set_rng_seed(0)
    >>> bool(pareto_k(model, guide) < 0.7)
    True
    """
    import xarray as xr  # here, as it is slow to import

    if _positive(num_samples) < 25:
        raise SettingError(
            f"pareto_k: num_samples={num_samples} given; a tail cannot be fitted to fewer than 25 draws."
        )
    draws = draw_posterior(Pair(model, guide, args, kwargs), num_samples)
    if not latent_sites(draws.trial.guide_trace):
        raise SettingError("pareto_k: the guide draws no site, so that every weight is p(x): its draws are exact.")
    if plate is None:
        return float(k_hat(_array(draws.log_weight.double())))
    if plate not in draws.plates:
        raise SettingError(f"pareto_k: there is no plate named {plate!r}. {near_matches(plate, draws.plates)}")
    weights = _array(draws.log_weight_in(plate).double())
    return xr.DataArray(k_hat(weights.T), dims=[plate], coords={plate: draws.plates[plate]}, name="pareto_k")


def _warn_of_local_sites(draws: PosteriorDraws) -> None:
    """Warn of latent sites that the guide draws for each datum: leave-one-out takes its draws for global ones."""
    guided = latent_sites(draws.trial.guide_trace)
    seen = {f.name for m in draws.sites.values() if is_random_observation(m) for f in plates_of(m) if f.vectorized}
    local = {n: {f.name for f in plates_of(m)} & seen for n, m in guided.items()}
    named = ", ".join(repr(n) for n, plates in local.items() if plates)
    if named:
        plates = ", ".join(repr(p) for p in sorted(set().union(*local.values())))
        warnings.warn(
            f"log_likelihood is given draws of {named}, which the guide makes for each element of {plates}: az.loo and "
            "az.compare take it for the density of data given global unknowns, and are far off. A discrete site is "
            "summed out of it where the guide leaves the site to the model: "
            "to_inference_data(model, poutine.block(guide, hide=[...]), ...). posterior and sample_stats are right.",
            stacklevel=4,
        )


def _positive(num_samples: int) -> int:
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise SettingError(f"num_samples={num_samples!r} given, a positive whole number expected.")
    return num_samples


class _DimNames:
    """Names of the dims of every site's arrays, and the coords of the plates."""

    def __init__(self, draws: PosteriorDraws, given: Mapping[str, Sequence[str]]) -> None:
        sites = draws.sites
        called = {p: f"{p}_plate" if p in sites else p for p in draws.plates}
        self.coords = {called[p]: index for p, index in draws.plates.items()}
        self.dims: dict[str, list[str]] = {}
        for name, msg in sites.items():
            batch = len(msg["fn"].batch_shape)
            plates = self._plates(name, msg["cond_indep_stack"], batch, called)
            event = list(given.get(name, ())) or self._of_structure(name, msg["fn"])
            rest = range(len(event), len(msg["fn"].event_shape))
            self.dims[name] = [*plates, *event, *(f"{name}_dim_{i}" for i in rest)]
        for name, frames in draws.marginal.items():
            batch = draws.log_likelihood[name].dim() - 1
            self.dims[name] = self._plates(name, frames, batch, called)

    def filled(self, name: str, values: np.ndarray) -> np.ndarray:
        """With NaN for elements of a plate, of drawn size, that are in none of these draws."""
        dims = self.dims.get(name, [])
        sizes = [len(self.coords.get(dim, ())) for dim in dims]
        lacking = [max(0, n - side) for side, n in zip(values.shape[values.ndim - len(dims) :], sizes, strict=True)]
        if not any(lacking):
            return values
        kind = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
        return np.pad(kind, [*[(0, 0)] * (values.ndim - len(dims)), *((0, n) for n in lacking)], constant_values=np.nan)

    def _of_structure(self, name: str, fn: Any) -> list[str]:
        """Names of a structure's event dims: "order_place" of a ranking; nodes of a tree bear their numbers from 1."""
        base = base_distribution(fn)
        if not isinstance(base, Structure):
            return []
        copies = fn.event_dim - len(base.event_shape)
        own = [f"{name}_{what}" for what in base.value_dims]
        first = 1 if "node" in base.value_dims else 0
        self.coords |= {dim: np.arange(first, first + n) for dim, n in zip(own, base.event_shape, strict=True)}
        return [*(f"{name}_dim_{i}" for i in range(copies)), *own]

    @staticmethod
    def _plates(name: str, frames: Iterable[Any], batch: int, called: Mapping[str, str]) -> list[str]:
        by_dim = {f.dim: called[f.name] for f in frames if f.dim is not None}
        return [by_dim.get(d, f"{name}_batch_{batch + d}") for d in range(-batch, 0)]


def _full_shape(msg: Any) -> tuple[int, ...]:
    return tuple(msg["fn"].batch_shape) + tuple(msg["fn"].event_shape)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.numpy()


def _chains(values: Mapping[str, Tensor], chains: int) -> dict[str, np.ndarray]:
    return {name: _array(value.reshape(chains, -1, *value.shape[1:])) for name, value in values.items()}


def _constants(pair: Pair, observed: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """The tensors among a call's arguments, by their names, that are not observed values themselves."""
    try:
        bound = inspect.signature(pair.model).bind(*pair.args, **pair.kwargs).arguments
    except (TypeError, ValueError):
        bound = {f"argument_{i}": value for i, value in enumerate(pair.args)} | dict(pair.kwargs)
    return {
        name: _array(value)
        for name, value in bound.items()
        if torch.is_tensor(value) and not any(_same(value, each) for each in observed)
    }


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other.to(one.dtype)))
