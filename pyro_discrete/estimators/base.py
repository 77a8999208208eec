"""What an estimator is: it says how many rows it needs, draws them, and combines their costs. Torch only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from pyro_discrete.draws.noise import Perturbed
from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.errors import refuses_unknown_keywords
from pyro_discrete.families import (  # what estimators are written with
    ANY_FAMILY,
    FINITE,
    PATHWISE,
    RELAXABLE,
    Family,
    Need,
)

__all__ = [
    "ANY_FAMILY",
    "FINITE",
    "PATHWISE",
    "RELAXABLE",
    "Draw",
    "Estimator",
    "Family",
    "Need",
    "ScoredDraw",
    "SiteView",
    "Surrogate",
    "Weights",
    "weighted_rows",
]


class SiteView(Protocol):
    """What an estimator may know of the site it draws for, and the number of steps that its ELBO has made.

    Shapes: `logits` `[K, *batch, *event]` (for Bernoulli and OneHotCategorical the event of a value; for Categorical
    that and one more dim for the categories; for a structure the dims of its distribution's logits), `sample()`
    `[K, *batch, *event]`, `support()` `[cardinality, K, *batch, *event]`, `log_mass(value)` of
    `[..., K, *batch, *event]` gives `[..., K, *batch]`.

    A site that may be relaxed brings its noise, whatever it is: `perturb()`, `read(noise)`, `perturb_given(value)`,
    `soft(noise, temperature)`, `mean()`, `vertex(value)`, `score(value)`, `possible` and `hard()` are those of
    `Perturbed`, with the leading dims `[K, *batch, ...]`.

    - `needs_met`: what a structure can do of `Need`; all of it at other kinds of sites, for which `families` says it.
    - `parameter_dims`: how many last dims of `logits` are one law's: none of a bit's, one of a categorical's.
    - `bounded(largest)`: its law with logits within `-largest` and `largest`, for second derivatives.
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
    def needs_met(self) -> frozenset[Need]: ...
    @property
    def parameter_dims(self) -> int: ...
    @property
    def logits(self) -> Tensor: ...
    @property
    def law(self) -> Perturbed: ...
    @property
    def possible(self) -> Tensor: ...
    def sample(self) -> Tensor: ...
    def support(self) -> Tensor: ...
    def log_mass(self, value: Tensor) -> Tensor: ...
    def perturb(self) -> Tensor: ...
    def read(self, noise: Tensor) -> Tensor: ...
    def perturb_given(self, value: Tensor) -> Tensor: ...
    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor: ...
    def mean(self, logits: Tensor | None = None) -> Tensor: ...
    def vertex(self, value: Tensor) -> Tensor: ...
    def score(self, value: Tensor) -> Tensor: ...
    def hard(self) -> Tensor: ...
    def bounded(self, largest: float) -> Perturbed: ...


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
    """The coupled values that an estimator drew at a site: what its `draw` returns.

    - `value` `[rows, K, *batch, *event]`: row 0 is a draw from the guide's distribution q (for a relaxed estimator,
      its relaxation).
    - `point`: where a relaxed row 0 is scored, if not by its log-mass extended to its value; `[K, *batch, *event]`.
    - `logits` `[K, *batch, *event]`: differentiable logits of q, if `surrogate` wants them (`logits=site.logits`).
    - `extra`: tensors `[K, *batch, ...]` that `surrogate` wants back. What each row has, `[rows, K, *batch, ...]`, goes
      in by `with_rows` and comes back by `of_rows`; `by_rows` names it.

    `surrogate` gets it as a `ScoredDraw`. What that has besides is not there before: asking for it raises
    `AttributeError`.
    """

    value: Tensor
    point: Point | None = None
    logits: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    by_rows: frozenset[str] = frozenset()

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        """`Draw(value, log_q=...)`, as it was written before there was a `ScoredDraw`, makes one of these."""
        scored = cls is Draw and not _DRAWN.issuperset(fields)
        return super().__new__(ScoredDraw if scored else cls)  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name in ScoredDraw.__dataclass_fields__ or name == "score":
            raise AttributeError(f"a draw has its {name} only in surrogate(), not in draw()")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def with_rows(self, **tensors: Tensor) -> Self:
        """A copy that hands on to `surrogate`, too, what each row has (or some rows have): tensors `[rows, K, ...]`.

        `extra` keeps them as `[K, rows, ...]`, like all that belongs to particles.

        >>> draw = Draw(torch.zeros(2, 3)).with_rows(weight=torch.ones(2, 3))
        >>> draw.of_rows("weight").shape, draw.extra["weight"].shape
        (torch.Size([2, 3]), torch.Size([3, 2]))
        """
        extra = {**self.extra, **{name: each.transpose(0, 1) for name, each in tensors.items()}}
        return self.replace(extra=extra, by_rows=self.by_rows | tensors.keys())

    def of_rows(self, name: str) -> Tensor:
        """What `with_rows` was given by that name: `[rows, K, ...]`."""
        return self.extra[name].transpose(0, 1)


_DRAWN = frozenset(Draw.__dataclass_fields__)


@dataclass(frozen=True)
class ScoredDraw(Draw):
    """A draw with what the engine adds to it after the run: what `surrogate` gets.

    - `log_q` `[K, *batch]`: log q of row 0, differentiable, neither scaled nor masked; None at a relaxed row 0, whose
      score nobody wants. `score` is the same, and never None.
    - `event_dim`: number of event dims of a value.
    - `scale`: the factor by which subsampled plates multiply the site's costs (full size / size).
    - `slopes` row -> `[K, *batch, *event]`: for a relaxed row, d(the row's total cost) / d(value).
    - `context` `[K or 1, *batch, features]`: what the site's baseline may read: observed values, or its own `input`.
    - `weights`: under `TraceIWELBO`, at a site that its inner particles do not share, how they are weighed. There K
      stands for `S, inner`: the outer samples, and the particles of the bound as one more batch dim.
    - `parts`: the draws of separate runs that it was joined of, each with the graph of its own run; mostly none.
    """

    log_q: Tensor | None = None
    event_dim: int = 0
    scale: float = 1.0
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    context: Tensor | None = None
    weights: Weights | None = None
    parts: tuple[ScoredDraw, ...] = ()

    @property
    def score(self) -> Tensor:
        """`log_q`, of a site that has one."""
        if self.log_q is None:
            raise RuntimeError("this draw has no log_q: its row 0 is relaxed, or nothing has filled it in")
        return self.log_q

    @staticmethod
    def join(draws: Sequence[ScoredDraw], dim: int = 0) -> ScoredDraw:
        """The draws of separate runs of the program as the draw of so many particles; of inner ones of a bound with
        `dim=1`, where `context` and `weights` stay those of the first."""
        if len(draws) == 1:
            return draws[0]
        first = draws[0]

        def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
            present = [p for p in parts if p is not None]
            return torch.cat(present, dim) if present else None

        def together(parts: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
            return {key: torch.cat([part[key] for part in parts], first.particle_dim(key, dim)) for key in parts[0]}

        weights = [d.weights for d in draws if d.weights is not None]
        if dim == 0:
            first = first.replace(
                context=joined([d.context for d in draws]), weights=Weights.join(weights) if weights else None
            )
        return first.replace(
            value=torch.cat([d.value for d in draws], 1 + dim),
            log_q=joined([d.log_q for d in draws]),
            logits=joined([d.logits for d in draws]),
            slopes=together([d.slopes for d in draws]),
            extra=together([d.extra for d in draws]),
            parts=tuple(draws),
        )

    def particle_dim(self, name: Any, dim: int) -> int:
        """Where the particles are in an extra tensor, or a slope: they are in `dim` of `log_q`."""
        return dim + 1 if dim and name in self.by_rows else dim


@dataclass(frozen=True)
class Surrogate:
    """What `Estimator.surrogate` returns.

    - `loss` (anything summable, `[K, *batch]` in most cases): its gradient, divided by K, is the estimate of the
      gradient of the cost with respect to the parameters of q at this site. Its value does not matter.
    - `auxiliary`: a loss that trains the estimator's own parameters; its gradient on all others must be zero.
    """

    loss: Tensor | float = 0.0
    auxiliary: Tensor | None = None


class ForBound:
    """What an estimator of the importance-weighted bound (`TraceIWELBO`) declares; the others leave it as it is.

    - `importance_weighted`: whether it serves that bound alone, and there the sites that the inner particles do not
      share: it reads `draw.weights`.
    - `min_inner`: the least number of these particles.
    - `direct_term`: whether the bound is differentiated in log q of row 0 too (its gradient beside the score's).
    """

    importance_weighted: bool = False
    min_inner: int = 1
    direct_term: bool = True


class SoftRows:
    """What an estimator with soft values, or with slopes of the cost, declares; the others leave it as it is.

    - `relaxed`: the rows whose values are relaxed (soft, differentiable) instead of hard. An estimator that has such
      rows (or `sloped` ones) sees a Categorical site as the OneHotCategorical it is. If row 0 is relaxed, the site is
      pathwise: the gradient flows through the draw. The others' slopes are in `draw.slopes`; downstream of them,
      relaxable sites take their mean, so that the row's total cost is a differentiable function of the value.
    - `sloped`: rows with hard values whose slopes are wanted as well.
    - `differentiates_costs`: whether `surrogate` differentiates costs and slopes themselves (for parameters of its own,
      such as a temperature); they come detached otherwise.
    - `relaxed_divergence`: whether it scores its site, in guide and model, by densities of relaxed distributions.
    - `particles_apart`: whether `surrogate` treats every particle by itself, and changes no state: where rows are run
      in chunks, each chunk is combined by itself then, so that costs may be differentiated.
    - `draws_from_guide`: whether the hard values behind row 0 are draws of q; `loss()` draws anew where they are not.
    """

    relaxed: tuple[int, ...] = ()
    sloped: tuple[int, ...] = ()
    differentiates_costs: bool = False
    relaxed_divergence: bool = False
    particles_apart: bool = False
    draws_from_guide: bool = True

    @refuses_unknown_keywords
    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):  # a misspelt setting is told of by name
            cls.__init__ = refuses_unknown_keywords(cls.__init__)

    @property
    def slope_rows(self) -> tuple[int, ...]:
        """The rows whose slopes `surrogate` reads."""
        if not self.relaxed and not self.sloped:
            return ()
        return tuple(sorted({r for r in self.relaxed if r > 0} | set(self.sloped)))


class ReadsData:
    """What an estimator whose baseline reads the data declares; the others leave it as it is.

    - `reads_context`: whether `surrogate` wants `draw.context`; `input` names what is in it, by default the data.
    - `learning_rate`: None if the caller's optimiser trains the estimator's parameters, else it trains them itself.
    """

    reads_context: bool = False
    input: str | Callable[..., Tensor] | None = None
    learning_rate: float | None = None

    def prepare(self, features: int, like: Tensor) -> None:
        """Build what depends on the number of features in `draw.context` (0: none), like a tensor of the program."""


class Estimator(ForBound, SoftRows, ReadsData, nn.Module, ABC):
    """How the gradient at one discrete site is estimated: draw coupled rows, combine their costs.

    A subclass declares what it serves and claims, and the contract test (`pyro_discrete.testing`) holds it to that.
    State - running averages, networks, counters - lives in the module; each site gets a copy of its own.

    Of every estimator:

    - `name`: what users write, the class in snake case.
    - `summary`, `reference`, `evaluations`: one line for tables, the paper, and how often a step evaluates the model.
    - `families`: the kinds of site it serves. `needs`: what a structure has to be able to do for it.
    - `unbiased`: whether the mean of the estimate is the exact gradient.

    Where it is other than most:

    - `also_known`: other names that papers and libraries have for it, by which users who look for it are led to `name`.
    - `min_particles`: the least `num_particles` that it works with.
    - `local_signals`: whether the learning signal leaves out the terms drawn before the site.
    - `auxiliary_adds_up`: whether `Surrogate.auxiliary` is a sum over the elements of a batch; else it is a mean.
    - `separable`: whether it changes the elements of a plate together while it means one of them (local expectations).
      Where the elements share later terms, each is moved by itself, in rows of its own, the others as in row 0.
    - `max_rows`: the most rows a particle that this may take; `SharedTermsError` beyond.
    - with soft rows or slopes, what `SoftRows` has; with a baseline that reads the data, `ReadsData`; of the
      importance-weighted bound alone, `ForBound`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    evaluations: ClassVar[str] = "1"
    families: frozenset[Family] = ANY_FAMILY
    needs: frozenset[Need] = frozenset()
    unbiased: bool = True

    also_known: ClassVar[tuple[str, ...]] = ()
    min_particles: int = 1
    local_signals: bool = True
    auxiliary_adds_up: bool = False
    separable: bool = False
    max_rows: int = 4096

    @property
    def rests_on_slopes(self) -> bool:
        """Whether it is unbiased only for costs that are continuous in its relaxed rows, with slopes: all those that
        claim it and read such rows, unless any number in the place of the slope would do."""
        return self.unbiased and any(row > 0 for row in self.relaxed)

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            # a weak reference, which no file holds; Pyro's store puts it back whenever it hands the parameter out
            vars(parameter).pop("unconstrained", None)
        return dict(vars(self))

    def instead(self, need: Need | None) -> str:
        """What to say to a user whose structure lacks a need (None: that structures are not served); mostly nothing."""
        return ""

    def rows(self, site: SiteView) -> int:
        """How many coupled values a particle has at this site: the model is evaluated once for each."""
        return 1

    def draw(self, site: SiteView) -> Draw:
        """Draw the coupled values `[rows, K, *batch, *event]`; row 0 from q itself."""
        return Draw(site.sample().unsqueeze(0))

    @abstractmethod
    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """Combine the costs `[rows, K, *batch]` that the site's rows led to into a tensor with the right gradient."""

    def state_tensors(self) -> list[Tensor]:
        """The tensors that `surrogate` may change, in place: parameters and buffers, and what an optimiser keeps."""
        return [*self.parameters(), *self.buffers()]

    def learned_apart(self) -> list[Tensor]:
        """The tensors that `surrogate` changes, and no optimiser of the caller's: averages, a baseline trained here.

        Of processes that each see a part of a batch, all go on with the mean, weighed by their parts. The caller's
        optimiser is fed the whole batch's gradient, so that what it trains is the same in all of them anyway.
        """
        elsewhere = {id(p) for p in self.parameters() if self.learning_rate is None or not p.requires_grad}
        return [tensor for tensor in self.state_tensors() if id(tensor) not in elsewhere]

    @classmethod
    def variants(cls) -> list[Estimator]:
        """The configurations that the contract test tries; the first is the default one."""
        return [cls()]


def weighted_rows(weights: Tensor, terms: Tensor) -> Tensor:
    """The sum over rows of weights times terms (costs, or log q): of `[rows, K, *batch]` both, `[K, *batch]`.

    Differentiable in both. A row of weight zero counts nothing, also where an impossible value has an infinite term.

    >>> weighted_rows(torch.tensor([[0.5], [0.0]]), torch.tensor([[3.0], [torch.inf]]))
    tensor([1.5000])
    """
    return (weights * torch.where(weights != 0, terms, 0.0)).sum(0)
