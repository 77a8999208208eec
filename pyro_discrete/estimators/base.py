"""What an estimator is: it says how many rows it needs, draws them, and combines their costs. Torch only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.families import ANY_FAMILY, FINITE, PATHWISE, RELAXABLE, Family  # what estimators are written with

__all__ = [
    "ANY_FAMILY",
    "FINITE",
    "PATHWISE",
    "RELAXABLE",
    "Draw",
    "Estimator",
    "Family",
    "SiteView",
    "Surrogate",
    "Weights",
]


class SiteView(Protocol):
    """What an estimator may know of the site it draws for, and the number of steps that its ELBO has made.

    Shapes: `logits` `[K, *batch, *event]` (for Bernoulli and OneHotCategorical the event of a value; for Categorical
    that and one more dim for the categories), `sample()` `[K, *batch, *event]`, `support()`
    `[cardinality, K, *batch, *event]`, `log_mass(value)` of `[..., K, *batch, *event]` gives `[..., K, *batch]`.
    """

    @property
    def step(self) -> Tensor | int: ...
    @property
    def name(self) -> str: ...
    @property
    def family(self) -> Family | None: ...
    @property
    def event_dim(self) -> int: ...
    @property
    def cardinality(self) -> float: ...
    @property
    def logits(self) -> Tensor: ...
    def sample(self) -> Tensor: ...
    def support(self) -> Tensor: ...
    def log_mass(self, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Weights:
    """What a particle of an importance-weighted bound of `count` particles can know of the bound; all are detached.

    - `own` `[K, *batch]`: its log-weight log p(x, z) - log q(z) for each datum, unscaled, in row 0.
    - `others` `[K, *batch]`: the logarithm of the sum of the other particles' weights (-inf if there are none).
    - `mean` `[K, *batch]`: the mean of the other particles' log-weights.
    - `scale`: what multiplies the bound: a site's cost is `-scale * (logaddexp(own, others) - log(count))`.
    """

    own: Tensor
    others: Tensor
    mean: Tensor
    scale: float
    count: int

    @staticmethod
    def join(parts: Sequence[Weights]) -> Weights:
        """The weights of separate runs of the program as those of so many particles."""
        own, others, mean = (torch.cat([getattr(w, n) for w in parts]) for n in ("own", "others", "mean"))
        return replace(parts[0], own=own, others=others, mean=mean)


@dataclass(frozen=True)
class Draw:
    """The coupled values that an estimator drew at a site.

    The estimator's `draw` gives `value` (and what else its `surrogate` wants back, in `logits` and `extra`); the
    engine fills in the rest before it calls `surrogate`.

    - `value` `[rows, K, *batch, *event]`: row 0 is a draw from the guide's distribution q (for a relaxed estimator,
      its relaxation).
    - `point`: where a relaxed row 0 is scored, if not by its log-mass extended to its value; `[K, *batch, *event]`.
    - `log_q` `[K, *batch]`: log q of row 0, differentiable, neither scaled nor masked.
    - `logits` `[K, *batch, *event]`: differentiable logits of q, if `draw` passes them on (`logits=site.logits`).
    - `event_dim`: number of event dims of a value.
    - `scale`: the factor by which subsampled plates multiply the site's costs (full size / size).
    - `slopes` row -> `[K, *batch, *event]`: for a relaxed row, d(the row's total cost) / d(value).
    - `context` `[K or 1, *batch, features]`: what the site's baseline may read: observed values, or its own `input`.
    - `extra`: tensors `[K, ...]` that `draw` hands to `surrogate`.
    - `weights`: under `TraceIWELBO`, at a site that its inner particles do not share, how they are weighed. There K
      stands for `S, inner`: the outer samples, and the particles of the bound as one more batch dim.
    """

    value: Tensor
    point: Point | None = None
    log_q: Tensor | None = None
    logits: Tensor | None = None
    event_dim: int = 0
    scale: float = 1.0
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    context: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Weights | None = None

    @property
    def score(self) -> Tensor:
        """`log_q`, which the engine has filled in by the time `surrogate` runs."""
        if self.log_q is None:
            raise RuntimeError("a draw has its log_q only in surrogate(), not in draw()")
        return self.log_q

    def replace(self, **changes: object) -> Draw:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @staticmethod
    def join(draws: Sequence[Draw]) -> Draw:
        """The draws of separate runs of the program as the draw of so many particles."""
        if len(draws) == 1:
            return draws[0]
        first = draws[0]

        def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
            present = [p for p in parts if p is not None]
            return torch.cat(present) if present else None

        def together(parts: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
            return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

        weights = [d.weights for d in draws if d.weights is not None]
        return first.replace(
            value=torch.cat([d.value for d in draws], 1),
            log_q=joined([d.log_q for d in draws]),
            logits=joined([d.logits for d in draws]),
            context=joined([d.context for d in draws]),
            slopes=together([d.slopes for d in draws]),
            extra=together([d.extra for d in draws]),
            weights=Weights.join(weights) if weights else None,
        )


@dataclass(frozen=True)
class Surrogate:
    """What `Estimator.surrogate` returns.

    - `loss` (anything summable, `[K, *batch]` in most cases): its gradient, divided by K, is the estimate of the
      gradient of the cost with respect to the parameters of q at this site. Its value does not matter.
    - `auxiliary`: a loss that trains the estimator's own parameters; its gradient on all others must be zero.
    """

    loss: Tensor | float = 0.0
    auxiliary: Tensor | None = None


class Estimator(nn.Module, ABC):
    """How the gradient at one discrete site is estimated: draw coupled rows, combine their costs.

    A subclass declares what it serves and claims, and the contract test (`pyro_discrete.testing`) holds it to that.
    State - running averages, networks, counters - lives in the module; each site gets a copy of its own.

    - `name`: what users write, the class in snake case.
    - `families`: the kinds of site it serves.
    - `unbiased`: whether the mean of the estimate is the exact gradient.
    - `relaxed`: the rows whose values are relaxed (soft, differentiable) instead of hard. An estimator that has such
      rows (or `sloped` ones) sees a Categorical site as the OneHotCategorical it is. If row 0 is relaxed, the site is
      pathwise: the gradient flows through the draw. The others' slopes are in `draw.slopes`; downstream of them,
      relaxable sites take their mean, so that the row's total cost is a differentiable function of the value.
    - `sloped`: rows with hard values whose slopes are wanted as well.
    - `differentiates_costs`: whether `surrogate` differentiates costs and slopes themselves (for parameters of its own,
      such as a temperature); they come detached otherwise.
    - `min_particles`: the least `num_particles` that it works with.
    - `local_signals`: whether the learning signal leaves out the terms drawn before the site.
    - `draws_from_guide`: whether the hard values behind row 0 are draws of q; `loss()` draws anew where they are not.
    - `importance_weighted`: whether it serves the importance-weighted bound (`TraceIWELBO`) alone, and there the sites
      that the inner particles do not share: it reads `draw.weights`. `min_inner`: the least number of these particles.
    - `direct_term`: whether that bound is differentiated in log q of row 0 too (its gradient beside the score's).
    - `relaxed_divergence`: whether it scores its site, in guide and model, by densities of relaxed distributions.
    - `separable`: whether it changes the elements of a plate together while it means one of them, so that the elements
      must not share later terms (local expectations); refused with an error where they do.
    - `reads_context`: whether `surrogate` wants `draw.context`; `input` names what is in it, by default the data.
    - `learning_rate`: None if the caller's optimiser trains the estimator's parameters, else it trains them itself.
    - `summary`, `reference`: one line for tables, and the paper. `also_known`: other names that papers and libraries
      have for it, by which users who look for it are led to `name`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    evaluations: ClassVar[str] = "1"
    also_known: ClassVar[tuple[str, ...]] = ()
    families: frozenset[Family] = ANY_FAMILY
    unbiased: bool = True
    relaxed: tuple[int, ...] = ()
    sloped: tuple[int, ...] = ()
    differentiates_costs: bool = False
    min_particles: int = 1
    local_signals: bool = True
    draws_from_guide: bool = True
    importance_weighted: bool = False
    min_inner: int = 1
    direct_term: bool = True
    relaxed_divergence: bool = False
    separable: bool = False
    reads_context: bool = False
    input: str | Callable[..., Tensor] | None = None
    learning_rate: float | None = None

    @property
    def slope_rows(self) -> tuple[int, ...]:
        """The rows whose slopes `surrogate` reads."""
        if not self.relaxed and not self.sloped:
            return ()
        return tuple(sorted({r for r in self.relaxed if r > 0} | set(self.sloped)))

    def prepare(self, features: int, like: Tensor) -> None:
        """Build what depends on the number of features in `draw.context` (0: none), like a tensor of the program."""

    def rows(self, site: SiteView) -> int:
        """How many coupled values a particle has at this site: the model is evaluated once for each."""
        return 1

    def draw(self, site: SiteView) -> Draw:
        """Draw the coupled values `[rows, K, *batch, *event]`; row 0 from q itself."""
        return Draw(site.sample().unsqueeze(0))

    @abstractmethod
    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """Combine the costs `[rows, K, *batch]` that the site's rows led to into a tensor with the right gradient."""

    def state_tensors(self) -> list[Tensor]:
        """The tensors that `surrogate` may change, in place: parameters and buffers, and what an optimiser keeps."""
        return [*self.parameters(), *self.buffers()]

    @classmethod
    def variants(cls) -> list[Estimator]:
        """The configurations that the contract test tries; the first is the default one."""
        return [cls()]
