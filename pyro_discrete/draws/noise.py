"""Noise that stands for a discrete value: a law that brings its own, and those of bits and of categories."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import (
    conditional_gumbel,
    conditional_logistic,
    gumbel_like,
    logistic_like,
    uniform_like,
)
from pyro_discrete.draws.soft_scores import bounded, mean
from pyro_discrete.draws.softening import one_hot_vector, soften, straight_through

__all__ = ["GumbelNoise", "LogisticNoise", "Perturbed", "hard_draw", "noise_of", "relaxed_draw"]


class Perturbed(ABC):
    """A discrete law with the noise behind its draws: what relaxed estimators ask of a site.

    Soft values and means are of vertices: bits, one-hot vectors, a structure's indicators. A hard value is its vertex
    too, unless the law is of integers, or of a structure as the program sees it. Noise is a location that the logits
    say plus free noise, so that its slope in the logits is the location's.

    - `logits`: of the law, which all else is differentiable in, with what is drawn held.
    - `one_hot`: whether a vertex is no bit. `separate`: whether it is bits or one-hot vectors, each independent of the
      others.
    """

    logits: Tensor
    one_hot: bool = True
    separate: bool = False

    @property
    @abstractmethod
    def possible(self) -> Tensor:
        """Which numbers of a vertex can be other than zero, in its shape."""

    @abstractmethod
    def perturb(self) -> Tensor:
        """Noise that stands for a value."""

    @abstractmethod
    def read(self, noise: Tensor) -> Tensor:
        """The value that noise stands for, without a slope."""

    @abstractmethod
    def perturb_given(self, value: Tensor) -> Tensor:
        """Noise given that it stands for this value, which may have more dims on the left."""

    @abstractmethod
    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """A soft vertex, which goes to that of `read(noise)` as the temperature falls."""

    @abstractmethod
    def mean(self, logits: Tensor | None = None) -> Tensor:
        """The mean of the vertex, at logits of the caller's or at its own."""

    @abstractmethod
    def vertex(self, value: Tensor) -> Tensor:
        """A value's vertex."""

    @abstractmethod
    def score(self, value: Tensor) -> Tensor:
        """The gradient of the log-mass in the logits, in their shape and detached."""

    def hard(self) -> Tensor:
        """A draw of the value."""
        with torch.no_grad():
            return self.read(self.perturb())

    def bounded(self, largest: float) -> Perturbed:
        """The same law with logits within `-largest` and `largest`, so that second derivatives are finite."""
        return self


class LogisticNoise(Perturbed):
    """Bits: one where logit plus logistic noise is positive. Everything has the shape of `logits`.

    >>> bits = LogisticNoise(torch.tensor([50.0, -50.0]))
    >>> z = bits.perturb()
    >>> bits.read(z), bits.soft(z, 0.5).round()
    (tensor([1., 0.]), tensor([1., 0.]))
    """

    one_hot: bool = False
    separate: bool = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def possible(self) -> Tensor:
        return self.logits.detach().sigmoid() > 0

    def perturb(self) -> Tensor:
        return bounded(self.logits) + logistic_like(self.logits)

    def read(self, noise: Tensor) -> Tensor:
        return (noise > 0).to(noise.dtype)

    def perturb_given(self, value: Tensor) -> Tensor:
        """Source: Tucker et al. (2017), REBAR, appendix C."""
        return conditional_logistic(bounded(self.logits), value, uniform_like(value))

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        return soften(noise, temperature, one_hot=False)

    def mean(self, logits: Tensor | None = None) -> Tensor:
        return mean(self.logits if logits is None else logits, one_hot=False)

    def vertex(self, value: Tensor) -> Tensor:
        return value

    def score(self, value: Tensor) -> Tensor:
        """Of full precision also where a probability is next to one."""
        logits = self.logits.detach()
        return torch.where(value > 0.5, (-logits).sigmoid(), -logits.sigmoid())

    def bounded(self, largest: float) -> LogisticNoise:
        return LogisticNoise(self.logits.clamp(-largest, largest))


class GumbelNoise(Perturbed):
    """Categories: the one whose logit plus Gumbel noise is largest, `[..., categories]`.

    `integers`: whether a value is its index `[...]` instead of a one-hot vector.

    >>> categories = GumbelNoise(torch.tensor([50.0, -50.0, 0.0]))
    >>> categories.read(categories.perturb())
    tensor([1., 0., 0.])
    >>> given = categories.perturb_given(torch.tensor([0.0, 1.0, 0.0]))
    >>> categories.read(given)
    tensor([0., 1., 0.])
    """

    separate = True

    def __init__(self, logits: Tensor, integers: bool = False) -> None:
        self.logits: Tensor = logits
        self.integers: bool = integers

    @property
    def possible(self) -> Tensor:
        return self.logits.detach().softmax(-1) > 0

    def perturb(self) -> Tensor:
        return bounded(self.logits) + gumbel_like(self.logits)

    def read(self, noise: Tensor) -> Tensor:
        index = noise.argmax(-1)
        return index if self.integers else one_hot_vector(index, noise)

    def perturb_given(self, value: Tensor) -> Tensor:
        """Source: Maddison, Tarlow and Minka (2014), A* sampling; Tucker et al. (2017), REBAR, appendix B."""
        hard = self.vertex(value)
        return conditional_gumbel(bounded(self.logits).expand_as(hard), hard)

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        return soften(noise, temperature, one_hot=True)

    def mean(self, logits: Tensor | None = None) -> Tensor:
        return mean(self.logits if logits is None else logits, one_hot=True)

    def vertex(self, value: Tensor) -> Tensor:
        return one_hot_vector(value, self.logits) if self.integers else value

    def score(self, value: Tensor) -> Tensor:
        """Of full precision also where a probability is next to one."""
        hot, probabilities = self.vertex(value) > 0.5, self.mean().detach()
        others = (probabilities * ~hot).sum(-1, keepdim=True)  # one less the drawn value's probability
        return torch.where(hot, others, -probabilities)

    def bounded(self, largest: float) -> GumbelNoise:
        return GumbelNoise(self.logits.clamp(-largest, largest).log_softmax(-1), self.integers)


def noise_of(logits: Tensor, *, one_hot: bool) -> Perturbed:
    """The noise of categories `[..., categories]`, or of bits `[...]`."""
    return GumbelNoise(logits) if one_hot else LogisticNoise(logits)


def relaxed_draw(law: Perturbed, temperature: Tensor | float, *, hard: bool = False) -> Tensor:
    """A relaxed draw's vertex; with `hard`, hard in the forward pass and soft in the backward pass."""
    noise = law.perturb()
    soft = law.soft(noise, temperature)
    return straight_through(law.vertex(law.read(noise)), soft) if hard else soft


def hard_draw(logits: Tensor, *, one_hot: bool) -> Tensor:
    """A draw of bits or of one-hot vectors, in the shape of `logits` and without a gradient."""
    return noise_of(logits, one_hot=one_hot).hard()
