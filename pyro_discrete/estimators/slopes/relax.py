"""RELAX: the score function with a learned control variate, around the relaxed cost or free of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_discrete.control_variates.baseline import LearnedBaseline
from pyro_discrete.draws.schedules import Temperature
from pyro_discrete.estimators.base import Estimator, ScoredDraw, SiteView
from pyro_discrete.estimators.slopes.conditionally_relaxed import ConditionallyRelaxed, Control, positive_log
from pyro_discrete.families import RELAXABLE, Family, Need

__all__ = [
    "RELAX",
]


class RELAX(LearnedBaseline, ConditionallyRelaxed):
    r"""The score function with a learned control variate, conditioned on the hard draw.

    .. math:: \big(f(b) - c(\tilde z)\big) \nabla \log q(b) + \nabla c(z) - \nabla c(\tilde z), \qquad
              c(z) = \eta f(\sigma_t(z)) + r_\rho(\sigma_t(z), x)

    with `z` the relaxed draw behind the hard draw `b`, `z~` one more drawn given `b`, and `r` a network of the relaxed
    value and of what `draw.context` holds of the data. `eta`, the temperature and the network are trained (by the
    caller's optimiser) on the gradient's second moment; unbiased whatever they are.

    Around the relaxed cost it is REBAR with a network added: three evaluations, and the model has to accept soft values
    at Bernoulli, Categorical and OneHotCategorical sites and structures with noise given a value. As a black box
    (`black_box=True`: c = r alone) it asks nothing of the model: one evaluation, any cost. The network starts at zero,
    where a black box is the plain score function: it needs steps of training to be of use, and more of them the wider
    the site. Training differentiates the cost twice.

    - `temperature`, `eta`: where they start, positive; a schedule leaves nothing of the temperature to learn.
      `learn=False` keeps them and the network.
    - `network`: an `nn.Module` of one's own, `[..., event size + features]` to `[...]` or `[..., 1]`; by default one
      hidden layer of `hidden` tanh units. A structure (a ranking, subset, matching or chain) is its vertex to it.
    - `input`: what the network reads besides, as for `NVIL`.

    Raises `SettingError` for a setting out of range, `SiteShapeError` if a network's output does not fit the site.

    Source: Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), Backpropagation through the void: optimizing control
    variates for black-box gradient estimation.

    >>> from pyro_discrete import RELAX, TraceELBO
    >>> elbo = TraceELBO(RELAX(black_box=True))
    """

    name = "relax"
    summary = "score function with a learned control variate of a relaxed draw, around the relaxed cost or free of it"
    reference = "Grathwohl et al. 2018"
    evaluations = "3, as a black box 1"
    families: frozenset[Family] = RELAXABLE | {Family.STRUCTURE}
    needs = frozenset({Need.NOISE, Need.NOISE_GIVEN, Need.LOG_MASS})
    relaxed = (1, 2)
    reads_context = True

    def __init__(
        self,
        temperature: Temperature = 0.5,
        eta: float = 1.0,
        learn: bool = True,
        *,
        black_box: bool = False,
        network: nn.Module | None = None,
        hidden: int = 100,
        input: str | Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(temperature, learn)
        self.black_box: bool = black_box
        self.input: str | Callable[..., Tensor] | None = input
        self.learn: bool = learn
        self.start_network(network is None or network, hidden)
        log_eta = positive_log(eta, "eta", "RELAX")
        if black_box:
            self.relaxed: tuple[int, ...] = ()
            self.needs: frozenset[Need] = self.needs - {Need.LOG_MASS}
        else:
            self.log_eta: nn.Parameter = nn.Parameter(log_eta, requires_grad=learn)
        self._numbers = 0

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(black_box=True), cls(temperature=0.3, eta=0.7, learn=False)]

    def extra_repr(self) -> str:
        return "black box" if self.black_box else ""

    def rows(self, site: SiteView) -> int:
        """Also sees how many numbers one relaxed value has, which `prepare` builds the network for."""
        value = site.sample()
        self._numbers = site.vertex(value).shape[site.log_mass(value).dim() :].numel()
        return super().rows(site)

    def prepare(self, features: int, like: Tensor) -> None:
        """Build the default network for the site's relaxed values and inputs of so many features."""
        if self.default and self.network is None and self._numbers:
            like = like if like.is_floating_point() else torch.empty((), device=like.device)
            self.build_network(self._numbers + features, like)

    def control(self, draw: ScoredDraw, cost: Tensor) -> Control:
        """The relaxed cost times `eta`, plus the network; `cost` `[rows, K, *batch]`."""
        given, slope, slope_given = self._network_part(draw, cost[0])
        if self.relaxed:
            eta = self.log_eta.exp().to(cost)
            given = given + eta * cost[2]
            slope, slope_given = slope + eta * draw.slopes[1], slope_given + eta * draw.slopes[2]
        return Control(given, slope, slope_given)

    def _network_part(self, draw: ScoredDraw, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network at the draw given the hard one `[K, *batch]`, and its slopes at both; in scaled costs."""
        soft, soft_given = draw.extra["soft"], draw.extra["soft_given"]
        if self.network is None:
            return torch.zeros_like(like), torch.zeros_like(soft), torch.zeros_like(soft)
        if not soft.requires_grad:
            soft, soft_given = soft.detach().requires_grad_(), soft_given.detach().requires_grad_()
        free, given = (draw.scale * self._read(each, draw.context, like) for each in (soft, soft_given))
        slope, slope_given = torch.autograd.grad((free + given).sum(), (soft, soft_given), create_graph=True)
        return given, slope, slope_given

    def _read(self, soft: Tensor, context: Tensor | None, like: Tensor) -> Tensor:
        """The network's output for relaxed values `[K, *batch, *event]`: `[K, *batch]`."""
        inputs = soft.reshape(*like.shape, -1)
        if context is not None and not self._without_context(inputs.shape[-1]):
            inputs = torch.cat([inputs, context.to(inputs).expand(*like.shape, context.shape[-1])], -1)
        return self.read(inputs, like, broadcast=False)

    def _without_context(self, numbers: int) -> bool:
        """Whether the default network was built for a site that was met too late to know its context."""
        first = next(self.network.parameters()) if self.default and self.network is not None else None
        return first is not None and first.shape[-1] == numbers
