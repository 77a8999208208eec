"""A discrete distribution that draws and scores soft values, as one-hot weights and as the program sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Independent,
    Multinomial,
    OneHotCategorical,
    constraints,
)

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.draws.noise import relaxed_draw
from pyro_discrete.draws.soft_scores import Point, bounded, expectation, log_density
from pyro_discrete.draws.soft_scores import mean as probabilities
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import RelaxationError, SettingError, UnsupportedSiteError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.families import PATHWISE, Family
from pyro_discrete.programs.laws import Vertices, law_of
from pyro_discrete.programs.sites import Site, base_distribution, family_of
from pyro_discrete.relaxations.soft_index import SoftBit, SoftIndex

__all__ = [
    "TRUNCATION",
    "Relaxed",
    "as_seen",
    "at_density",
    "extended",
    "hard_value",
    "log_masses",
    "mean",
    "merged",
    "one_hot_form",
    "one_hot_site",
    "one_hot_weights",
    "program_value",
    "rebuilt",
    "softened",
    "state_trials",
    "stated_truncation",
    "with_vertex",
]


TRUNCATION = "truncation"
"""Key of a site's `infer` under which the largest count of its relaxation stands."""


MET = "largest number of trials met"
"""Key under which a Binomial's stands that states none: no data may have more trials, or the site's logits are NaN."""


def rebuilt(fn: Any, make: Callable[[Any], Any]) -> Any:
    """`fn` with its base distribution replaced by `make(base)`, below the same `.to_event`, `.mask` and `.expand`."""
    if isinstance(fn, MaskedDistribution):
        return rebuilt(fn.base_dist, make).mask(fn._mask)
    if isinstance(fn, Independent):
        return rebuilt(fn.base_dist, make).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return rebuilt(fn.base_dist, make).expand(fn.batch_shape)
    return make(fn)


def one_hot_site(site: Site) -> Site:
    """The site as estimators of relaxed values see it: integers as one-hot vectors, with a last dim for the categories.

    They need to know of no integers, then. Counts are one-hot over 0 to their largest value, a Multinomial is as many
    one-hot vectors as it has trials, and a structure is its vertex.
    """
    if site.family in (Family.BERNOULLI, Family.ONE_HOT):
        return site
    return site.of(rebuilt(site.distribution, lambda base: one_hot_form(base, site.message["infer"], site.name)))


def state_trials(site: Site, met: dict[str, int], read: bool) -> None:
    """Tell a Binomial site that states no truncation the largest number of trials met in any step.

    With `read` its own are looked at first; a captured step must not, and has the number of the steps before it.
    """
    base, infer = base_distribution(site.distribution), site.message["infer"]
    if not isinstance(base, Binomial) or TRUNCATION in infer:
        return
    if read:
        met[site.name] = max(met.get(site.name, 1), int(base.total_count.max()))
    if site.name in met:
        site.message["infer"] = {**infer, MET: met[site.name]}  # another dict: the model's site may have this one


def one_hot_form(base: Any, infer: Mapping[str, Any], name: str) -> Any:
    """The distribution of one-hot vectors behind a Categorical, a count or a Multinomial; a structure's of vertices."""
    if isinstance(base, Structure):
        return Vertices(base)
    if isinstance(base, Categorical):
        return dist.OneHotCategorical(logits=base.logits, validate_args=False)
    if isinstance(base, Multinomial):
        logits = base.logits.unsqueeze(-2)
        trials = logits.expand(*base.batch_shape, base.total_count, logits.shape[-1])
        return dist.OneHotCategorical(logits=trials, validate_args=False).to_event(1)
    if family_of(base) is Family.COUNT:
        largest = _largest(base, infer, name)
        values = torch.arange(largest + 1, dtype=base.mean.dtype, device=base.mean.device)
        logits = log_masses(base, values)
        if TRUNCATION not in infer and MET in infer:
            logits = torch.where((base.total_count > largest).unsqueeze(-1), torch.nan, logits)
        return dist.OneHotCategorical(logits=logits, validate_args=False)
    return base


def stated_truncation(infer: Mapping[str, Any], name: str) -> int | None:
    """The largest count that a site states, None where it states none. Raises `SettingError` for what is no count."""
    given = infer.get(TRUNCATION)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise SettingError(
            f"Site {name!r}: infer={{{TRUNCATION!r}: {given!r}}} given; the largest count, a whole number of at "
            "least one, is expected."
        )
    return given


def _largest(base: Any, infer: Mapping[str, Any], name: str) -> int:
    given = stated_truncation(infer, name)
    if given is not None:
        return given
    if isinstance(base, Binomial):
        return infer[MET] if MET in infer else int(base.total_count.max())
    raise UnsupportedSiteError(
        f"Site {name!r} is {type(base).__name__}, which has no relaxation before it is said where its values are to "
        f'end. State the largest count, which it should hardly ever exceed, at the site: infer={{"{TRUNCATION}": 20}}. '
        "Estimators that would do without: 'rloo', 'nvil'."
    )


def log_masses(base: Any, values: Tensor) -> Tensor:
    """Log-mass of `base` at each of the values `[K]`: `[*batch, K]`."""
    if isinstance(base, Categorical) and values.shape[-1] == base.logits.shape[-1]:
        return base.logits
    bare = copy(base)
    bare._validate_args = False  # counts that one element cannot have get no mass, and are no error
    return bare.log_prob(values.reshape((-1,) + (1,) * len(base.batch_shape))).movedim(0, -1)


def program_value(fn: Any, weights: Tensor, name: str) -> Tensor:
    """What the program sees of weights of a site with this distribution: a soft index or bit, or the weights."""
    base = base_distribution(fn)
    if isinstance(base, Structure):
        if base.soft_value == "weights":
            return weights
        value = SoftIndex(base.index_weights(weights), site=name)
        value.vertex = weights
        return value
    if isinstance(base, Bernoulli):
        return SoftBit(weights, name)
    if isinstance(base, Categorical):
        return SoftIndex(weights, site=name)
    if isinstance(base, Multinomial):
        return weights.sum(-2)
    if family_of(base) is Family.COUNT:
        return SoftIndex(weights, torch.arange(weights.shape[-1], device=weights.device).to(weights.dtype), name)
    return weights


def one_hot_weights(fn: Any, value: Tensor) -> Tensor:
    """Hard values of a site as weights: an integer site's as one-hot vectors, a structure's as vertices."""
    base = base_distribution(fn)
    if isinstance(base, Structure):
        return base.vertex(value)
    if not isinstance(base, Categorical):
        return value
    return one_hot_vector(value, base.logits)


def hard_value(fn: Any, corner: Tensor) -> Tensor:
    """The inverse of `one_hot_weights`: weights of zero and one as a value of the site."""
    base = base_distribution(fn)
    if isinstance(base, Structure):
        return base.value_of(corner)
    return corner.argmax(-1) if isinstance(base, Categorical) else corner


def with_vertex(fn: Any, point: Point | None, value: Tensor, name: str) -> Point | None:
    """Where a site is scored that has this value: a structure's at its vertex, which the value may not say in full."""
    base = base_distribution(fn)
    if not isinstance(base, Structure):
        return point
    vertex = _vertex_seen(base, value, name)
    return Point(vertex, vertex=vertex) if point is None else replace(point, vertex=vertex)


def _vertex_seen(base: Structure, value: Tensor, name: str) -> Tensor:
    """The vertex behind what a program sees: of a hard value, or of a soft one as `program_value` made it."""
    if base.soft_value == "weights":
        return value
    if not isinstance(value, SoftIndex):
        return base.vertex(value)
    vertex = value.weights if value.vertex is None else value.vertex
    if vertex.shape[vertex.dim() - len(base.vertex_shape) :] != base.vertex_shape:
        raise RelaxationError(
            f"Site {name!r} has a relaxed value of {list(value.weights.shape)} weights, from which the log-mass of its "
            f"{type(base).__name__} does not follow. Score the value as it was drawn, or choose an estimator of hard "
            "draws for the site ('rloo', 'nvil')."
        )
    return vertex


class Relaxed(TorchDistribution):
    """A discrete distribution that scores soft values, and draws them if it has a temperature.

    The log-mass is `v * logits - log(1 + exp(logits))` for a Bernoulli, the sum over categories of `v * log p` for a
    OneHotCategorical, and the sum over its values of weight times log-mass for a soft index (a Categorical, or a
    count): exact at hard values, linear between them. A Multinomial's is its own formula, at counts that are no
    integers. With a temperature, draws are relaxed and differentiable (`hard=True`: hard in the forward pass only);
    without one, they are the base distribution's own. A structure's log-mass is its own, at its soft vertex.

    - `point`: where it is scored instead of at the value it is given, or None.
    - `site`: the site's name, for messages. `infer`: where a count of infinite support states its `"truncation"`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: Distribution,
        temperature: float | None = None,
        hard: bool = False,
        site: str = "?",
        infer: Mapping[str, Any] | None = None,
        point: Point | None = None,
    ) -> None:
        self.point = point
        self.base: Distribution = base
        self.temperature: float | None = temperature
        self.hard: bool = hard
        self.site: str = site
        self.infer: Mapping[str, Any] = infer or {}
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.temperature is not None

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return False

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        if isinstance(self.base, OneHotCategorical):
            return constraints.simplex
        return constraints.unit_interval if isinstance(self.base, Bernoulli) else self.base.support  # type: ignore[return-value]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Relaxed:
        base = self.base.expand(torch.Size(batch_shape))
        return Relaxed(base, self.temperature, self.hard, self.site, self.infer, self.point)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if self.temperature is None:
            return self.base.sample(torch.Size(sample_shape))
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if self.temperature is None:
            raise RuntimeError("a Relaxed distribution without a temperature draws hard values: call sample()")
        form = base_distribution(one_hot_form(self.base, self.infer, self.site))
        law = law_of(form, form.logits.expand(torch.Size(sample_shape) + form.logits.shape))
        return program_value(self.base, relaxed_draw(law, self.temperature, hard=self.hard), self.site)

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*batch]`, for soft or hard values `[*batch, *event]`."""
        base: Any = self.base
        if isinstance(base, Structure):
            return self._of_structure(base, value)
        if self.point is not None and self.point.vertex is None:
            return self._at_point(base, self.point)
        if isinstance(value, SoftBit):
            value = value.expectation()
        if isinstance(value, SoftIndex):
            return expectation(value.weights, log_masses(base, value.values))
        if isinstance(base, Bernoulli):
            logits = bounded(base.logits)
            return value * logits - F.softplus(logits)
        if isinstance(base, OneHotCategorical):
            return (value * bounded(base.logits)).sum(-1)
        if isinstance(base, Multinomial):
            orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
            return orders + (value * bounded(base.logits)).sum(-1)
        return base.log_prob(value)

    def _of_structure(self, base: Structure, value: Tensor) -> Tensor:
        point = self.point
        if point is None or point.vertex is None:
            if not isinstance(value, SoftIndex) and base.soft_value == "index":
                return base.log_prob(value)
            vertex = _vertex_seen(base, value, self.site)
        elif point.vertex.shape[point.vertex.dim() - len(base.vertex_shape) :] != base.vertex_shape:
            raise RelaxationError(
                f"Site {self.site!r} has a relaxed value whose vertex is {list(point.vertex.shape)}, drawn by another "
                f"kind of structure than the {type(base).__name__} that scores it, whose vertices are "
                f"{list(base.vertex_shape)}. Use the same distribution in guide and model, or choose an estimator of "
                "hard draws for the site ('rloo', 'nvil')."
            )
        else:
            vertex = point.tensor
        return base.log_mass(vertex) if base.defines("log_mass") else base.log_prob(base.value_of(vertex.detach()))

    def _at_point(self, base: Any, point: Point) -> Tensor:
        one_hot, tensor = not isinstance(base, Bernoulli), point.tensor
        if isinstance(base, Multinomial):
            raise UnsupportedSiteError(
                f"Site {self.site!r} is Multinomial, whose log-mass is extended to soft values and has no other "
                "treatment here. Leave kl at 'auto' for it, or write GumbelSoftmax(kl='linear')."
            )
        if one_hot and not isinstance(base, OneHotCategorical):  # integers
            values = torch.arange(tensor.shape[-1], device=tensor.device, dtype=tensor.dtype)
            logits = log_masses(base, values)
        else:
            logits = base.logits
        if point.temperature is not None:
            return log_density(tensor, logits, point.temperature, one_hot=one_hot)
        if one_hot:
            return expectation(tensor, logits)
        return tensor * bounded(logits) - F.softplus(bounded(logits))


def extended(fn: Any, site: str, point: Point | None = None) -> Any:
    """`fn` of the named site, scoring soft values too, or scored at `point` whatever its value; it draws hard ones."""
    return rebuilt(fn, partial(Relaxed, site=site, point=point))


def as_seen(site: Site, estimator: Estimator) -> Site:
    """The site as its estimator sees it: one of one-hot vectors, if it draws relaxed values or wants slopes."""
    return one_hot_site(site) if estimator.relaxed or estimator.sloped else site


def softened(site: Site, estimator: Estimator, beside: bool) -> bool:
    """Whether the program sees soft values at the site: its own, or its mean downstream of another one's."""
    if estimator.relaxed or estimator.sloped:
        return site.family in PATHWISE or site.family is Family.STRUCTURE
    return beside and site.relaxable


def mean(site: Site) -> Tensor:
    """The site's probabilities for every column, `[columns, K, *batch, *event]`: what its value is on average."""
    base = base_distribution(site.distribution)
    if isinstance(base, Vertices):
        return site.split(base.structure.marginals(), site.event_dim)
    return site.split(probabilities(base.logits, one_hot=site.family is not Family.BERNOULLI), site.event_dim)


def at_density(point: Point | None) -> bool:
    """Whether a density is taken there, which only a relaxed draw has."""
    return point is not None and point.temperature is not None


def merged(site: Site, point: Point | None) -> Point | None:
    """The point in the shape that the program gives the site's values."""
    return None if point is None else replace(point, tensor=site.merge(point.tensor))
