"""The evidence lower bound, its KL terms in closed form where a site has one, and weighed while they are annealed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import add, sub
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Delta, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical, kl_divergence

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies, divergence_of
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.objectives.costs import Costs, Orders, Term
from pyro_discrete.programs.alike_sites import scored_together
from pyro_discrete.programs.dims import Frames, Layout, plates_of
from pyro_discrete.programs.pair import Pair, SiteMessenger
from pyro_discrete.programs.sites import (
    base_distribution,
    family_of,
    first,
    guide_log_prob,
    is_latent,
    latent_sites,
    negative_log_prob,
    padded,
    sample_sites,
    weighed,
)
from pyro_discrete.relaxations.relaxed_distribution import Relaxed, rebuilt
from pyro_discrete.sums.marginalisation import Absorbed, Known

__all__ = [
    "EvidenceBound",
    "WeighDivergence",
    "closed_divergence",
]


def closed_divergence(name: str, guide: Any, model: Any | None, dependencies: Dependencies) -> Tensor | str:
    r"""A site's KL term with its scales and masks, `[*batch]`, or why it is not put in closed form.

    .. math:: E_{q(z \mid u)}[\log q(z \mid u) - \log p(z \mid v)] = KL(q(\cdot \mid u) \,\|\, p(\cdot \mid v))

    holds if neither u nor v depends on z: a prior that reads what the guide draws from z keeps its sampled term. Where
    the guide's scale s and mask are not those of the model's, the terms weigh differently: s_q E[log q] - s_p E[log p]
    is s_p (KL + H) - s_q H, with the entropy H of q. Where the model has no such term it is -s_q H alone.

    - `guide`, `model`: the site in either trace.
    """
    if not is_latent(guide) or (model is not None and not is_latent(model)):
        return "not latent in both"
    if model is not None:
        if not dependencies.known:
            return f"its prior may depend on what was drawn from it: {dependencies.reason}"
        if name in dependencies.parameters.get(("model", name), ()):
            return "its prior depends on what the guide draws from it"
        if plates_of(guide) != plates_of(model):
            return "in other plates in the model"
        if isinstance(model["fn"], Known):
            return "its prior depends on a site of the model alone, which is summed out"
    q = _plain(guide["fn"])
    p = q if model is None else _plain(model["fn"])
    if isinstance(base_distribution(q), Delta | Unit):
        return "no distribution to integrate over"
    if _masked(q) or _masked(p):
        return "masked inside its distribution"
    try:
        return _weighed(guide, q, model, p)
    except NotImplementedError:
        return f"no closed form for {type(base_distribution(q)).__name__} and {type(base_distribution(p)).__name__}"


def _weighed(guide: Any, q: Any, model: Any | None, p: Any) -> Tensor:
    if model is None:
        return -scale_and_mask(q.entropy(), guide["scale"], guide["mask"])
    if q.batch_shape != p.batch_shape:  # torch's formulas index one side by a mask of the other
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(shape), p.expand(shape)
    divergence = _divergence(q, p)
    if _same(guide["scale"], model["scale"]) and guide["mask"] is model["mask"]:
        return scale_and_mask(divergence, guide["scale"], guide["mask"])
    entropy = q.entropy()
    crossed = scale_and_mask(divergence + entropy, model["scale"], model["mask"])
    return crossed - scale_and_mask(entropy, guide["scale"], guide["mask"])


def _divergence(q: Any, p: Any) -> Tensor:
    """KL(q || p), as `kl_divergence` has it, with slopes that are numbers where q gives a value no probability."""
    both = isinstance(q, Independent) and isinstance(p, Independent)
    if both and q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
        return torch.as_tensor(sum_rightmost(_divergence(q.base_dist, p.base_dist), q.reinterpreted_batch_ndims))
    if isinstance(q, OneHotCategorical) and isinstance(p, OneHotCategorical):
        q, p = q._categorical, p._categorical
    if isinstance(q, Categorical) and isinstance(p, Categorical) and q._num_events == p._num_events:
        logits = (torch.where(q.probs > 0, fn.logits, 0.0) for fn in (q, p))
        return (q.probs * reduce(sub, logits)).sum(-1)
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        total: Tensor | float = 0.0
        for probability, sign in ((q.probs, -1), (1 - q.probs, 1)):
            log_p, log_q = (F.softplus(sign * torch.where(probability > 0, fn.logits, 0.0)) for fn in (p, q))
            total = total + probability * (log_p - log_q)
        return torch.as_tensor(total)
    return kl_divergence(q, p)


def _plain(fn: Any) -> Any:
    """A distribution as it was before it was extended to soft values."""
    if isinstance(base_distribution(fn), Relaxed):
        return rebuilt(fn, lambda base: base.base)
    return fn


def _masked(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float) and isinstance(other, int | float) and one == other)


class WeighDivergence(SiteMessenger):
    """Multiplies the terms of the sites that the guide draws, in guide and model, by a weight `[]`.

    To go around the guide first, then `around_model()` around the model that is run against it.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.scales: dict[str, tuple[Any, Any]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg):
            # one tensor for guide and model, so that they are seen to be weighed alike
            self.scales[msg["name"]] = msg["scale"], msg["scale"] * self.weight
            msg["scale"] = self.scales[msg["name"]][1]

    def around_model(self) -> SiteMessenger:
        """The handler for the model."""
        return _WeighModel(self)


class _WeighModel(SiteMessenger):
    def __init__(self, guide: WeighDivergence) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        known = self.guide.scales.get(msg["name"])
        if known is not None and is_latent(msg):
            msg["scale"] = known[1] if _same(known[0], msg["scale"]) else msg["scale"] * self.guide.weight


class _Pathwise:
    """The sum over the first column's rows of terms that a gradient flows through, those of one shape added up first.

    Where no row has a dim, or there is one column, terms are summed as they are.
    """

    def __init__(self, layout: Layout, batch_dims: int) -> None:
        self.particles = layout.particles if layout.columns > 1 else None
        self.batch_dims = batch_dims
        self.by_shape: dict[torch.Size, Tensor] = {}

    def add(self, term: Tensor) -> None:
        if not term.requires_grad:
            return
        if self.particles is not None:
            term = padded(term, self.batch_dims)
        known = self.by_shape.get(term.shape)
        self.by_shape[term.shape] = term if known is None else known + term

    def total(self) -> Tensor | float:
        sums = [
            terms.sum() if self.particles is None else first(terms, self.particles).sum()
            for terms in self.by_shape.values()
        ]
        return reduce(add, sums) if sums else 0.0


class EvidenceBound(Objective[Evaluation]):
    """The evidence lower bound: f(z) = log p(x, z) - log q(z | x).

    - `analytic_kl`: whether the KL terms of sites that have a closed form take it.
    - `weight`: in training, what the terms of the guide's latent sites are multiplied by, in guide and model; `[]`.
    - `orders`: those of the runs that were scored.
    """

    def __init__(self, analytic_kl: bool = False) -> None:
        self.analytic_kl: bool = analytic_kl
        self.reads_dependencies: bool = analytic_kl
        self.weight: Tensor | None = None
        self.orders: Orders = Orders()

    def around(self, pair: Pair, training: bool) -> Pair:
        """The pair with its KL terms weighed, in training."""
        if self.weight is None or not training:
            return pair
        weigh = WeighDivergence(self.weight)
        return replace(pair, guide=weigh(pair.guide), model=weigh.around_model()(pair.model))

    def check_estimator(self, estimator: Estimator, where: str, particles: int) -> None:
        """Refuse also an estimator whose divergence is another one than that in closed form."""
        super().check_estimator(estimator, where, particles)
        if self.analytic_kl and estimator.relaxed_divergence:
            raise SettingError(
                f"Estimator {estimator!r} {where + ' ' if where else ''}scores densities of relaxed distributions, but "
                f"{self.name}(analytic_kl=True) takes the divergence of the discrete ones. Leave out analytic_kl, or "
                "use kl='linear'."
            )

    def notes(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, str]:
        """Which sites have their KL term in closed form, and why others do not."""
        if not self.analytic_kl:
            return {}
        return {
            name: f"; KL term sampled ({term})" if isinstance(term, str) else "; KL term in closed form"
            for name, term in self._divergences(guide_trace, model_trace, dependencies).items()
        }

    def closed_terms(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, Tensor]:
        """Their KL terms in closed form, on request; those of discrete sites are exact as they are, where summed."""
        if not self.analytic_kl:
            return {}
        found = self._divergences(guide_trace, model_trace, dependencies)
        pathwise = {name for name, msg in latent_sites(guide_trace).items() if family_of(msg["fn"]) is None}
        return {name: term for name, term in found.items() if isinstance(term, Tensor) and name in pathwise}

    def _divergences(
        self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies
    ) -> dict[str, Tensor | str]:
        """Each latent site's KL term, or why it has none in closed form."""
        model = {n: m for n, m in sample_sites(model_trace).items() if m["mask"] is not False}
        return {
            name: closed_divergence(name, msg, model.get(name), dependencies)
            for name, msg in latent_sites(guide_trace).items()
        }

    name = "TraceELBO"

    def evaluate(
        self,
        guide_trace: Trace,
        model_trace: Trace,
        chosen: Mapping[str, Estimator],
        layout: Layout,
        batch_dims: int,
        keep_graph: bool = False,
        dependencies: Dependencies = UNKNOWN,
    ) -> Evaluation:
        """Score a pair of traces: see `Objective.evaluate`."""
        terms: list[Term] = []
        both, pathwise_alone = _Pathwise(layout, batch_dims), _Pathwise(layout, batch_dims)
        scores: dict[str, Tensor] = {}
        untended: dict[str, Tensor] = {}
        closed: dict[str, Tensor] = {}
        if self.analytic_kl:
            divergences = self._divergences(guide_trace, model_trace, dependencies)
            closed = {name: term for name, term in divergences.items() if isinstance(term, Tensor)}
        model_sites = sample_sites(model_trace)
        guide_sites = {}

        def add(
            cost: Tensor, pathwise: Tensor | None, plates: Frames, in_model: bool, position: int, name: str
        ) -> None:
            value = padded(cost if keep_graph or not cost.requires_grad else cost.detach(), batch_dims)
            terms.append(Term(value, plates, in_model, position, name))
            if pathwise is not None:
                (both if pathwise is cost else pathwise_alone).add(pathwise)

        drawn = sample_sites(guide_trace)
        known = scored_together({name: msg for name, msg in drawn.items() if name in chosen})
        for position, (name, msg) in enumerate(drawn.items()):
            plates = guide_sites[name] = plates_of(msg)
            log_q, score, pathwise = guide_log_prob(msg, chosen.get(name), known.get(name))
            if score is not None:
                (scores if name in chosen else untended)[name] = padded(score, batch_dims)
            if name in closed and name not in untended:
                if name not in model_sites or model_sites[name]["mask"] is False:
                    term = closed.pop(name)
                    add(term, term, plates, False, position, divergence_of(name))
                continue
            closed.pop(name, None)
            add(log_q, pathwise, plates, False, position, name)
        known = scored_together({name: msg for name, msg in model_sites.items() if name not in closed})
        for position, (name, msg) in enumerate(model_sites.items()):
            if name in closed:
                add(closed[name], closed[name], plates_of(msg), True, position, divergence_of(name))
                continue
            fn = msg["fn"]
            if isinstance(fn, Absorbed):
                continue  # zero: a step of a chain of 100 takes 0.94 of the time that it takes with these terms
            if name in known:
                cost = -weighed(known[name], msg["scale"], msg["mask"])
            else:
                cost = weighed(negative_log_prob(fn, msg), msg["scale"], msg["mask"])
            add(cost, cost, plates_of(msg), True, position, name)
        costs = Costs(terms, self.orders.of(guide_sites, model_sites, dependencies))
        loss = costs.sum(layout.particles if layout.columns > 1 else None)
        pathwise_loss = both.total()
        if pathwise_alone.by_shape:
            pathwise_loss = pathwise_loss + pathwise_alone.total()
        return Evaluation(guide_trace, model_trace, costs, pathwise_loss, loss, scores, untended)
