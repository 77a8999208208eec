"""The straight-through estimator with a temperature for each pass."""

from __future__ import annotations

from torch import Tensor

from pyro_discrete.draws.noise import hard_draw
from pyro_discrete.draws.schedules import Temperature, checked_temperature, described, temperature_at
from pyro_discrete.draws.softening import soften, straight_through
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

__all__ = [
    "DecoupledStraightThrough",
]


class DecoupledStraightThrough(RelaxedEstimator):
    r"""The straight-through estimator with separate temperatures for the forward and the backward pass.

    .. math:: f'(D)\, \nabla\, \mathrm{softmax}(\mathrm{logits} / t_b), \quad
              D \sim \mathrm{softmax}(\mathrm{logits} / t_f)

    The forward temperature says how far the draws explore, the backward one over how many categories the gradient is
    spread. At t_f = 1 the draws are those of q and the loss that is optimised is the discrete objective's; at another
    one they are those of a tempered q, whose log-mass is still that of q: a bias of its own (`loss()` draws from q
    itself, whatever t_f is). One evaluation. Serves Bernoulli, Categorical and OneHotCategorical sites, and counts.

    - `temperature`: of the backward pass. `forward_temperature`: of the draws; either may be a schedule.

    Raises `SettingError` if a temperature is not positive.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md).

    Source: Shah, Yan, Mozer and Liu (2024), Improving discrete optimisation via decoupled straight-through estimator
    (arXiv 2410.13331, second version: the softmax's form of it, "Decoupled ST". In the first version both passes have
    the same Gumbel noise, so that the forward temperature cannot change the draw). Compared with the abstract and the
    introduction of both versions, and with others' code of the first; no code of the authors was found.

    >>> from pyro_discrete import DecoupledStraightThrough, TraceELBO
    >>> elbo = TraceELBO(DecoupledStraightThrough(temperature=2.0, forward_temperature=0.9))
    """

    name = "decoupled_straight_through"
    summary = "straight-through with a temperature for each pass"
    reference = "Shah et al. 2024"
    also_known: tuple[str, ...] = ("decoupled_st", "dst")

    def __init__(self, temperature: Temperature = 0.7, forward_temperature: Temperature = 1.0) -> None:
        super().__init__(temperature)
        self.refuse_learned("forward_temperature", forward_temperature)
        self.forward_temperature: Temperature = checked_temperature(
            forward_temperature, "DecoupledStraightThrough(forward_temperature)"
        )
        self.draws_from_guide: bool = not callable(forward_temperature) and forward_temperature == 1

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, forward_temperature={described(self.forward_temperature)}"

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(temperature=0.7, forward_temperature=1.3)]

    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """The hard draw at one temperature, with the gradient at the other."""
        forward, backward = (temperature_at(t, step) for t in (self.forward_temperature, self.temperature))
        return straight_through(hard_draw(logits / forward, one_hot=one_hot), soften(logits, backward, one_hot=one_hot))
