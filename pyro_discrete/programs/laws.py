"""The law that a site's distribution is to relaxed estimators: its noise, soft values and means, and what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, constraints

from pyro_discrete.distributions.structure import LARGEST_SUPPORT, Structure
from pyro_discrete.draws.noise import GumbelNoise, LogisticNoise, Perturbed
from pyro_discrete.families import Need

__all__ = ["StructureLaw", "Vertices", "law_of", "needs_met", "parameter_dims", "structure_of"]


class Vertices(TorchDistribution):
    """The distribution of a structure's vertex `[*batch, *vertex]`: what estimators of soft values draw and score."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, structure: Structure) -> None:
        self.structure: Structure = structure
        self.logits: Tensor = structure.logits
        super().__init__(structure.batch_shape, structure.vertex_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Vertices:
        return Vertices(self.structure.expand(torch.Size(batch_shape)))

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.unit_interval, len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.structure.vertex(self.structure.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Of vertices, and of what is between them where the structure has a log-mass there."""
        if self.structure.defines("log_mass"):
            return self.structure.log_mass(value)
        return self.structure.log_prob(self.structure.value_of(value))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.structure.vertex(self.structure.enumerate_support(expand))


class StructureLaw(Perturbed):
    """A structure at a site's own logits. `vertices`: whether a value is its vertex."""

    def __init__(self, structure: Structure, logits: Tensor, vertices: bool) -> None:
        self.structure: Structure = structure.like(logits)
        self.logits: Tensor = logits
        self.vertices: bool = vertices
        self._noise: Tensor | None = None
        self._drawn: Tensor | None = None

    @property
    def drawn(self) -> Tensor | None:
        """The value behind what was drawn last: the hard draw, or what the noise stands for; None before any."""
        if self._drawn is None and self._noise is not None:
            return self.read(self._noise)
        return self._drawn

    @property
    def possible(self) -> Tensor:
        return self.structure.possible

    def perturb(self) -> Tensor:
        self._noise = self.structure.perturb()
        return self._noise

    def read(self, noise: Tensor) -> Tensor:
        value = self.structure.read(noise.detach())
        self._drawn = self.structure.vertex(value) if self.vertices else value
        return self._drawn

    def perturb_given(self, value: Tensor) -> Tensor:
        return self.structure.perturb_given(self.structure.value_of(value) if self.vertices else value)

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        return self.structure.soft(noise, temperature)

    def mean(self, logits: Tensor | None = None) -> Tensor:
        return (self.structure if logits is None else self.structure.like(logits)).marginals()

    def vertex(self, value: Tensor) -> Tensor:
        return value if self.vertices else self.structure.vertex(value)

    def score(self, value: Tensor) -> Tensor:
        with torch.enable_grad():
            at = self.structure.like(self.logits.detach().requires_grad_())
            log_q = at.log_prob(self.structure.value_of(value) if self.vertices else value)
            return torch.autograd.grad(log_q.sum(), at.logits)[0]

    def hard(self) -> Tensor:
        """An exact draw, which costs less than noise for all that might be asked."""
        value = self.structure.sample()
        self._drawn = self.structure.vertex(value) if self.vertices else value
        return self._drawn


def structure_of(base: Any) -> Structure | None:
    """The structure that a distribution is, or whose vertices it draws."""
    if isinstance(base, Vertices):
        return base.structure
    return base if isinstance(base, Structure) else None


def parameter_dims(base: Any) -> int:
    """How many last dims of a distribution's logits are one law's."""
    structure = structure_of(base)
    if structure is not None:
        return structure.param_dim
    return 1 if isinstance(base, Categorical) else len(base.event_shape)


def needs_met(base: Any, cardinality: float) -> frozenset[Need]:
    """What a distribution with so many values can do; everything at one that is no structure."""
    structure = structure_of(base)
    if structure is None:
        return frozenset(Need)
    defines = structure.defines
    defined = {
        Need.NOISE: defines("perturb", "read", "soft"),
        Need.NOISE_GIVEN: defines("perturb_given"),
        Need.MARGINALS: defines("marginals"),
        Need.LOG_MASS: defines("log_mass"),
        Need.SUPPORT: cardinality <= LARGEST_SUPPORT and (defines("_support_list") or defines("enumerate_support")),
    }
    return frozenset(need for need, is_met in defined.items() if is_met)


def law_of(base: Any, logits: Tensor) -> Perturbed:
    """The law of a Bernoulli, a Categorical, a OneHotCategorical or a structure, at logits of the same kind."""
    structure = structure_of(base)
    if structure is not None:
        return StructureLaw(structure, logits, isinstance(base, Vertices))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a network's may be of less precision
    return LogisticNoise(logits) if isinstance(base, Bernoulli) else GumbelNoise(logits, isinstance(base, Categorical))
