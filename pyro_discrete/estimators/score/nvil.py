"""Neural variational inference and learning: the score function with learned baselines."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pyro_discrete.control_variates.baseline import SelfTrainedBaseline
from pyro_discrete.control_variates.moments import RunningMoments
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate

__all__ = [
    "NVIL",
]


class NVIL(SelfTrainedBaseline, Estimator):
    r"""The score function with a constant and an input-dependent control variate and variance normalisation.

    .. math:: \frac{f(z) - c - C_\psi(x)}{\max(1, \sigma)}\,\nabla \log q(z)

    `c` and `sigma` are running averages of the centred signal's mean and standard deviation, read before they are
    updated; the network C is trained on the squared error. Serves every kind of site, with one evaluation per
    particle. Variance normalisation rescales the gradient (by a factor below one, common to a site), so with it the
    estimator is not unbiased in the strict sense; without it, it is. Works on costs freed of the plates' subsampling
    scale.

    - `constant`, `network`, `variance_normalisation`, `local_signals`: each part can be switched off. `network` may be
      an `nn.Module` of one's own, `[..., features]` to `[...]` or `[..., 1]`; by default one hidden layer of `hidden`
      tanh units. `local_signals=False` also keeps the terms drawn before the site in its signal.
    - `input`: what the network reads: the name of an observed site, or a function of the program's arguments that
      returns a tensor `[*plates, features]`; by default all observed values, aligned with the site's plates (averaged
      over plates that the site is not in); of an observed structure (a ranking) the indicators of its integers.
    - `learning_rate`: by default the caller's optimiser trains the network (it is registered with `pyro.module`, and
      among the ELBO's `parameters()`); with a rate, the estimator trains it itself by Adam.
    - `decay` of the running averages, in (0, 1).

    Raises `SettingError` for a setting out of range, `SiteShapeError` if a network's output does not fit the site.

    Source: Mnih and Gregor (2014), Neural variational inference and learning in belief networks.

    >>> from pyro_discrete import NVIL, TraceELBO
    >>> elbo = TraceELBO({"*": NVIL(variance_normalisation=False, learning_rate=1e-3)})
    """

    name = "nvil"
    summary = "score function, constant and input-dependent baselines, variance normalisation"
    reference = "Mnih & Gregor 2014"
    also_known: tuple[str, ...] = ("input_dependent_baseline",)

    def __init__(
        self,
        constant: bool = True,
        network: bool | nn.Module = True,
        variance_normalisation: bool = True,
        local_signals: bool = True,
        *,
        input: str | Callable[..., Tensor] | None = None,
        learning_rate: float | None = None,
        hidden: int = 100,
        decay: float = 0.9,
    ) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise SettingError(f"NVIL: decay={decay} given, a number between 0 and 1 expected.")
        self.constant: bool = constant
        self.variance_normalisation: bool = variance_normalisation
        self.local_signals = local_signals
        self.unbiased: bool = not variance_normalisation
        self.reads_context: bool = network is not False
        self.input = input
        self.moments: RunningMoments = RunningMoments(decay)
        self.start_network(network, hidden)
        self.start_training(learning_rate)

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [
            cls(),
            cls(variance_normalisation=False),
            cls(variance_normalisation=False, learning_rate=1e-2),
            cls(variance_normalisation=False, local_signals=False, network=False),
        ]

    def extra_repr(self) -> str:
        parts = {
            "constant": self.constant,
            "network": self.reads_context,
            "variance_normalisation": self.variance_normalisation,
            "local_signals": self.local_signals,
        }
        return ", ".join(f"{part}=False" for part, on in parts.items() if not on)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`; reads the averages and the network before it updates them."""
        f = cost[0] / draw.scale
        c = self.moments.mean.to(f) if self.constant else 0.0
        sigma = self.moments.deviation.to(f).clamp(min=1.0)
        predicted, auxiliary = 0.0, None  # C(x), and what trains it
        if self.network is not None and draw.context is not None:
            output = self.read(draw.context, f)
            predicted, auxiliary = output.detach(), self.trained(0.5 * ((f - c - output) / sigma).square().mean())
        signal = f - c - predicted
        self.moments.update(signal + c)
        weight = signal / sigma if self.variance_normalisation else signal
        return Surrogate(draw.score * (weight * draw.scale), auxiliary)
