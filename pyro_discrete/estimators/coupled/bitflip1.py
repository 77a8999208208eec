"""UGC: a flipped bit where DisARM's variance would explode, DisARM elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import logistic_like
from pyro_discrete.errors import SettingError, is_whole, shown
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.antithetic import antithetic_pair, disarm_weight, logits_of, over
from pyro_discrete.families import Family

__all__ = [
    "BitFlip1",
]


class BitFlip1(Estimator):
    r"""Unbiased gradient variance clipping: bitflip-1 for the bits near the boundary, DisARM for the others.

    .. math:: \begin{cases}
        |S|\,1[i = j]\,p_i (1 - p_i)\,(-1)^{b_i} \big(f(\mathrm{flip}_j b) - f(b)\big) & i \in S \\
        \tfrac12 (f(b) - f(b'))\,(-1)^{b'_i}\,1[b_i \ne b'_i]\,\sigma(|\phi_i|) & i \notin S \end{cases}

    S holds the bits of an event of D with min(p, 1 - p) < 1/(2 D), and j is drawn uniformly from S. DisARM's variance
    divided by p (1 - p) stays up there, bitflip-1's vanishes; where flipping a bit changes the cost by no more than
    flipping it and some others does, in the mean square, the combination is never noisier than `DisARM`. (For a cost
    that an antithetic pair happens to leave the same it can be.) The paper draws j among all D bits, which is unbiased
    as well and at least as noisy. Serves Bernoulli sites; three evaluations a particle (b, b' and the flipped b), but
    only two where a site has no event dims: then the flip is that of the one bit there is, and the gradient exact given
    everything else. Unbiased. A row with one bit flipped is no draw from q, so that the elements of a plate are judged
    one by one: where they share later terms (a local site that a global one depends on), each has rows of its own, the
    others held at b.

    - `max_rows`: the most evaluations a particle where a plate's elements share later terms; `SharedTermsError` beyond.

    Source: Kunes, Yin, Land, Haviv, Pe'er and Tavaré (2022), Gradient estimation for binary latent variables via
    gradient variance clipping.

    >>> from pyro_discrete import BitFlip1, TraceELBO
    >>> elbo = TraceELBO(BitFlip1())
    """

    name = "bitflip1"
    summary = "a flipped bit near the boundary, DisARM elsewhere (UGC)"
    reference = "Kunes et al. 2022"
    also_known: tuple[str, ...] = ("ugc", "unbiased_gradient_with_coupling")
    evaluations = "3 (2 for a single bit)"
    families: frozenset[Family] = frozenset({Family.BERNOULLI})
    separable = True

    def __init__(self, max_rows: int = 4096) -> None:
        super().__init__()
        if not is_whole(max_rows, 2):
            raise SettingError(
                f"BitFlip1: max_rows={shown(max_rows)} given, at least 2 expected (a draw and another value)."
            )
        self.max_rows = max_rows

    def rows(self, site: SiteView) -> int:
        return 2 if _bits(site.logits, site.event_dim) == 1 else 3

    def draw(self, site: SiteView) -> Draw:
        """Row 0 from q, its antithetic one unless there is one bit only, and row 0 with a bit of each event flipped."""
        logits = site.logits
        pair = antithetic_pair(logits, logistic_like(logits))
        boundary = _boundary(logits.detach(), site.event_dim)
        lead = logits.shape[: logits.dim() - site.event_dim]
        lot = torch.rand_like(logits, requires_grad=False).masked_fill(~boundary, -1.0).reshape(*lead, -1)
        chosen = lot.argmax(-1, keepdim=True) == torch.arange(lot.shape[-1], device=lot.device)
        flip = chosen.reshape(logits.shape) & boundary
        flipped = torch.where(flip, 1 - pair[0], pair[0])
        rows = [pair[0], flipped] if self.rows(site) == 2 else [pair[0], pair[1], flipped]
        return Draw(torch.stack(rows), logits=logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[3 or 2, K, *batch]`; the last row is the one with a flipped bit."""
        logits = logits_of(draw)
        phi, bits, flipped = logits.detach(), draw.value[0], draw.value[-1]
        boundary = _boundary(phi, draw.event_dim)
        size = boundary.reshape(*boundary.shape[: boundary.dim() - draw.event_dim], -1).sum(-1)
        jump = over(size * (cost[-1] - cost[0]), draw.event_dim)
        weight = jump * phi.sigmoid() * (-phi).sigmoid() * (flipped - bits)
        if len(draw.value) == 3:
            pair = over(cost[0] - cost[1], draw.event_dim) * disarm_weight(draw.value[:2], phi)
            weight = torch.where(boundary, weight, pair)
        return Surrogate(weight * logits)


def _bits(logits: Tensor, event_dim: int) -> int:
    """D, the number of bits in an event."""
    return logits.shape[logits.dim() - event_dim :].numel()


def _boundary(phi: Tensor, event_dim: int) -> Tensor:
    """Which bits bitflip-1 serves, of the shape of `phi`; a lone bit always."""
    bits = _bits(phi, event_dim)
    return (-phi.abs()).sigmoid() < 0.5 / bits if bits > 1 else torch.ones_like(phi, dtype=torch.bool)
