"""What the programs here share: the interface that training uses, the settings that they read, dense networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.errors import ConfigError

__all__ = ["LatentClasses", "Program", "Settings", "dense", "logits_of_means"]


class Settings(Protocol):
    """What a program reads of the settings of a run (`RunConfig`, which says what each is) when it is made."""

    @property
    def latents(self) -> int: ...

    @property
    def categories(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def hidden(self) -> tuple[int, ...]: ...

    @property
    def prior(self) -> str: ...

    @property
    def guide(self) -> str: ...

    @property
    def degrees(self) -> str: ...

    @property
    def seed(self) -> int: ...


class Program(nn.Module, ABC):
    """A model of data and its guide: a Pyro program that knows nothing of gradient estimators.

    Both read a batch `[batch, ...]` and have one plate over it, "data", and `plates_inside` it; what is observed are
    the sites "x" or "x_0", "x_1" ... They compute on the last dims alone, so that sites may have rows and particles to
    the left of the batch.
    Parameters under `encoder` are the guide's, all others the model's.

    - `summary`: a line on it. `reads`: the kind of data; `data`: the set taken if none is named.
    - `defaults`: the settings of a run that it has of its own, with their defaults.
    - `size`: that of its latents for titles, with the settings' names in braces.
    - `plates_inside`: how many plates the data's has inside it, each a dim right of the batch.
    - `sums`: whether the guide leaves discrete sites to the model, beside others that it draws.
    - `finds`: whether its latents are something to be found, which is judged and drawn after training.
    """

    summary: ClassVar[str]
    reads: ClassVar[type[Dataset]]
    data: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    size: ClassVar[str] = "{latents} latents"
    plates_inside: ClassVar[int] = 0
    sums: bool = False
    finds: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def of(cls, config: Settings, data: Dataset) -> Program:
        """The program with the config's settings and fresh parameters, which may start from the training data."""

    @abstractmethod
    def model(self, x: Tensor) -> Any:
        """Prior over the latents and likelihood of `x` `[batch, ...]`."""

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """Posterior over the latents given `x` `[batch, ...]`."""

    def values(self, x: Tensor) -> int:
        """About how many numbers a run computes for one element of `x`: evaluation takes as many as memory bears."""
        return x[0].numel()


class LatentClasses(Program):
    """A program whose latents are so few, or so chained, that they can be summed: `log p(x)` and classes are exact.

    - `marginal`: whether the guide leaves the latents out, so that estimators sum them inside the model: the objective
      is `log p(x)` itself, whose maximum EM seeks. If not, the guide's `encoder` reads the data.
    """

    marginal: bool
    size = "{categories} classes"
    finds = True
    GUIDES: ClassVar[Mapping[str, str]] = {
        "amortised": "a network reads the data and gives the latents' logits",
        "marginal": "the latents are left out of the guide and summed in the model",
    }

    def __init__(self, guide: str) -> None:
        super().__init__()
        if guide not in self.GUIDES:
            raise ConfigError(f"Unknown guide {guide!r}; expected {' or '.join(self.GUIDES)}.")
        self.marginal = guide == "marginal"


def dense(sizes: Sequence[int], output_bias: Tensor | None = None) -> nn.Sequential:
    """Linear layers from `sizes[0]` to `sizes[-1]`, with LeakyReLU(0.3) between them; linear if there are two sizes.

    `output_bias` `[sizes[-1]]` starts the last layer's bias.
    """
    layers: list[nn.Module] = []
    for below, above in pairwise(sizes):
        layers += [nn.Linear(below, above), nn.LeakyReLU(0.3)]
    last = layers[-2]
    if output_bias is not None:
        with torch.no_grad():
            last.bias.copy_(output_bias)  # type: ignore[operator,union-attr]
    return nn.Sequential(*layers[:-1])


def logits_of_means(means: Tensor) -> Tensor:
    """Logits of the mean pixels, kept finite where a pixel is always 0 or always 1."""
    return torch.logit(means.clamp(0.001, 0.999))
