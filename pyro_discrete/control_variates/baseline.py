"""The learned baseline: a small network of what a site's baseline may read, and the optimiser that may train it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_discrete.errors import SettingError, SiteShapeError, is_whole

__all__ = [
    "LearnedBaseline",
    "SelfTrainedBaseline",
    "baseline_network",
]


def baseline_network(features: int, hidden: int, like: Tensor) -> nn.Sequential:
    """One hidden layer of tanh units, `[..., features]` to `[..., 1]`, zero at the start; in the dtype of `like`."""
    network = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(like)
    nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[-1].bias)  # type: ignore[arg-type]
    return network


class LearnedBaseline(nn.Module):
    """What estimators with a network share: an estimator inherits it beside `Estimator`, and before it.

    - `network`: the user's own, or the default one, which is built when the number of its inputs is known (from the
      data, or from a state that is loaded), and until then None. `default`: whether it is that.
    - `hidden`: units of the default network. `learn`: whether the network is trained.
    """

    network: nn.Module | None
    learn: bool = True

    def start_network(self, network: bool | nn.Module, hidden: int) -> None:
        """What `__init__` does with its settings; `network`: a user's, or whether there is the default one."""
        if not is_whole(hidden):
            raise SettingError(f"{_name(self)}: hidden={hidden!r} given, at least one hidden unit expected.")
        if not isinstance(network, bool | nn.Module):
            raise SettingError(f"{_name(self)}: network={network!r} given; True, False or an nn.Module expected.")
        self.hidden: int = hidden
        self.default: bool = network is True
        self.network = None if isinstance(network, bool) else network

    def build_network(self, features: int, like: Tensor) -> None:
        """Make the default network for so many inputs, in the dtype and on the device of `like`."""
        self.network = baseline_network(features, self.hidden, like).requires_grad_(self.learn)

    def drop_network(self) -> None:
        """Forget the network, and what has been learned for it."""
        self.network = None

    def prepare(self, features: int, like: Tensor) -> None:
        """Build the default network for inputs of so many features, a new one where it was made for others."""
        if not self.default or not features:
            return
        if self._made_for() not in (None, features):
            warnings.warn(
                f"{_name(self)}: the data that its baseline reads have {features} features now, where its network was "
                "made for others: a new network is made, untrained. Name what it is to read by "
                f"{_name(self)}(input=...).",
                stacklevel=2,
            )
            self.drop_network()
        if self.network is None:
            self.build_network(features, like)

    def _made_for(self) -> int | None:
        """The number of features that the default network takes, if there is one."""
        first = self.network[0] if self.default and isinstance(self.network, nn.Sequential) else None
        return first.in_features if isinstance(first, nn.Linear) else None

    def read(self, inputs: Tensor, like: Tensor, broadcast: bool = True) -> Tensor:
        """The network's output for inputs `[K or 1, *batch, features]`: of the shape of `like` `[K, *batch]`.

        With `broadcast` dims of one may stand for more. Zeros where the default network was made for another number of
        features, with a warning. Raises `SiteShapeError` where the output does not fit.
        """
        assert self.network is not None
        made = self._made_for()
        if made is not None and made != inputs.shape[-1]:
            warnings.warn(
                f"{_name(self)}: the data that its baseline reads have {inputs.shape[-1]} features in this call, where "
                f"its network was made for {made}: it says nothing of them. Name what it is to read, of one size, by "
                f"{_name(self)}(input=...).",
                stacklevel=2,
            )
            return torch.zeros_like(like)
        out = self.network(inputs.to(next(self.network.parameters(), like))).to(like)
        if out.dim() == like.dim() + 1 and out.shape[-1] == 1:
            out = out.squeeze(-1)
        fits = out.dim() == like.dim() and all(
            a == b or (a == 1 and broadcast) for a, b in zip(out.shape, like.shape, strict=True)
        )
        if not fits:
            raise SiteShapeError(
                f"{_name(self)}: the baseline network returned a tensor of shape {tuple(out.shape)} for inputs of "
                f"shape {tuple(inputs.shape)}; one number for each element of {tuple(like.shape)} is expected. "
                "Let it end in a layer of one unit."
            )
        return out

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "network.0.weight")
        if self.network is None and weight is not None:  # the default network, not built yet: its shape is in the state
            self.hidden = weight.shape[0]
            self.build_network(weight.shape[1], weight)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]


class SelfTrainedBaseline(LearnedBaseline):
    """A learned baseline that can train its network itself, by Adam, if it has a `learning_rate`.

    The optimiser's state is part of the module's: a state that is loaded is copied, and waits for the first step.
    """

    learning_rate: float | None
    _optimiser: torch.optim.Optimizer | None = None
    _waiting: dict[str, Any] | None = None

    def start_training(self, learning_rate: float | None) -> None:
        """What `__init__` does with its setting; raises `SettingError` unless it is positive, or None."""
        if learning_rate is not None and not (isinstance(learning_rate, int | float) and learning_rate > 0):
            raise SettingError(
                f"{_name(self)}: learning_rate={learning_rate!r} given, a positive number (or None) expected."
            )
        self.learning_rate = learning_rate

    def drop_network(self) -> None:
        super().drop_network()
        self._optimiser = self._waiting = None

    def trained(self, error: Tensor) -> Tensor | None:
        """One step of its own optimiser on the squared error; the error itself where the caller's trains it."""
        if self.network is None or self.learning_rate is None:
            return error
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(error, parameters)
        optimiser = self._own_optimiser(parameters, self.learning_rate)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        for parameter in parameters:
            parameter.grad = None
        return None

    def _own_optimiser(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        if self._optimiser is None:
            self._optimiser = torch.optim.Adam(parameters, lr=rate, fused=True)  # fused: its step count stays a tensor
            if self._waiting is not None:
                self._optimiser.load_state_dict(self._waiting)
                self._waiting = None
        return self._optimiser

    def state_tensors(self) -> list[Tensor]:
        """Its averages, its network, and what its optimiser keeps."""
        kept = [] if self._optimiser is None else self._optimiser.state.values()
        tensors = [*self.parameters(), *self.buffers()]
        return [*tensors, *(t for state in kept for t in state.values() if torch.is_tensor(t))]

    def get_extra_state(self) -> dict[str, Any]:
        """The state of its own optimiser, where it has one."""
        if self._waiting is not None:
            return {"optimiser": self._waiting}
        return {"optimiser": None if self._optimiser is None else self._optimiser.state_dict()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Keep a copy, for the optimiser that is yet to be built: it goes on in the very tensors it is given."""
        self._waiting, self._optimiser = copy.deepcopy(state["optimiser"]), None


def _name(module: nn.Module) -> str:
    return type(module).__name__
