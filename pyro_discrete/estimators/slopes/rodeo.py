"""RODEO: leave-one-out, with control variates that a discrete Stein operator makes of the other particles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_discrete.control_variates.leave_one_out import leave_one_out
from pyro_discrete.control_variates.moments import second_moment
from pyro_discrete.errors import SettingError, is_whole
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import Family

__all__ = [
    "RODEO",
]

ELEMENTS = 2**17
"""Of the network's hidden values that are computed at once: as many as a processor's cache holds."""


class RODEO(Estimator):
    r"""REINFORCE leave-one-out with control variates of mean zero by a discrete Stein operator.

    .. math:: \frac1K \sum_k \Big(f_k - \frac1{K-1} \sum_{j \ne k} \big(f_j + \alpha (A h_j)(z_j)\big)\Big)
              \nabla \log q(z_k) + \beta\, (A\, \tilde h_k \nabla \log q)(z_k)

    with the operator of a Gibbs step, :math:`(A h)(z) = \frac1D \sum_i q(\bar z_i | z_{-i}) (h(z^{(i)}) - h(z))`, where
    :math:`z^{(i)}` is z with bit i turned around: its mean under q is zero for every h. For particle k,

    .. math:: (h_k, \tilde h_k)(y) = \frac1{K-1} \sum_{j \ne k} H_\rho\big(f(z_j), \nabla f(z_j)^\top (y - z_j)\big)

    with H a network of one hidden layer. One evaluation a particle, one more backward pass, and a network of K (K - 1)
    D inputs for each element; the model's cost has to be differentiable in the value. Unbiased whatever `alpha`,
    `beta` and H are; `rloo` at zero, where both start. Serves Bernoulli sites, with `num_particles >= 2`. Of little use
    before it is trained, or where the gradient at a corner says little about its neighbours.

    - `alpha`, `beta`: where they start. With the network they are trained (by the caller's optimiser) on the second
      moment of the gradient with respect to the logits, averaged over particles; `learn=False` keeps them.
    - `hidden`: number of hidden units.

    Raises `SettingError` for a setting out of range.

    Source: Shi, Zhou, Hwang, Titsias and Mackey (2022), Gradient estimation with discrete Stein operators.

    >>> from pyro_discrete import RODEO, TraceELBO
    >>> elbo = TraceELBO(RODEO(), num_particles=3)
    """

    name = "rodeo"
    summary = "leave-one-out, and learned control variates by a discrete Stein operator"
    reference = "Shi et al. 2022"
    also_known: tuple[str, ...] = ("stein",)
    evaluations = "1 a particle, 2 or more particles"
    families: frozenset[Family] = frozenset({Family.BERNOULLI})
    sloped: tuple[int, ...] = (0,)
    min_particles = 2
    auxiliary_adds_up = True

    def __init__(self, alpha: float = 0.0, beta: float = 0.0, learn: bool = True, *, hidden: int = 100) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise SettingError(f"RODEO: alpha={alpha}, beta={beta} given, finite numbers expected (0 is rloo).")
        if not is_whole(hidden):
            raise SettingError(f"RODEO: hidden={hidden!r} given, at least one hidden unit expected.")
        generator = torch.Generator().manual_seed(0)  # every site's network starts alike, whatever was drawn before

        def start(*shape: int, inputs: int) -> nn.Parameter:
            uniform = 2 * torch.rand(shape, generator=generator) - 1
            return nn.Parameter(uniform / math.sqrt(inputs), requires_grad=learn)

        self.alpha: nn.Parameter = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learn)
        self.beta: nn.Parameter = nn.Parameter(torch.tensor(float(beta)), requires_grad=learn)
        self.inner: nn.Parameter = start(hidden, 2, inputs=2)
        self.inner_bias: nn.Parameter = start(hidden, inputs=2)
        self.outer: nn.Parameter = start(2, hidden, inputs=hidden)
        self.outer_bias: nn.Parameter = start(2, inputs=hidden)
        self.learn = learn

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(alpha=0.6, beta=-0.4, learn=False, hidden=10)]

    def draw(self, site: SiteView) -> Draw:
        """A hard draw."""
        return Draw(site.sample().unsqueeze(0), logits=site.logits)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`; the slope of row 0 is that of the particle's total cost."""
        if draw.logits is None:
            raise RuntimeError("a draw of RODEO hands on its logits")
        f, bits = cost[0] / draw.scale, (*cost.shape[1:], -1)  # values [K, *batch, D] from here on
        logits = draw.logits.reshape(bits)
        z, gradient = draw.value[0].detach().reshape(bits), draw.slopes[0].detach().reshape(bits) / draw.scale
        turn = 1 - 2 * z
        chance = (turn * logits.detach()).sigmoid()  # that a Gibbs step turns the bit around
        score = z - logits.detach().sigmoid()
        here, turned = self._averaged(f, gradient, z, turn)
        change = (chance.unsqueeze(-1) * (turned - here)).mean(-2)  # A h, A h~ `[K, *batch, 2]`
        plain, correction = f - leave_one_out(f), -leave_one_out(change[..., 0])
        # h~ times the score: turning bit i around also turns component i of the score
        stein = score * change[..., 1:] + chance * turned[..., 1] * turn / z.shape[-1]
        alpha, beta = self.alpha.to(f), self.beta.to(f)
        signal, given = plain + alpha * correction, beta * stein
        loss = draw.score * signal.detach() + (given.detach() * logits).sum(-1)
        if not self.learn:
            return Surrogate(loss * draw.scale)
        estimate = (signal.unsqueeze(-1) * score + given).mean(0)
        return Surrogate(loss * draw.scale, second_moment(estimate, self.parameters()))

    def _averaged(self, f: Tensor, gradient: Tensor, z: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """The two functions of each particle at its value `[K, *batch, 1, 2]`, and with each bit turned around."""
        particles, places = len(f), torch.arange(len(f), device=f.device)
        here, turned = 0.0, 0.0
        at_once = max(1, ELEMENTS // (z.numel() * len(self.inner)))
        for first in range(1, particles, at_once):  # particle k meets particle k + step, for some steps at once
            steps = torch.arange(first, min(first + at_once, particles), device=f.device)
            met = (places + steps.unsqueeze(-1)) % particles  # [steps, K]
            other, slope = f[met].unsqueeze(-1), gradient[met]
            along = (slope * (z - z[met])).sum(-1, keepdim=True)
            here = here + self._network(other, along).sum(0)
            turned = turned + self._network(other.expand_as(slope), along + slope * turn).sum(0)
        return torch.as_tensor(here) / (particles - 1), torch.as_tensor(turned) / (particles - 1)

    def _network(self, value: Tensor, along: Tensor) -> Tensor:
        """H of a cost and of the linear step from it, each `[...]`: `[..., 2]`."""
        hidden = F.linear(torch.stack([value, along], -1), self.inner.to(value), self.inner_bias.to(value))
        return F.linear(F.leaky_relu(hidden, 0.3), self.outer.to(value), self.outer_bias.to(value))
