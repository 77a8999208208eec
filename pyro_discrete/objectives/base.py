"""What an objective is: it scores a pair of traces, by the terms behind each site's cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Self

from pyro.distributions import Unit
from pyro.poutine import Trace
from torch import Tensor
from typing_extensions import TypeVar  # whose default `typing` has from Python 3.13 on

from pyro_discrete.errors import ParticleError, UnsupportedObjectiveError
from pyro_discrete.estimators.base import Estimator, Weights
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.objectives.costs import SiteCosts
from pyro_discrete.programs.dims import Layout
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import base_distribution, sample_sites
from pyro_discrete.sums.marginalisation import Group

__all__ = [
    "E",
    "Evaluation",
    "Objective",
]


@dataclass
class Evaluation:
    """One run of guide and model, over `n` rows x particles (1 where the program runs without a leading dim).

    - `costs`: each site's cost, `[n, *batch]`; n as in the site's `Layout.leading`.
    - `pathwise`: differentiable loss of the first K rows, summed: model terms, and guide terms of reparameterised
      sites.
    - `loss`: detached loss of the first K rows, summed.
    - `scores`: log q of sites that an estimator drew, unscaled and unmasked, `[n, *batch]`.
    - `untended`: sites with a score but no estimator (factors of the guide, partly reparameterised distributions).
    """

    guide_trace: Trace | None
    model_trace: Trace | None
    costs: SiteCosts
    pathwise: Tensor | float
    loss: Tensor | float
    scores: dict[str, Tensor]
    untended: dict[str, Tensor]

    @property
    def factors(self) -> set[str]:
        """The guide's factor statements."""
        sites = {} if self.guide_trace is None else sample_sites(self.guide_trace)
        return {name for name, msg in sites.items() if isinstance(base_distribution(msg["fn"]), Unit)}

    def light(self) -> Self:
        """The same without its traces."""
        return replace(self, guide_trace=None, model_trace=None)


E = TypeVar("E", bound=Evaluation, default=Any)
"""What an objective makes of a run."""


class Objective(ABC, Generic[E]):
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
    ) -> E:
        """Score a pair of traces.

        `chosen` maps the sites that an estimator drew to it. Terms come out with `batch_dims` batch dims behind a
        leading dim of `layout.size` rows (or 1, for a program run without it). They are detached unless `keep_graph`
        says that slopes are wanted. `dependencies` says which of them each site can influence.
        """

    def layout(
        self, pair: Pair, trial: Trial, known: Dependencies, particles: int, sums: Sequence[Group] = ()
    ) -> Layout:
        """What the rows of a run of this pair are, for so many repetitions; `sums` join sites of the model."""
        return Layout(particles)

    def repetitions(self, particles: int) -> int:
        """How many independent samples of the objective `num_particles=particles` gives."""
        return particles

    def join(self, evaluations: Sequence[E]) -> E:
        """The evaluation of one sample of the objective, from its runs one by one."""
        (evaluation,) = evaluations
        return evaluation

    def beside(self, evaluation: E, joined: E, number: int) -> E:
        """The evaluation of a run in which particle `number` of a sample of the objective differs from `joined`."""
        return evaluation

    def weights(self, evaluation: E, name: str) -> Weights | None:
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
