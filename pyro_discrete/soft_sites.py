"""A site whose values are soft in some rows: as its estimator sees it, its mean, and where it is scored."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.families import PATHWISE, RELAXABLE, Family
from pyro_discrete.programs.sites import Site, base_distribution
from pyro_discrete.relaxations.forms import one_hot_site

__all__ = ["as_seen", "at_density", "mean", "merged", "softened"]


def as_seen(site: Site, estimator: Estimator) -> Site:
    """The site as its estimator sees it: one of one-hot vectors, if it draws relaxed values or wants slopes."""
    return one_hot_site(site) if estimator.relaxed or estimator.sloped else site


def softened(site: Site, estimator: Estimator, beside: bool) -> bool:
    """Whether the program sees soft values at the site: its own, or its mean downstream of another one's."""
    if estimator.relaxed or estimator.sloped:
        return site.family in PATHWISE
    return beside and site.family in RELAXABLE


def mean(site: Site) -> Tensor:
    """The site's probabilities for every column, `[columns, K, *batch, *event]`: what its value is on average."""
    base = base_distribution(site.distribution)
    probabilities = base.logits.sigmoid() if site.family is Family.BERNOULLI else base.logits.softmax(-1)
    return site.split(probabilities, site.event_dim)


def at_density(point: Point | None) -> bool:
    """Whether a density is taken there, which only a relaxed draw has."""
    return point is not None and point.temperature is not None


def merged(site: Site, point: Point | None) -> Point | None:
    """The point in the shape that the program gives the site's values."""
    return None if point is None else replace(point, tensor=site.merge(point.tensor))
