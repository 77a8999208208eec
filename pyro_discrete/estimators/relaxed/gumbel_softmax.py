"""The Gumbel-Softmax (Concrete) relaxation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like
from pyro_discrete.draws.noise import Perturbed, noise_of, relaxed_draw
from pyro_discrete.draws.schedules import Temperature, checked_temperature, temperature_at
from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, SiteView
from pyro_discrete.estimators.relaxed.base import RelaxedLaw
from pyro_discrete.families import PATHWISE, Need

__all__ = [
    "GumbelSoftmax",
]


KL = ("auto", "linear", "analytic", "relaxed")

RELAXATIONS = ("noise", "marginals")


class GumbelSoftmax(RelaxedLaw):
    r"""The pathwise gradient through a relaxed draw.

    .. math:: \nabla f\big(\mathrm{softmax}((\mathrm{logits} + G) / t)\big), \quad G \sim \mathrm{Gumbel}

    (for a Bernoulli, a sigmoid of logistic noise). One evaluation; low variance; biased, the less the lower the
    temperature, at the price of variance. The model is evaluated at soft values, and what the site's own log-mass and
    the prior's are there is a choice of three objectives:

    - `kl="auto"`: analytic at Bernoulli and OneHotCategorical sites, linear at integer ones (Categorical and counts).
    - `kl="linear"`: log-masses extended linearly to soft values.
    - `kl="analytic"`: the Kullback-Leibler divergence of the discrete distributions, given the site's parents; only the
      likelihood sees the soft value. Where that would be wrong - the prior's parameters depend, or may depend, on what
      the guide draws from this site, or on a site of the model alone, which is summed out, or the objective is the
      importance-weighted bound - or where there is none (a Multinomial, another family in the model), it is linear;
      `elbo.plan` says where and why. (`TraceELBO(analytic_kl=True)` is the same for the sites of every estimator.)
    - `kl="relaxed"`: densities of the relaxed distributions (in logits), the prior relaxed at its own temperature. The
      loss is then a bound of the relaxed model's evidence, but that is another model's. Categories without probability
      are left out.

    `loss()` is the discrete objective whichever it is. Serves Bernoulli, Categorical and OneHotCategorical sites,
    counts of finite or truncated support, and structures; at these `kl="auto"` is analytic where a value is a vector
    and its log-mass linear (a subset), and `kl="relaxed"` is refused.

    When to use which: where categories start alike (mixtures, latent classes, emission tables), soft values part them,
    and hard ones, like the exact gradient, may not ("The stall" in benchmarks/results/RESULTS.md). Where the discrete
    loss itself has to be what is trained, `ReinMax` is the least biased of the hard ones. An analytic divergence is
    exact and without noise: better for codes that a network reads, and less apt to part categories that start alike.

    - `prior_temperature`: with `kl="relaxed"`, that of the prior; the same as the posterior's by default.
    - `relaxation`: how a structure is relaxed; elsewhere both are the same. `"noise"` softens how its noise is read:
      the draw of q is behind it, and less and less bias is left as the temperature falls. `"marginals"` are those at
      perturbed logits over the temperature (a stochastic softmax trick), of structures with marginals but no noise,
      such as trees, too: less noisy, but perturbed logits have another law than q, and its bias stays.

    Raises `SettingError` for a setting out of range.

    The default temperature has the best discrete ELBO (benchmarks/results/RESULTS.md; the literature has 2/3 for
    Bernoulli variables). There "analytic" is up to a nat better than "linear" on codes of bits and one-hot vectors, and
    "relaxed" much worse; on a mixture of integers "linear" is better ("The stall" there).

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax (analytic); Maddison, Mnih and
    Teh (2017), The Concrete distribution, section 3.3 and appendix C (relaxed; equation 20 is the analytic one);
    Paulus et al. (2020), Gradient estimation with stochastic softmax tricks (marginals).

    >>> from pyro_discrete import GumbelSoftmax, TraceELBO
    >>> elbo = TraceELBO(GumbelSoftmax(temperature=0.5, kl="linear"))
    """

    name = "gumbel_softmax"
    summary = "pathwise gradient through a relaxed draw"
    reference = "Jang et al. 2017; Maddison et al. 2017"
    needs = frozenset({Need.NOISE, Need.LOG_MASS})
    also_known: tuple[str, ...] = ("gs", "concrete")

    def __init__(
        self,
        temperature: Temperature = 0.35,
        kl: Literal["auto", "linear", "analytic", "relaxed"] = "auto",
        prior_temperature: Temperature | None = None,
        *,
        relaxation: Literal["noise", "marginals"] = "noise",
    ) -> None:
        super().__init__(temperature, hard=False)
        if kl not in KL:
            raise SettingError(f"GumbelSoftmax: kl={kl!r} given, one of {', '.join(map(repr, KL))} expected.")
        if prior_temperature is not None and kl != "relaxed":
            raise SettingError(
                f"GumbelSoftmax: prior_temperature={prior_temperature!r} given with kl={kl!r}, where the prior is not "
                "relaxed: leave it out, or choose kl='relaxed'."
            )
        if relaxation not in RELAXATIONS:
            raise SettingError(f"GumbelSoftmax: relaxation={relaxation!r} given, 'noise' or 'marginals' expected.")
        self.kl = kl
        self.relaxed_divergence: bool = kl == "relaxed"
        self.relaxation = relaxation
        if relaxation == "marginals":
            self.needs: frozenset[Need] = frozenset({Need.MARGINALS, Need.LOG_MASS})
            self.draws_from_guide: bool = False
        if kl == "relaxed":
            self.families = PATHWISE  # a structure's soft values have no density in closed form
        self.prior_temperature: Temperature | None = (
            None if prior_temperature is None else checked_temperature(prior_temperature, "GumbelSoftmax")
        )

    def extra_repr(self) -> str:
        marginals = "relaxation=marginals" if self.relaxation == "marginals" else ""
        return ", ".join(part for part in (super().extra_repr(), f"kl={self.kl}", marginals) if part)

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(kl="linear"), cls(kl="analytic"), cls(kl="relaxed", prior_temperature=0.5)]

    @property
    def may_be_analytic(self) -> bool:  # type: ignore[override]
        """Whether draws come with their probabilities as a point at which the site can be scored."""
        return self.kl in ("auto", "analytic")

    def instead(self, need: Need | None) -> str:
        """Another setting that serves a structure."""
        if self.kl == "relaxed":
            return "Soft structures have no density in closed form: leave kl at 'auto'. "
        return "GumbelSoftmax(relaxation='marginals') asks for marginals instead. " if need is Need.NOISE else ""

    def analytic(self, integers: bool) -> bool:
        """Whether a site's divergence is to be analytic if it can be."""
        return self.kl == "analytic" or (self.kl == "auto" and not integers)

    def draw(self, site: SiteView) -> Draw:
        """One relaxed row, and where it is scored."""
        temperature = temperature_at(self.temperature, site.step)
        if self.kl == "relaxed":
            prior = temperature if self.prior_temperature is None else temperature_at(self.prior_temperature, site.step)
            unsquashed = _over_temperature(site.perturb(), site.logits, temperature)
            return Draw(site.soft(unsquashed, 1.0).unsqueeze(0), Point(unsquashed, temperature, prior))
        value = self._relaxed(site.law, temperature)
        analytic = self.may_be_analytic and Need.MARGINALS in site.needs_met
        return Draw(value.unsqueeze(0), Point(site.mean()) if analytic else None)

    def relaxed_value(self, law: Perturbed, step: Tensor | int) -> Tensor:
        """The relaxed draw."""
        return self._relaxed(law, temperature_at(self.temperature, step))

    def unsquashed(self, logits: Tensor, temperature: Tensor | float, one_hot: bool) -> Tensor:
        """The draw whose softmax (or sigmoid) are the weights, of categories or bits."""
        return _over_temperature(noise_of(logits, one_hot=one_hot).perturb(), logits, temperature)

    def _relaxed(self, law: Perturbed, temperature: Tensor | float) -> Tensor:
        if self.relaxation == "marginals" and not law.separate:
            return law.mean((law.logits + gumbel_like(law.logits)) / temperature)
        return relaxed_draw(law, temperature)


def _over_temperature(noise: Tensor, logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Noise over the temperature; -inf, without a slope, where nothing can be drawn."""
    return torch.where(logits == -math.inf, -math.inf, noise / temperature)
