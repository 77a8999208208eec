"""From a run of guide and model to an objective: its value, its pathwise part, and the cost terms behind each site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar

import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.costs import Costs, Order, SiteCosts, Term
from pyro_discrete.divergence import WeighDivergence, closed_divergence
from pyro_discrete.errors import ParticleError, SettingError, UnsupportedObjectiveError
from pyro_discrete.estimators.base import Estimator, Weights
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies, divergence_of
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.programs.dims import Frames, Layout, plates_of
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import (
    base_distribution,
    family_of,
    first,
    guide_log_prob,
    latent_sites,
    log_prob,
    padded,
    sample_sites,
)

__all__ = ["Evaluation", "EvidenceBound", "Objective"]


@dataclass
class Evaluation:
    """One run of guide and model, over `n` rows x particles (1 where the program runs without a leading dim).

    - `costs`: each site's cost, `[n, *batch]`; n as in the site's `Layout.leading`.
    - `path`: differentiable loss of the first K rows, summed: model terms, and guide terms of reparameterised sites.
    - `loss`: detached loss of the first K rows, summed.
    - `scores`: log q of sites that an estimator drew, unscaled and unmasked, `[n, *batch]`.
    - `untended`: sites with a score but no estimator (factors of the guide, partly reparameterised distributions).
    """

    guide_trace: Trace | None
    model_trace: Trace | None
    costs: SiteCosts
    path: Tensor | float
    loss: Tensor | float
    scores: dict[str, Tensor]
    untended: dict[str, Tensor]

    @property
    def factors(self) -> set[str]:
        """The guide's factor statements."""
        sites = {} if self.guide_trace is None else sample_sites(self.guide_trace)
        return {name for name, msg in sites.items() if isinstance(base_distribution(msg["fn"]), Unit)}

    def light(self) -> Evaluation:
        """The same without its traces."""
        return replace(self, guide_trace=None, model_trace=None)


class Objective(ABC):
    """What is maximised: it scores a pair of traces. Drawing, planning and the estimators know nothing of it.

    - `name`: the ELBO that has it. `may_enumerate`: whether sums over all discrete sites by enumeration give it.
    - `additive`: whether it is the mean of a sum of terms, so that one of them may be replaced by its mean.
    - `reads_dependencies`: whether its value, and not the sites' costs alone, is made up by what depends on what.
    - `instead_of_separable`: what to do where an estimator meets terms that a plate's elements share.
    """

    name: ClassVar[str]
    may_enumerate: bool = True
    additive: bool = True
    reads_dependencies: bool = False
    instead_of_separable: ClassVar[str] = "Use 'rloo' or 'nvil' for the site, or enumerate every discrete site."

    def around(self, pair: Pair, training: bool) -> Pair:
        """The pair that is run for this objective: handlers that weigh terms or leave them out; in training or not."""
        return pair

    def notes(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, str]:
        """What the plan is to add about sites, by name."""
        return {}

    def closed_terms(self, guide_trace: Trace, model_trace: Trace, dependencies: Dependencies) -> dict[str, Tensor]:
        """What stands for the sampled terms of reparameterised sites in guide and model, by name, `[*batch]`."""
        return {}

    @abstractmethod
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
        """Score a pair of traces.

        `chosen` maps the sites that an estimator drew to it. Terms come out with `batch_dims` batch dims behind a
        leading dim of `layout.size` rows (or 1, for a program run without it). They are detached unless `keep_graph`
        says that slopes are wanted. `dependencies` says which of them each site can influence.
        """

    def layout(self, pair: Pair, trial: Trial, known: Dependencies, particles: int) -> Layout:
        """What the rows of a run of this pair are, for so many repetitions."""
        return Layout(particles)

    def repetitions(self, particles: int) -> int:
        """How many independent samples of the objective `num_particles=particles` gives."""
        return particles

    def join(self, evaluations: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of one sample of the objective, from its runs one by one."""
        (evaluation,) = evaluations
        return evaluation

    def beside(self, evaluation: Evaluation, joined: Evaluation, number: int) -> Evaluation:
        """The evaluation of a run in which particle `number` of a sample of the objective differs from `joined`."""
        return evaluation

    def weights(self, evaluation: Evaluation, name: str) -> Weights | None:
        """How the named site's particles are weighed, where they are."""
        return None

    def automatic(self) -> str:
        """The name of the estimator that "auto" takes for sites of its own particles, empty for the general rule."""
        return ""

    def check_estimator(self, estimator: Estimator, where: str, particles: int) -> None:
        """Refuse an estimator that cannot work on this objective, or not with so many repetitions."""
        if estimator.importance_weighted:
            raise UnsupportedObjectiveError(
                f"Estimator {estimator.name!r} {where + ' ' if where else ''}was given to {self.name}, but it needs "
                f"the weights of the importance-weighted bound. Write TraceIWELBO({estimator.name!r}, "
                "num_particles=8), or use 'rloo' or 'nvil'."
            )
        if estimator.min_particles > particles:
            raise ParticleError(
                f"Estimator {estimator.name!r} {where + ' ' if where else ''}needs num_particles >= "
                f"{estimator.min_particles}, num_particles={particles} was given. Write "
                f"{self.name}({estimator.name!r}, num_particles={max(4, estimator.min_particles)}), or use 'nvil' with "
                "one particle."
            )


class _Sum:
    """The sum over the first column's rows of terms: those of one shape are added up before they are summed."""

    def __init__(self, layout: Layout, batch_dims: int) -> None:
        self.particles = layout.particles if layout.columns > 1 else None
        self.batch_dims = batch_dims
        self.by_shape: dict[torch.Size, Tensor] = {}

    def add(self, term: Tensor) -> None:
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
        both, pathwise_alone, value_alone = (_Sum(layout, batch_dims) for _ in range(3))
        scores: dict[str, Tensor] = {}
        untended: dict[str, Tensor] = {}
        closed: dict[str, Tensor] = {}
        if self.analytic_kl:
            divergences = self._divergences(guide_trace, model_trace, dependencies)
            closed = {name: term for name, term in divergences.items() if isinstance(term, Tensor)}
        model_sites = sample_sites(model_trace)
        guide_sites = {}

        def add(cost: Tensor, plates: Frames, in_model: bool, position: int, name: str) -> None:
            value = padded(cost if keep_graph else cost.detach(), batch_dims)
            terms.append(Term(value, plates, in_model, position, name))
            both.add(cost)

        for position, (name, msg) in enumerate(sample_sites(guide_trace).items()):
            plates = guide_sites[name] = plates_of(msg)
            log_q, score, pathwise = guide_log_prob(msg, chosen.get(name))
            if score is not None:
                (scores if name in chosen else untended)[name] = padded(score, batch_dims)
            if name in closed and name not in untended:
                if name not in model_sites or model_sites[name]["mask"] is False:
                    add(closed.pop(name), plates, False, position, divergence_of(name))
                continue
            closed.pop(name, None)
            if pathwise is log_q:
                add(log_q, plates, False, position, name)
                continue
            value = log_q.detach()
            terms.append(Term(padded(log_q if keep_graph else value, batch_dims), plates, False, position, name))
            value_alone.add(value)
            if pathwise is not None:
                pathwise_alone.add(pathwise)
        model_positions = {}
        for position, (name, msg) in enumerate(model_sites.items()):
            model_positions[name] = position
            if name in closed:
                add(closed[name], plates_of(msg), True, position, divergence_of(name))
                continue
            cost = -scale_and_mask(log_prob(msg["fn"], msg), msg["scale"], msg["mask"])
            add(cost, plates_of(msg), True, position, name)
        path = both.total()
        loss = path.detach() if torch.is_tensor(path) else path
        if value_alone.by_shape:
            loss = loss + value_alone.total()
        if pathwise_alone.by_shape:
            path = path + pathwise_alone.total()
        costs = Costs(terms, Order(guide_sites, model_positions, dependencies))
        return Evaluation(guide_trace, model_trace, costs, path, loss, scores, untended)
