"""Double control variates: leave-one-out, sharpened by the other particles' gradients of the cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_discrete.control_variates.leave_one_out import leave_one_out
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import RELAXABLE, Family, Need

__all__ = [
    "DoubleCV",
]


class DoubleCV(Estimator):
    r"""REINFORCE leave-one-out on a cost whose linear part, as the other particles see it, is taken out.

    .. math:: \frac1K \sum_k \Big(h_k - \frac1{K-1} \sum_{j \ne k} h_j\Big) \nabla \log q(z_k)
              - \alpha\, g_{-k}^\top \nabla \mu_k, \qquad h_k = f(z_k) + \alpha\, g_{-k}^\top (z_k - \mu_k)

    with `mu` the mean of q and `g_{-k}` the mean over the other particles of the gradient of their cost at their hard
    value. Where particles share `mu`, as in a program of one layer, the last term is the published `alpha g mu (1 -
    mu)`. One evaluation a particle and one more backward pass; the model's cost has to be differentiable in the value
    (where it is not, it is `rloo`), but is never evaluated at soft values. Unbiased whatever `alpha` is; at zero it is
    `rloo`, at minus one exact for a linear `f`. Serves Bernoulli, Categorical and OneHotCategorical sites, and
    structures with marginals, with `num_particles >= 2`. Helps little where the gradient at a corner says little about
    the difference between corners.

    - `alpha`: where it starts. It is trained (by the caller's optimiser) on the second moment of the gradient with
      respect to the logits, averaged over particles; `learn=False` keeps it.

    Raises `SettingError` if `alpha` is not finite.

    Source: Titsias and Shi (2022), Double control variates for gradient estimation in discrete latent variable models.

    >>> from pyro_discrete import DoubleCV, TraceELBO
    >>> elbo = TraceELBO(DoubleCV(alpha=-1.0), num_particles=4)
    """

    name = "double_cv"
    summary = "leave-one-out, and the other particles' gradients as a second control variate"
    reference = "Titsias & Shi 2022"
    also_known: tuple[str, ...] = ("double_control_variates", "dcv")
    evaluations = "1 a particle, 2 or more particles"
    families: frozenset[Family] = RELAXABLE | {Family.STRUCTURE}
    needs: frozenset[Need] = frozenset({Need.MARGINALS, Need.LOG_MASS})
    sloped: tuple[int, ...] = (0,)
    min_particles = 2
    auxiliary_adds_up = True

    def __init__(self, alpha: float = 0.0, learn: bool = True) -> None:
        super().__init__()
        if not -float("inf") < alpha < float("inf"):
            raise SettingError(f"DoubleCV: alpha={alpha} given, a finite number expected (-1 removes a linear cost).")
        self.alpha: nn.Parameter = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learn)

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(alpha=-0.8, learn=False)]

    def draw(self, site: SiteView) -> Draw:
        """A hard draw, the mean, and where that can be other than zero; to train alpha, the draw's score."""
        value = site.sample()
        extra = {"mean": site.mean(), "possible": site.possible}
        if self.alpha.requires_grad:
            extra["score"] = site.score(value)
        return Draw(value.unsqueeze(0), logits=site.logits, extra=extra)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`; the slope of row 0 is that of the particle's total cost."""
        alpha, mu = self.alpha.to(cost), draw.extra["mean"]
        centred = (draw.value[0] - mu).detach()
        slope = draw.slopes[0].detach()
        others = leave_one_out(torch.where(draw.extra["possible"], slope, 0.0))  # elsewhere it may be minus infinity
        linear = _over_event(others * centred, cost[0])
        plain, corrected = cost[0] - leave_one_out(cost[0]), linear - leave_one_out(linear)
        signal = (plain + alpha * corrected).detach()
        loss = draw.score * signal - alpha.detach() * _over_event(others * mu, cost[0])
        if not self.alpha.requires_grad:
            return Surrogate(loss)
        score = draw.extra["score"]
        over = cost.shape[1:] + (1,) * (score.dim() - cost.dim() + 1)
        rloo = (plain.reshape(over) * score).mean(0) / draw.scale
        correction = (corrected.reshape(over) * score - _through_mean(draw, others)).mean(0) / draw.scale
        return Surrogate(loss, (rloo + alpha * correction).square().sum())


def _over_event(values: Tensor, like: Tensor) -> Tensor:
    """`[K, *batch, *event]` summed over the event, in the shape of `like` `[K, *batch]`."""
    return values.reshape(*like.shape, -1).sum(-1)


def _through_mean(draw: ScoredDraw, slope: Tensor) -> Tensor:
    """A slope in the mean as one in the logits: for a bit `mu (1 - mu) g`, for categories `mu (g - mu g)`, ..."""
    found, done = [], 0
    for part in draw.parts or (draw,):  # each run has a graph of its own
        mu, logits = part.extra["mean"], part.logits
        own = slope[done : done + len(mu)]
        done += len(mu)
        if logits is None or not mu.requires_grad:
            found.append(torch.zeros_like(part.extra["score"]))
        else:
            found.append(torch.autograd.grad(mu, logits, own, retain_graph=True)[0])
    return torch.cat(found)
