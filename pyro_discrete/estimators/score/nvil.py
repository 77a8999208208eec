"""Neural variational inference and learning: the score function with learned baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_discrete.control_variates.baseline import baseline_network
from pyro_discrete.control_variates.moments import RunningMoments
from pyro_discrete.errors import SettingError, SiteShapeError, is_whole
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate

__all__ = [
    "NVIL",
]


class NVIL(Estimator):
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
      over plates that the site is not in).
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
    also_known = ("input_dependent_baseline",)

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
        if learning_rate is not None and not (isinstance(learning_rate, int | float) and learning_rate > 0):
            raise SettingError(f"NVIL: learning_rate={learning_rate!r} given, a positive number (or None) expected.")
        if not is_whole(hidden):
            raise SettingError(f"NVIL: hidden={hidden!r} given, at least one hidden unit expected.")
        self.constant, self.variance_normalisation = constant, variance_normalisation
        self.local_signals = local_signals
        self.unbiased = not variance_normalisation
        self.reads_context = bool(network) if isinstance(network, bool) else True
        self.input, self.learning_rate, self.hidden = input, learning_rate, hidden
        self.moments = RunningMoments(decay)
        if not isinstance(network, bool | nn.Module):
            raise SettingError(f"NVIL: network={network!r} given; True, False or an nn.Module expected.")
        self.network: nn.Module | None = None if isinstance(network, bool) else network
        self._default = network is True
        self._optimiser: torch.optim.Optimizer | None = None
        self._waiting: dict[str, Any] | None = None

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

    def prepare(self, features: int, like: Tensor) -> None:
        """Build the default network for inputs of so many features, in the dtype and on the device of `like`."""
        if not self.reads_context or not features:
            return
        own = self._default and isinstance(self.network, nn.Sequential)
        if own and self.network[0].in_features != features:  # type: ignore[index, union-attr]
            warnings.warn(
                f"NVIL: the data that its baseline reads have {features} features now, where its network was made for "
                "others: a new network is made, untrained. Name what it is to read by NVIL(input=...).",
                stacklevel=2,
            )
            self.network, self._optimiser, self._waiting = None, None, None
        if self.network is None:
            self.network = baseline_network(features, self.hidden, like)

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """`cost` `[1, K, *batch]`; reads the averages and the network before it updates them."""
        unscaled = cost[0] / draw.scale
        centred = unscaled - self.moments.mean.to(unscaled) if self.constant else unscaled
        sigma = self.moments.deviation.to(unscaled).clamp(min=1.0)
        predicted = self._predict(draw, unscaled)
        signal = centred if predicted is None else centred - predicted.detach()
        weight = signal / sigma if self.variance_normalisation else signal
        auxiliary = None
        if predicted is not None:
            auxiliary = 0.5 * ((centred - predicted) / sigma).square().mean()
            if self.learning_rate is not None:
                auxiliary = self._train(auxiliary)
        self.moments.update(signal if self.constant is False else signal + self.moments.mean.to(signal))
        return Surrogate(draw.score * (weight * draw.scale), auxiliary)

    def _predict(self, draw: Draw, like: Tensor) -> Tensor | None:
        """The network's baseline, broadcastable to `[K, *batch]`."""
        if self.network is None or draw.context is None:
            return None
        weight = next(self.network.parameters(), like)
        out = self.network(draw.context.to(weight)).to(like)
        if out.dim() == like.dim() + 1 and out.shape[-1] == 1:
            out = out.squeeze(-1)
        if out.dim() != like.dim() or any(a not in (1, b) for a, b in zip(out.shape, like.shape, strict=True)):
            raise SiteShapeError(
                f"NVIL: the baseline network returned a tensor of shape {tuple(out.shape)} for inputs of shape "
                f"{tuple(draw.context.shape)}; one number for each element of {tuple(like.shape)} is expected. "
                "Let it end in a layer of one unit."
            )
        return out

    def _train(self, auxiliary: Tensor) -> None:
        """One Adam step on the squared error, for an estimator with a learning rate of its own."""
        if self.network is None or self.learning_rate is None:
            return
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(auxiliary, parameters)
        optimiser = self._own_optimiser(parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        for parameter in parameters:
            parameter.grad = None

    def _own_optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self._optimiser is None:
            # fused: its step count stays a tensor
            self._optimiser = torch.optim.Adam(parameters, lr=self.learning_rate or 1e-3, fused=True)
            if self._waiting is not None:
                self._optimiser.load_state_dict(self._waiting)
                self._waiting = None
        return self._optimiser

    def state_tensors(self) -> list[Tensor]:
        """Its averages, its network, and what its optimiser keeps."""
        kept = [] if self._optimiser is None else self._optimiser.state.values()
        return [*super().state_tensors(), *(t for state in kept for t in state.values() if torch.is_tensor(t))]

    def get_extra_state(self) -> dict[str, Any]:
        """The state of its own optimiser, where it has one."""
        if self._waiting is not None:
            return {"optimiser": self._waiting}
        return {"optimiser": None if self._optimiser is None else self._optimiser.state_dict()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Keep the optimiser's state until the optimiser is built."""
        self._waiting, self._optimiser = state["optimiser"], None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "network.0.weight")
        if self.network is None and weight is not None:  # the default network, not built yet: its shape is in the state
            self.hidden = weight.shape[0]
            self.network = baseline_network(weight.shape[1], self.hidden, weight)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]
