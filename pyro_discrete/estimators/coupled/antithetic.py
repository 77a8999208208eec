"""What the estimators of coupled draws share: the pair of draws, DisARM's weight of their costs, several draws."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.couplings import COPULAS
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError, is_whole
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.families import Family

__all__ = [
    "SeveralDraws",
    "antithetic_pair",
    "ascending",
    "categories_of",
    "disarm_weight",
    "logits_of",
    "over",
    "value_of",
]


class SeveralDraws(Estimator):
    """What ARMS and CARMS share: n draws of a site as rows, coupled by a copula.

    - `draws`: n, at least 2. `copula`: a name of `COPULAS`. Raises `SettingError` for a setting out of range.
    """

    def __init__(self, draws: int = 4, copula: str = "dirichlet") -> None:
        super().__init__()
        name = type(self).__name__
        if not is_whole(draws, 2):
            raise SettingError(f"{name}: draws={draws!r} given, at least 2 expected: each is compared with the others.")
        if copula not in COPULAS:
            raise SettingError(f"{name}: copula={copula!r} given, one of {', '.join(map(repr, COPULAS))} expected.")
        self.draws: int = draws
        self.copula: str = copula

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(draws=2), cls(draws=3, copula="independent")]

    def rows(self, site: SiteView) -> int:
        return self.draws


def antithetic_pair(logits: Tensor, noise: Tensor) -> Tensor:
    """b = 1[phi + e > 0] and b' = 1[phi - e > 0] `[2, *logits.shape]`: both are draws from q, as unlike as can be."""
    phi = logits.detach()
    return torch.stack([phi + noise > 0, phi - noise > 0]).to(phi.dtype)


def disarm_weight(pair: Tensor, phi: Tensor) -> Tensor:
    r""":math:`\tfrac12 (-1)^{b'}\,1[b \ne b']\,\sigma(|\phi|)`, what DisARM multiplies the pair's difference with."""
    return 0.5 * (pair[0] - pair[1]) * phi.abs().sigmoid()


def over(signal: Tensor, event_dim: int) -> Tensor:
    """`[..., *batch]` as `[..., *batch, *ones]`, to stand beside values with that many event dims."""
    return signal.reshape(signal.shape + (1,) * event_dim)


def logits_of(draw: Draw) -> Tensor:
    """The draw's logits, which the estimator's `draw` has handed on."""
    if draw.logits is None:
        raise RuntimeError("a draw without logits: `draw` has to hand them on, as Draw(value, logits=site.logits)")
    return draw.logits


def value_of(categories: Tensor, site: SiteView) -> Tensor:
    """Integers `[rows, K, *batch, *variables]` as values of the site: one-hot vectors where it has those."""
    if site.family is not Family.ONE_HOT:
        return categories
    return one_hot_vector(categories, site.logits)


def categories_of(value: Tensor, logits: Tensor) -> Tensor:
    """The inverse of `value_of`, for the site's logits `[K, *batch, *variables, C]`."""
    return value.argmax(-1) if value.dim() > logits.dim() else value.long()


def ascending(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The categories from the least likely on, and each category's place in that order; both like `logits`."""
    order = logits.detach().argsort(dim=-1, stable=True)
    return order, order.argsort(dim=-1)
