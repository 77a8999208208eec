"""CARMS: leave-one-out over several antithetic draws of each categorical variable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_discrete.draws.couplings import COPULAS, stick_breaking
from pyro_discrete.estimators.base import Draw, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import (
    SeveralDraws,
    ascending,
    categories_of,
    logits_of,
    over,
    value_of,
)
from pyro_discrete.families import Family

__all__ = [
    "CARMS",
]


class CARMS(SeveralDraws):
    r"""Categorical antithetic REINFORCE with several draws: leave-one-out, with importance weights for its pairs.

    .. math:: \frac{1}{n (n-1)} \sum_{i < j} \frac{q(z_i)\, q(z_j)}{P(z_i, z_j)}\,\big(f(z_i) - f(z_j)\big)\,
        \nabla \big(\log q(z_i) - \log q(z_j)\big)

    P is the joint probability of two of the n coupled draws. They are made by breaking a stick, least likely category
    first (so every piece is at most half of what is left, and P has no zeros that matter): piece k is broken off in
    draw i where u_ik < pi_k, with u_k from a Dirichlet copula over the draws. With two categories this is `ARMS`, with
    independent draws `RLOO`. Serves Categorical and OneHotCategorical sites with any event dims; n evaluations a
    particle, all downstream of the same values, unbiased.

    - `draws`: n, at least 2. `num_particles` multiplies it with independent repetitions.
    - `copula`: `"dirichlet"`, or `"independent"`, which is `RLOO` on rows that share what is upstream. The paper's
      couplings by inverse distribution functions and by Gumbel noise are not here.

    Raises `SettingError` for a setting out of range.

    Source: Dimitriev and Zhou (2021), CARMS: categorical-antithetic-REINFORCE multi-sample gradient estimator (with the
    stick-breaking coupling of the authors' code).

    >>> from pyro_discrete import CARMS, TraceELBO
    >>> elbo = TraceELBO(CARMS(draws=3))
    """

    name = "carms"
    summary = "leave-one-out over several antithetic draws of a categorical"
    reference = "Dimitriev & Zhou 2021b"
    evaluations = "n = 4 (`draws`)"
    families: frozenset[Family] = frozenset({Family.CATEGORICAL, Family.ONE_HOT})

    def draw(self, site: SiteView) -> Draw:
        """The draws `[n, K, *batch, *event]`."""
        logits = site.logits
        order, _ = ascending(logits)
        log_pieces = _log_pieces(logits, order)
        bits = COPULAS[self.copula].log_uniforms(self.draws, log_pieces) < log_pieces
        place = stick_breaking(logits.shape[-1]).category(bits.to(logits.dtype))
        categories = order.expand(self.draws, *order.shape).gather(-1, place.unsqueeze(-1)).squeeze(-1)
        return Draw(value_of(categories, site), logits=logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[n, K, *batch]`; `chosen` and `place` are `[n, K, *batch, *variables]`."""
        logits = logits_of(draw)
        chosen = categories_of(draw.value, logits).unsqueeze(-1)
        order, places = ascending(logits)
        place = places.expand(self.draws, *places.shape).gather(-1, chosen)
        ratio = self._ratio(_log_pieces(logits, order))
        cost = over(cost, place.dim() - 1 - cost.dim())
        log_q = logits.expand(self.draws, *logits.shape).gather(-1, chosen).squeeze(-1)  # its normaliser cancels
        loss = torch.zeros_like(log_q[0])
        for i in range(self.draws):
            for j in range(i):
                weight = ratio.gather(-1, torch.minimum(place[i], place[j])).squeeze(-1) * (
                    place[i] != place[j]
                ).squeeze(-1)
                loss = loss + weight * (cost[i] - cost[j]) * (log_q[i] - log_q[j])
        return Surrogate(loss / (self.draws * (self.draws - 1)))

    def _ratio(self, log_pieces: Tensor) -> Tensor:
        """q(z) q(z') / P(z, z') where the earlier one of z and z' is piece k `[..., C]`.

        Up to there neither draw broke off a piece, then one of them did; what the other does later is all the same.
        Two draws of the last piece are the same category, which no pair's term is about: the ratio there is unused.
        """
        piece = log_pieces.exp()
        together = COPULAS[self.copula].together(log_pieces, self.draws)  # P(both break it off) / pi
        neither = (1 - piece).square() / (1 - piece * (2 - together))
        one = (1 - piece) / (1 - together)
        certain = torch.ones(*piece.shape[:-1], 1, dtype=piece.dtype, device=piece.device)
        before = torch.cat([certain, neither.cumprod(-1)], -1)[..., :-1]
        return torch.cat([before * one, certain], -1)


def _log_pieces(logits: Tensor, order: Tensor) -> Tensor:
    """log pi `[..., C - 1]`: the piece's share of what is left of the stick, from the least likely category on."""
    phi = logits.detach().gather(-1, order)
    return logsigmoid(stick_breaking(phi.shape[-1]).logits(phi))
