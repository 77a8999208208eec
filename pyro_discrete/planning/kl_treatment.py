"""Whether a relaxed site is scored at its probabilities, which makes its divergence analytic, or at its soft value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from pyro.poutine import Trace
from torch.distributions import Bernoulli, Multinomial, OneHotCategorical

from pyro_discrete.distributions.structure import GibbsStructure, Structure
from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.planning.plan import ANALYTIC, Plan
from pyro_discrete.programs.sites import base_distribution, is_latent, latent_sites
from pyro_discrete.relaxations.relaxed_distribution import Relaxed, rebuilt
from pyro_discrete.sums.marginalisation import Known

__all__ = [
    "analytic_notes",
    "note_when_met_late",
    "settled_points",
]


def analytic_notes(
    chosen: Mapping[str, Estimator | None],
    guide_trace: Trace,
    model_trace: Trace,
    known: Dependencies,
    never: str = "",
) -> dict[str, str]:
    """What the plan is to say of relaxed sites, by name: `ANALYTIC` of those whose divergence is, else why it is not.

    `known` says of which sites the prior's parameters do not depend on their draws; `never` why none can be analytic.
    """
    notes = {}
    for name, estimator in chosen.items():
        guide = latent_sites(guide_trace).get(name)
        if guide is None or not isinstance(estimator, RelaxedEstimator) or not estimator.may_be_analytic:
            continue
        reason = never or _why_linear(name, estimator, guide["fn"], model_trace.nodes.get(name), known)
        notes[name] = f"; KL term linear ({reason})" if reason else ANALYTIC
    return notes


def note_when_met_late(estimator: Estimator) -> str:
    """What the plan is to say of a relaxed site that was not there when it was made."""
    relaxed = isinstance(estimator, RelaxedEstimator) and estimator.may_be_analytic
    return "; KL term linear (the site was met after planning)" if relaxed else ""


def _why_linear(name: str, estimator: RelaxedEstimator, fn: Any, model: Any | None, known: Dependencies) -> str:
    """Why a site's divergence is taken at its soft value, or nothing."""
    q = base_distribution(fn)
    if isinstance(q, Multinomial):
        return "a Multinomial's has no closed form"
    vectors = q.soft_value == "weights" if isinstance(q, Structure) else isinstance(q, Bernoulli | OneHotCategorical)
    if not estimator.analytic(integers=not vectors):
        return "the default at integers"
    if isinstance(q, Structure) and not isinstance(q, GibbsStructure):
        return f"the log-mass of {type(q).__name__} is not linear in a soft value"
    if model is not None and isinstance(model["fn"], Known):
        return "its prior depends on a site of the model alone, which is summed out"
    if model is not None and is_latent(model) and _form(base_distribution(model["fn"])) is not _form(q):
        return f"{type(base_distribution(model['fn'])).__name__} in the model"
    return _why_unsound(name, known)


def _form(base: Any) -> type:
    """What weights are a distribution's: a bit's, a vector's, those of integers, or of a structure."""
    if isinstance(base, Structure):
        return type(base)
    return next((form for form in (Bernoulli, OneHotCategorical, Multinomial) if isinstance(base, form)), int)


def _why_unsound(name: str, known: Dependencies) -> str:
    if not known.known:
        return f"its prior may depend on what was drawn from it: {known.reason}"
    if name in known.parameters.get(("model", name), ()):
        return "its prior depends on what the guide draws from it"
    return ""


def _at_value(fn: Relaxed, point: Point | None) -> Relaxed:
    return Relaxed(fn.base, site=fn.site, infer=fn.infer, point=point)


def settled_points(
    points: Mapping[str, Point | None],
    plan: Plan,
    guide_trace: Trace,
    known: Dependencies,
) -> dict[str, Point | None]:
    """Where each relaxed site is scored, in the guide too: None is at its value, where it is not to be at a mean.

    A site that the plan has as analytic, and that is not known to be in this call, is linear from then on.
    """
    settled = dict(points)
    for name, point in points.items():
        if point is None or point.temperature is not None or point.tensor is point.vertex:
            continue
        reason = _why_unsound(name, known)
        analytic = name in plan.analytic and name not in plan.met.linear
        if analytic and not reason:
            continue
        if analytic:
            plan.met.linear[name] = reason
            warnings.warn(
                f"The KL term of relaxed site {name!r} was analytic so far and is linear from now on, as {reason}. "
                "Give its estimator kl='linear' to have it so from the start.",
                stacklevel=2,
            )
        there = settled[name] = point.at_value
        node = guide_trace.nodes[name]
        node["fn"] = rebuilt(node["fn"], partial(_at_value, point=there))
    return settled
