"""From a run of guide and model to an objective: its value, its pathwise part, and the cost terms behind each site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.costs import Costs, Frames, Order, Term
from pyro_discrete.dependencies import UNKNOWN, Dependencies, divergence_of
from pyro_discrete.divergence import WeighDivergence, closed_divergence
from pyro_discrete.errors import MissingDataError
from pyro_discrete.probe import Pair
from pyro_discrete.sites import base_distribution, latent_sites, plates_of, sample_sites, without_mask

__all__ = ["Evaluation", "EvidenceBound", "Objective", "first"]


@dataclass
class Evaluation:
    """One run of guide and model, over `n` rows x particles (1 where the program runs without a leading dim).

    - `costs`: each site's cost, `[n, *batch]`.
    - `path`: differentiable loss of the first K rows, summed: model terms, and guide terms of reparameterised sites.
    - `loss`: detached loss of the first K rows, summed.
    - `scores`: log q of sites that an estimator drew, unscaled and unmasked, `[n, *batch]`.
    - `untended`: sites with a score but no estimator (factors of the guide, partly reparameterised distributions).
    """

    guide_trace: Trace
    model_trace: Trace
    costs: Costs
    path: Tensor | float
    loss: Tensor | float
    scores: dict[str, Tensor]
    untended: dict[str, Tensor]


def first(tensor: Tensor, particles: int) -> Tensor:
    """The first K of the leading dim, without a node of the graph where that is all there is."""
    return tensor if tensor.shape[0] <= particles else tensor[:particles]


class Objective(ABC):
    """What is maximised: it scores a pair of traces. Drawing, planning and the estimators know nothing of it.

    - `may_enumerate`: whether sums over all discrete sites by enumeration give this objective.
    - `reads_dependencies`: whether its value, and not the sites' costs alone, is made up by what depends on what.
    """

    may_enumerate: bool = True
    reads_dependencies: bool = False

    def around(self, pair: Pair, training: bool) -> Pair:
        """The pair that is run for this objective: handlers that weigh terms or leave them out; in training or not."""
        return pair

    def notes(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, str]:
        """What the plan is to add about sites, by name."""
        return {}

    @abstractmethod
    def evaluate(
        self,
        guide_trace: Trace,
        model_trace: Trace,
        estimated: Mapping[str, bool],
        particles: int,
        batch_dims: int,
        keep_graph: bool = False,
        dependencies: Dependencies = UNKNOWN,
    ) -> Evaluation:
        """Score a pair of traces.

        `estimated` maps the sites that an estimator drew to whether row 0 is relaxed. Terms come out with `batch_dims`
        batch dims behind a leading dim of rows x particles. They are detached unless `keep_graph` says that slopes are
        wanted. `dependencies` says which of them each site can influence.
        """


class _Sum:
    """The sum over the first K rows of terms `[n, *batch]`: those of one shape are added up before they are summed."""

    def __init__(self) -> None:
        self.by_shape: dict[torch.Size, Tensor] = {}

    def add(self, term: Tensor) -> None:
        known = self.by_shape.get(term.shape)
        self.by_shape[term.shape] = term if known is None else known + term

    def total(self, particles: int) -> Tensor | float:
        sums = [first(terms, particles).sum() for terms in self.by_shape.values()]
        return reduce(add, sums) if sums else 0.0


class EvidenceBound(Objective):
    """The evidence lower bound: f(z) = log p(x, z) - log q(z | x).

    - `analytic_kl`: whether the KL terms of sites that have a closed form take it.
    - `weight`: in training, what the terms of the guide's latent sites are multiplied by, in guide and model; `[]`.
    """

    def __init__(self, analytic_kl: bool = False) -> None:
        self.analytic_kl = self.reads_dependencies = analytic_kl
        self.weight: Tensor | None = None

    def around(self, pair: Pair, training: bool) -> Pair:
        """The pair with its KL terms weighed, in training."""
        if self.weight is None or not training:
            return pair
        weigh = WeighDivergence(self.weight)
        return replace(pair, guide=weigh(pair.guide), model=weigh.around_model()(pair.model))

    def notes(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, str]:
        """Which sites have their KL term in closed form, and why others do not."""
        if not self.analytic_kl:
            return {}
        return {
            name: f"; KL term sampled ({term})" if isinstance(term, str) else "; KL term in closed form"
            for name, term in self._divergences(guide_trace, model_trace, dependencies).items()
        }

    def _divergences(
        self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies
    ) -> dict[str, Tensor | str]:
        """Each latent site's KL term, or why it has none in closed form."""
        model = {n: m for n, m in sample_sites(model_trace).items() if m["mask"] is not False}
        return {
            name: closed_divergence(name, msg, model.get(name), dependencies)
            for name, msg in latent_sites(guide_trace).items()
        }

    def evaluate(
        self,
        guide_trace: Trace,
        model_trace: Trace,
        estimated: Mapping[str, bool],
        particles: int,
        batch_dims: int,
        keep_graph: bool = False,
        dependencies: Dependencies = UNKNOWN,
    ) -> Evaluation:
        """Score a pair of traces: see `Objective.evaluate`."""

        def padded(tensor: Tensor) -> Tensor:
            missing = 1 + batch_dims - tensor.dim()
            return tensor.reshape((1,) * missing + tuple(tensor.shape)) if missing > 0 else tensor

        terms: list[Term] = []
        both, pathwise_alone, value_alone = _Sum(), _Sum(), _Sum()
        scores: dict[str, Tensor] = {}
        untended: dict[str, Tensor] = {}
        closed: dict[str, Tensor] = {}
        if self.analytic_kl:
            divergences = self._divergences(guide_trace, model_trace, dependencies)
            closed = {name: padded(term) for name, term in divergences.items() if isinstance(term, Tensor)}
        model_sites = sample_sites(model_trace)
        guide_sites = {}

        def add(cost: Tensor, plates: Frames, in_model: bool, position: int, name: str) -> None:
            terms.append(Term(cost if keep_graph else cost.detach(), plates, in_model, position, name))
            both.add(cost)

        for position, (name, msg) in enumerate(sample_sites(guide_trace).items()):
            plates = guide_sites[name] = plates_of(msg)
            log_q, score, pathwise = _guide_log_prob(msg, estimated.get(name))
            term = padded(log_q)
            if score is not None:
                (scores if name in estimated else untended)[name] = term if score is log_q else padded(score)
            if name in closed and name not in untended:
                if name not in model_sites or model_sites[name]["mask"] is False:
                    add(closed.pop(name), plates, False, position, divergence_of(name))
                continue
            closed.pop(name, None)
            value = term.detach()
            terms.append(Term(term if keep_graph else value, plates, False, position, name))
            if pathwise is log_q:
                both.add(term)
            else:
                value_alone.add(value)
                if pathwise is not None:
                    pathwise_alone.add(padded(pathwise))
        model_positions = {}
        for position, (name, msg) in enumerate(model_sites.items()):
            model_positions[name] = position
            if name in closed:
                add(closed[name], plates_of(msg), True, position, divergence_of(name))
                continue
            cost = -padded(scale_and_mask(_log_prob(msg["fn"], msg), msg["scale"], msg["mask"]))
            add(cost, plates_of(msg), True, position, name)
        path = both.total(particles)
        loss = path.detach() if torch.is_tensor(path) else path
        if value_alone.by_shape:
            loss = loss + value_alone.total(particles)
        if pathwise_alone.by_shape:
            path = path + pathwise_alone.total(particles)
        costs = Costs(terms, Order(guide_sites, model_positions, dependencies))
        return Evaluation(guide_trace, model_trace, costs, path, loss, scores, untended)


def _log_prob(fn: Any, msg: Any) -> Tensor:
    try:
        return fn.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    except ValueError as error:
        value = msg["value"]
        if msg["is_observed"] and torch.is_tensor(value) and bool(value.isnan().any()):
            raise MissingDataError(
                f"The observed value of site {msg['name']!r} contains NaN. Drop or fill the missing data, or "
                f"use obs_mask."
            ) from error
        raise ValueError(f"While scoring site {msg['name']!r}: {error}") from error


def _guide_log_prob(msg: Any, relaxed: bool | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A guide site's cost term, its score if it has one, and its pathwise term if it has one.

    `relaxed` is None for a site that no estimator drew, else whether its row 0 is relaxed.
    """
    fn, scale, mask = msg["fn"], msg["scale"], msg["mask"]
    if msg["is_observed"] and not isinstance(base_distribution(fn), Unit | Delta):
        # a value that the guide was conditioned on is not a draw of q
        return torch.zeros_like(_log_prob(fn, msg)), None, None
    if relaxed is None:
        parts = fn.score_parts(msg["value"], *msg["args"], **msg["kwargs"])
        log_q = scale_and_mask(parts.log_prob, scale, mask)
        pathwise = None
        if parts.entropy_term is parts.log_prob:
            pathwise = log_q
        elif not is_identically_zero(parts.entropy_term):
            pathwise = scale_and_mask(parts.entropy_term, scale, mask)
        score = None if is_identically_zero(parts.score_function) else parts.score_function
        return log_q, score, pathwise
    log_mass = _log_prob(fn, msg)
    log_q = scale_and_mask(log_mass, scale, mask)
    if relaxed:
        return log_q, None, log_q
    bare = without_mask(fn)
    return log_q, log_mass if bare is fn else _log_prob(bare, msg), None
