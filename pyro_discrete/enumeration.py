"""Exact sums over all discrete sites: Pyro's parallel enumeration, or joint values as rows where plates are crossed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_discrete.enumerated_sites import mark_for_enumeration
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError
from pyro_discrete.estimators.base import Family
from pyro_discrete.estimators.enumerate import Enumerate
from pyro_discrete.plan import Plan
from pyro_discrete.probe import Pair, Trial, hidden_from_traces, plain_trial, trace_pair
from pyro_discrete.rows_check import check_rows
from pyro_discrete.sites import (
    Site,
    cardinality,
    family_of,
    is_latent,
    joint_support,
    latent_sites,
    plates_of,
    sample_sites,
    without_mask,
)

__all__ = ["enumerated_loss", "settle_enumeration"]

ONE_BY_ONE = 4096
"""So many joint values at most are gone through one by one."""


def enumerated_loss(plan: Plan, pair: Pair) -> Tensor:
    """The loss with every discrete site summed over its support, differentiable; `[]`."""
    settings = plan.enumeration or Enumerate()
    if plan.joint:
        return _joint_loss(plan, pair, settings)
    parallel = not plan.one_by_one
    particles = plan.particles if any(site.rows for site in plan.sites) else 1  # nothing is sampled: all are the same
    elbo = _ExactELBO(num_particles=particles, max_plate_nesting=plan.batch_dims, vectorize_particles=parallel)
    seen: set[str] = set()
    guide = _Configure(settings, parallel, seen=seen)(pair.guide)
    model = _Configure(settings, parallel, drawn=seen)(pair.model)
    try:
        with warnings.catch_warnings():  # sites that need not be in the model may be there
            warnings.filterwarnings("ignore", message="Found auxiliary vars in the model")
            return elbo.exact_loss(model, guide, *pair.args, **pair.kwargs)
    except ValueError as error:
        if "no more global" not in str(error):
            raise
        raise EnumerationError(
            "A site that is in the model alone is outside a plate in which the guide's sites are enumerated, which "
            "cannot be summed exactly. Draw that site in the guide too, or leave the guide's sites out of the guide."
        ) from error


def settle_enumeration(plan: Plan, pair: Pair, trial: Trial) -> bool:
    """Whether the plan's enumeration can be had. Where it was asked for but not in parallel, values go one by one.

    In parallel, enumerated values fill new dims on the left, as rows do: a program that does not keep rows apart would
    be silently wrong. Raises `EnumerationError` if it was asked for and cannot be had at all; one that "auto" chose is
    given up instead.
    """
    reason = _why_not_parallel(plan, pair, trial)
    if not reason:
        return True
    if not plan.explicit:
        return False
    joint = math.prod(
        s.cardinality for s in map(Site, latent_sites(trial.guide_trace).values()) if s.family is not None
    )
    if plan.joint:
        raise EnumerationError(
            "The elements of a plate have to be enumerated jointly, over a leading dim that the program cannot take "
            f"({reason}). Use 'rloo' or 'nvil', or index from the right."
        )
    if joint > ONE_BY_ONE:
        raise EnumerationError(
            f"The discrete sites cannot be enumerated in parallel ({reason}), and their {joint:.3g} joint values are "
            f"too many to go through one by one ({ONE_BY_ONE} at most). Use 'rloo' or 'nvil', or index from the right "
            "so that dims on the left broadcast."
        )
    plan.one_by_one, plan.reason = True, f"one joint value after another, as in parallel: {reason}"
    try:
        with torch.no_grad():
            enumerated_loss(plan, pair)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        raise EnumerationError(
            f"The program cannot be enumerated, neither in parallel ({reason}) nor one joint value after another "
            f"({type(error).__name__}: {error}). Use 'rloo' or 'nvil'."
        ) from error
    return True


def _why_not_parallel(plan: Plan, pair: Pair, trial: Trial) -> str:
    """Why values cannot be enumerated in parallel; empty if they can."""
    try:
        verdict = check_rows(pair, trial, 1)
        if not verdict:
            return verdict.reason
        with torch.no_grad():
            enumerated_loss(plan, pair)
    except EnumerationError:
        if plan.explicit:
            raise
        return "too large"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


class _Configure(Messenger):
    """Marks discrete sites for parallel enumeration, after a look at the size of their tables.

    For the guide, `seen` collects the names of its latent sites; for the model, sites in `drawn` are the guide's.
    """

    def __init__(
        self, settings: Enumerate, parallel: bool, seen: set[str] | None = None, drawn: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.settings, self.parallel, self.seen, self.drawn = settings, parallel, seen, drawn

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["name"] in self.drawn:
            return
        if self.seen is not None:
            self.seen.add(msg["name"])
        fn = msg["fn"]
        if family_of(fn) in (None, Family.CONTINUOUS) or msg["done"]:
            return
        mark_for_enumeration(msg, self.settings, self.seen is None, self.parallel)


class _ExactELBO(TraceEnum_ELBO):
    """Pyro's enumeration, with a check for what it would get silently wrong."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        _check_crossing(guide_trace, model_trace)
        _in_one_dtype(guide_trace, model_trace)
        return model_trace, guide_trace

    def exact_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Like `differentiable_loss`, but also where nothing requires a gradient."""
        elbo = sum(_compute_dice_elbo(*traces) for traces in self._get_traces(model, guide, args, kwargs))
        return -torch.as_tensor(elbo) / self.num_particles


def _in_one_dtype(guide_trace: Trace, model_trace: Trace) -> None:
    """Bring the terms to one dtype: those of masked sites are of the default one, whatever the program's."""
    packs = [m["packed"] for t in (guide_trace, model_trace) for m in sample_sites(t).values()]
    terms = [(pack, key) for pack in packs for key in ("log_prob", "unscaled_log_prob") if key in pack]
    dtypes = {pack[key].dtype for pack, key in terms}
    if len(dtypes) < 2:
        return
    widest = max(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
    for pack, key in terms:
        dims = pack[key]._pyro_dims
        pack[key] = pack[key].to(widest)
        pack[key]._pyro_dims = dims


def _check_crossing(guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a site outside a plate that depends on a site enumerated inside it: elements would be taken in step."""
    sites = [m for t in (guide_trace, model_trace) for m in sample_sites(t).values()]
    for inner in sample_sites(guide_trace).values():
        if inner["infer"].get("_enumerate_dim") is None:
            continue
        dim = inner["infer"]["_enumerate_dim"]
        unique = inner["infer"]["_dim_to_id"].get(dim)
        plates = {p for p in plates_of(inner) if p.vectorized}
        for outer in sites:
            shape = tuple(outer["fn"].batch_shape)
            depends = outer["infer"].get("_dim_to_id", {}).get(dim) == unique and len(shape) >= -dim and shape[dim] > 1
            if depends and not plates <= plates_of(outer):
                missing = sorted(p.name for p in plates - plates_of(outer))
                raise EnumerationError(
                    f"Site {outer['name']!r} outside plate {', '.join(missing)} depends on site {inner['name']!r} "
                    "enumerated inside it, so all joint values of the plate's elements would have to be enumerated. "
                    "Use 'rloo' or 'nvil'."
                )


def _joint_loss(plan: Plan, pair: Pair, settings: Enumerate) -> Tensor:
    """Every joint value of all elements of all guide sites as rows of one run, weighted by their probability."""
    with hidden_from_traces():
        trial = plain_trial(pair)
    sites = {
        n: m for n, m in latent_sites(trial.guide_trace).items() if family_of(m["fn"]) not in (None, Family.CONTINUOUS)
    }
    extra = latent_sites(trial.model_trace).keys() - latent_sites(trial.guide_trace).keys()
    total = math.prod(cardinality(m["fn"]) ** math.prod(m["fn"].batch_shape) for m in sites.values())
    largest = max(m["value"].numel() for t in (trial.guide_trace, trial.model_trace) for m in sample_sites(t).values())
    if extra or total * largest * plan.particles > settings.max_elements:
        names = ", ".join(repr(n) for n in sites)
        raise EnumerationError(
            f"Sites {names} may influence a later site outside their plate, so their plate elements have to be "
            f"enumerated jointly: {total:.3g} joint values{', with sites in the model alone' if extra else ''}. Use "
            "'rloo' or 'nvil', or draw sites outside the plate first."
        )
    rows = int(total)
    values, stride = {}, 1
    index = torch.arange(rows)
    for name, msg in sites.items():
        fn = msg["fn"]
        support = joint_support(fn).reshape((-1, *fn.event_shape))
        elements = math.prod(fn.batch_shape)
        digits = torch.stack([(index // (stride * len(support) ** e)) % len(support) for e in range(elements)], -1)
        stride *= len(support) ** elements
        batch = (1,) * (plan.batch_dims - len(fn.batch_shape)) + tuple(fn.batch_shape)
        table = support[digits.to(support.device)].reshape((rows, 1, *batch, *fn.event_shape))
        values[name] = table.expand((rows, plan.particles, *batch, *fn.event_shape)).flatten(0, 1)
    rowed = trace_pair(pair, trial.subsamples, values, rows=(rows * plan.particles, -1 - plan.batch_dims))
    return _weighted(rowed, sites, plan.particles)


def _weighted(rowed: tuple[Trace, Trace], sites: Mapping[str, Any], particles: int) -> Tensor:
    guide_trace, model_trace = rowed
    guide_trace.compute_log_prob()
    model_trace.compute_log_prob()
    weight: Tensor | float = 0.0
    f: Tensor | float = 0.0
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        for name, msg in sample_sites(trace).items():
            f = f + sign * msg["log_prob"].flatten(1).sum(1)
            if trace is guide_trace and name in sites:
                weight = weight + without_mask(msg["fn"]).log_prob(msg["value"]).flatten(1).sum(1)
    return -(torch.as_tensor(weight).exp() * f).sum() / particles
