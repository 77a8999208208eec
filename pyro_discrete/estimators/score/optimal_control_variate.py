"""The score function with control variates of known mean, each with its optimal coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_discrete.control_variates.optimal_coefficient import OptimalCoefficient, least_variance
from pyro_discrete.draws.soft_scores import mean
from pyro_discrete.errors import SettingError, SiteShapeError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.families import RELAXABLE, Family, Need

__all__ = [
    "ControlVariate",
    "OptimalControlVariate",
]


@dataclass(frozen=True)
class ControlVariate:
    """A function of a site's value whose mean is known, one number for each logit.

    - `h(value, logits)`: of value `[K, *batch, *event]` and logits `[K, *batch, *event]` (a Categorical's with one more
      dim, for the categories); returns what broadcasts to the shape of `logits`. Both arrive detached.
    - `mean(logits)`: the mean of h under q, in the same shape. If it is wrong, so is the gradient.
    """

    h: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]


class OptimalControlVariate(Estimator):
    r"""The score function plus control variates of known mean, their coefficients estimated on other draws.

    .. math:: f(z)\, s + \sum_i a_i\, (h_i(z) - E[h_i]), \qquad s = \nabla \log q(z), \qquad
        a^* = -\mathrm{Var}(h)^{-1}\,\mathrm{Cov}(h,\, f s)

    With the best coefficient a control variate whose correlation with `f s` is rho leaves 1 - rho^2 of the variance;
    several are added together and solved for jointly. By default the score itself is one of them, which gives each
    logit its optimal constant baseline. Serves Bernoulli, Categorical and OneHotCategorical sites, and structures with
    marginals, with one evaluation a particle; h is not evaluated in the model. The mean stays exact whatever the
    coefficients are, as they are independent of the draws that they multiply: early on, with few draws behind them,
    they may be poor.

    - `variates`: each a `ControlVariate`, in the gradient's space (one number for each logit).
    - `score`: whether the score is a control variate, too.
    - `per`: `"element"` for coefficients of each element of the event (for a bit: of each logit; the categories of an
      element share theirs, and so do all logits of a structure), `"site"` for one of all. Elements of a plate always
      share theirs.
    - `estimate`: `"running"` for averages over the steps before, `"particles"` for the other particles of this step
      (then `num_particles >= 2`).
    - `decay` of the running averages, in (0, 1).

    Raises `SettingError` for a setting out of range, `SiteShapeError` if an h or a mean does not fit the logits.

    Source: Paisley, Blei and Jordan (2012), Variational Bayesian inference with stochastic search; Ranganath, Gerrish
    and Blei (2014), Black box variational inference; for several together Geffner and Domke (2018), Using large
    ensembles of control variates for variational inference.

    >>> from pyro_discrete import ControlVariate, OptimalControlVariate, TraceELBO
    >>> def mean(logits):  # of each bit times the number of ones
    ...     p = logits.sigmoid()
    ...     return p * (1 - p + p.sum(-1, keepdim=True))
    >>> bits = ControlVariate(h=lambda z, logits: z * z.sum(-1, keepdim=True), mean=mean)
    >>> elbo = TraceELBO({"z": OptimalControlVariate(bits)})
    """

    name = "optimal_control_variate"
    summary = "score function, control variates of known mean with estimated optimal coefficients"
    reference = "Paisley et al. 2012; Ranganath et al. 2014; Geffner & Domke 2018"
    also_known: tuple[str, ...] = ("ocv", "control_variate")
    families: frozenset[Family] = RELAXABLE | {Family.STRUCTURE}
    needs: frozenset[Need] = frozenset({Need.MARGINALS})

    def __init__(
        self,
        *variates: ControlVariate,
        score: bool = True,
        per: Literal["element", "site"] = "element",
        estimate: Literal["running", "particles"] = "running",
        decay: float = 0.9,
    ) -> None:
        super().__init__()
        if not variates and not score:
            raise SettingError("OptimalControlVariate: score=False without a control variate given: pass at least one.")
        if not all(isinstance(v, ControlVariate) for v in variates):
            raise SettingError(f"OptimalControlVariate: variates={variates} given, each a ControlVariate expected.")
        if per not in ("element", "site"):
            raise SettingError(f"OptimalControlVariate: per={per!r} given, 'element' or 'site' expected.")
        if estimate not in ("running", "particles"):
            raise SettingError(
                f"OptimalControlVariate: estimate={estimate!r} given, 'running' or 'particles' expected."
            )
        if not 0 < decay < 1:
            raise SettingError(f"OptimalControlVariate: decay={decay} given, a number between 0 and 1 expected.")
        self.control_variates: tuple[ControlVariate, ...] = variates
        self.use_score: bool = score
        self.per = per
        self.estimate = estimate
        self.min_particles = 2 if estimate == "particles" else 1
        self.averages: OptimalCoefficient = OptimalCoefficient(decay)

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(decay=0.5, per="site"), cls(estimate="particles")]

    def extra_repr(self) -> str:
        return f"{len(self.control_variates) + self.use_score} variates, per={self.per!r}, estimate={self.estimate!r}"

    def draw(self, site: SiteView) -> Draw:
        """An ordinary draw; hands on its score `[K, *batch, elements, pooled]`, and h less its mean: m of these."""
        value, logits = site.sample(), site.logits
        fixed = logits.detach()
        score = site.score(value)
        centred = [score] if self.use_score else []
        for variate in self.control_variates:
            h, mean_h = (torch.as_tensor(part).to(fixed) for part in (variate.h(value, fixed), variate.mean(fixed)))
            for what, part in (("h", h), ("the mean of h", mean_h)):
                if not _broadcasts(part, fixed):
                    raise SiteShapeError(
                        f"OptimalControlVariate: {what} has the shape {tuple(part.shape)} at site {site.name!r}; a "
                        f"shape that broadcasts to that of the logits, {tuple(fixed.shape)}, is expected."
                    )
            difference = h - mean_h
            difference = difference.expand(fixed.shape)
            if site.family in (Family.CATEGORICAL, Family.ONE_HOT):  # what is left of it once logits are normalised
                difference = difference - mean(fixed, one_hot=True) * difference.sum(-1, keepdim=True)
            centred.append(difference)
        lead = tuple(value.shape[: value.dim() - site.event_dim])
        of_element = fixed.shape[fixed.dim() - site.parameter_dims :].numel()
        pooled = score.numel() // math.prod(lead) if self.per == "site" else of_element
        extra = {
            "score": score.reshape(*lead, -1, pooled),
            "centred": torch.stack(centred, len(lead)).reshape(*lead, len(centred), -1, pooled),
        }
        return Draw(value.unsqueeze(0), logits=logits, extra=extra)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`; works on costs freed of the plates' subsampling scale."""
        score, centred, logits = draw.extra["score"], draw.extra["centred"], draw.logits
        score = score.reshape(len(score), -1, *score.shape[-2:])
        centred = centred.reshape(*score.shape[:2], *centred.shape[-3:]).transpose(1, 2)
        if logits is None:
            raise RuntimeError("a draw without logits: `draw` has to hand them on")
        unscaled = (cost[0] / draw.scale).reshape(score.shape[:2] + (1, 1))
        coefficient = self.coefficients((unscaled * score).double(), centred.double())
        coefficient = coefficient.expand(len(score), -1, -1).to(centred)
        correction = torch.einsum("kmbev,kem->kbev", centred, coefficient) * draw.scale
        linear = torch.where(logits.isfinite(), logits, 0.0) * correction.reshape(logits.shape)
        return Surrogate(draw.score * cost[0] + linear.reshape((*cost[0].shape, -1)).sum(-1))

    def coefficients(self, gradient: Tensor, centred: Tensor) -> Tensor:
        """What multiplies a particle's control variates, `[K or 1, elements, m]`, blind to that particle's draw.

        - `gradient` `[K, batch, elements, pooled]`: f s. `centred` `[K, m, batch, elements, pooled]`: h less its mean.
        """
        cross = torch.einsum("kbev,kmbev->kem", gradient, centred) / gradient.shape[1]
        gram = torch.einsum("kmbev,knbev->kemn", centred, centred) / gradient.shape[1]
        if self.estimate == "particles":
            others = 1 - torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
            return least_variance(
                torch.einsum("jk,kem->jem", others, cross), torch.einsum("jk,kemn->jemn", others, gram)
            )
        found = self.averages.coefficients(*cross.shape[1:]).to(cross.device)
        self.averages.update(cross.mean(0), gram.mean(0))
        return found.unsqueeze(0)


def _broadcasts(tensor: Tensor, like: Tensor) -> bool:
    dims = zip(reversed(tensor.shape), reversed(like.shape), strict=False)
    return tensor.dim() <= like.dim() and all(size in (1, full) for size, full in dims)
