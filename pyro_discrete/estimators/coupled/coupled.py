"""DisARM for categorical variables, which are factorised into binary ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.couplings import FACTORISATIONS
from pyro_discrete.draws.gumbel import logistic_like
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import (
    antithetic_pair,
    ascending,
    categories_of,
    disarm_weight,
    logits_of,
    over,
    value_of,
)
from pyro_discrete.families import Family

__all__ = [
    "Coupled",
]


class Coupled(Estimator):
    r"""DisARM-SB and DisARM-Tree: the cost's difference over an antithetic pair of a categorical's binary decisions.

    A category is reached by binary decisions b_k with logits alpha_k(phi): breaking a stick, or going down a balanced
    tree. The pair z, z' has antithetic noise in each of them. The gradient on alpha_k is

    .. math:: \tfrac12 \big(f(z) - f(z')\big) \cdot \begin{cases}
        (-1)^{b'_k}\,1[b_k \ne b'_k]\,\sigma(|\alpha_k|) & k \text{ on the way to both} \\
        b_k - \sigma(\alpha_k) & \text{to } z \text{ alone} \\
        -(b'_k - \sigma(\alpha_k)) & \text{to } z' \text{ alone} \\
        0 & \text{to neither} \end{cases}

    that is, DisARM with the decisions that a draw does not depend on integrated out. Serves Categorical and
    OneHotCategorical sites with any event dims; two evaluations a particle (and a table of C (C - 1) for each variable
    with C categories), unbiased. With two categories it is `DisARM`.

    - `factorisation`: `"stick_breaking"`, least likely category first, or `"tree"`, in the order of the categories.

    Raises `SettingError` for an unknown factorisation.

    Source: Dong, Mnih and Tucker (2021), Coupled gradient estimators for discrete latent variables.

    >>> from pyro_discrete import Coupled, TraceELBO
    >>> elbo = TraceELBO(Coupled(factorisation="tree"))
    """

    name = "coupled"
    summary = "DisARM on a stick-breaking or tree factorisation of a categorical"
    reference = "Dong, Mnih & Tucker 2021"
    also_known: tuple[str, ...] = ("disarm_tree", "disarm_sb", "stick_breaking")
    evaluations = "2"
    families: frozenset[Family] = frozenset({Family.CATEGORICAL, Family.ONE_HOT})

    def __init__(self, factorisation: str = "stick_breaking") -> None:
        super().__init__()
        if factorisation not in FACTORISATIONS:
            known = ", ".join(map(repr, FACTORISATIONS))
            raise SettingError(f"Coupled: factorisation={factorisation!r} given, one of {known} expected.")
        self.factorisation = factorisation

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(factorisation="tree")]

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        """The pair `[2, K, *batch, *event]`."""
        logits = site.logits
        order, _ = self._order(logits)
        tree = FACTORISATIONS[self.factorisation](logits.shape[-1])
        alpha = tree.logits(logits.detach().gather(-1, order))
        place = tree.category(antithetic_pair(alpha, logistic_like(alpha)))
        categories = order.expand(2, *order.shape).gather(-1, place.unsqueeze(-1)).squeeze(-1)
        return Draw(value_of(categories, site), logits=logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[2, K, *batch]`; the decisions are `[K, *batch, *variables, C - 1]`."""
        logits = logits_of(draw)
        order, places = self._order(logits)
        tree = FACTORISATIONS[self.factorisation](logits.shape[-1])
        alpha = tree.logits(logits.gather(-1, order))
        chosen = categories_of(draw.value, logits).unsqueeze(-1)
        place = places.expand(2, *places.shape).gather(-1, chosen).squeeze(-1)
        (live, bit), phi = tree.path(place), alpha.detach()
        bits = bit.to(phi.dtype)
        # b - sigma(alpha), without the difference
        alone = 0.5 * torch.where(bit, (-phi).sigmoid(), -phi.sigmoid())
        weight = torch.where(live[0] & live[1], disarm_weight(bits, phi), live[0] * alone[0] - live[1] * alone[1])
        difference = over(cost[0] - cost[1], alpha.dim() - cost[0].dim())
        return Surrogate(difference * weight * alpha)

    def _order(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The order in which the categories are put, and each one's place in it."""
        if self.factorisation == "stick_breaking":
            return ascending(logits)
        same = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape)
        return same, same
