"""Temperatures that change with the step, or that are learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_discrete.draws.softening import positive_temperature
from pyro_discrete.errors import SettingError, is_number, refuses_unknown_keywords, shown

__all__ = [
    "CosineDecay",
    "ExponentialDecay",
    "LearnedTemperature",
    "LinearDecay",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Schedule",
    "StepDecay",
    "Temperature",
    "checked_temperature",
    "described",
    "temperature_at",
]


class Schedule(nn.Module, ABC):
    """A positive number for every step: wherever a temperature goes, a schedule does.

    Its settings are buffers, so that they are saved, moved and copied with the estimator that holds it; the step is
    counted by the ELBO (or the `relax` handler), whose state has it. A subclass says what the number is; so does any
    function from the step, a whole number in a tensor, to a number or a tensor.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):  # a misspelt setting is told of by name
            type.__setattr__(cls, "__init__", refuses_unknown_keywords(cls.__init__))

    @abstractmethod
    def forward(self, step: Tensor | int) -> Tensor:
        """The number at this step, a scalar tensor."""

    def _keep(self, **settings: float | Sequence[float]) -> None:
        """Make positive numbers buffers of these names, in double precision."""
        for name, value in settings.items():
            each = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            if not all(is_number(number, above=0) for number in each):
                raise SettingError(f"{type(self).__name__}: {name}={shown(value)} given, positive numbers expected.")
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={buffer.tolist():.4g}" for name, buffer in self.named_buffers() if buffer.dim() == 0)


def _number(step: Tensor | int) -> Tensor:
    return torch.as_tensor(step).to(torch.float64)


class ExponentialDecay(Schedule):
    r"""From `start` down to `end` by a constant factor a step.

    .. math:: \max(\mathrm{end},\; \mathrm{start} \cdot e^{-\mathrm{rate} \cdot n \lfloor \mathrm{step} / n \rfloor})

    - `every`: n, the number of steps for which the value is held.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax, section 4.2: start 1, end
    0.5, rate 1e-5 or 1e-4, every 500 or 1000 steps.

    >>> ExponentialDecay(1.0, 0.5, rate=1e-4)(2_000).item()
    0.8187307530779818
    """

    start: Tensor
    end: Tensor
    rate: Tensor
    every: Tensor

    def __init__(self, start: float, end: float, rate: float, every: int = 1) -> None:
        super().__init__()
        self._keep(start=start, end=end, rate=rate, every=every)

    def forward(self, step: Tensor | int) -> Tensor:
        held = (_number(step) / self.every).floor() * self.every
        return torch.maximum(self.end, self.start * (-self.rate * held).exp())


class LinearDecay(Schedule):
    """From `start` to `end` by equal steps, in `steps` of them; `end` from then on.

    >>> LinearDecay(1.0, 0.5, steps=100)(50).item()
    0.75
    """

    start: Tensor
    end: Tensor
    steps: Tensor

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        self._keep(start=start, end=end, steps=steps)

    def forward(self, step: Tensor | int) -> Tensor:
        return torch.lerp(self.start, self.end, (_number(step) / self.steps).clamp(max=1))


class CosineDecay(Schedule):
    """From `start` to `end` in `steps` steps, along half a period of a cosine: slow at both ends.

    Source: Loshchilov and Hutter (2017), SGDR, equation 5 (without restarts).

    >>> CosineDecay(1.0, 0.5, steps=100)(50).item()
    0.75
    """

    start: Tensor
    end: Tensor
    steps: Tensor

    def __init__(self, start: float, end: float, steps: int) -> None:
        super().__init__()
        self._keep(start=start, end=end, steps=steps)

    def forward(self, step: Tensor | int) -> Tensor:
        done = (_number(step) / self.steps).clamp(max=1)
        return torch.lerp(self.start, self.end, (1 - (done * torch.pi).cos()) / 2)


class StepDecay(Schedule):
    """`start`, multiplied by `factor` each time that `every` steps are over, but not below `end`.

    >>> StepDecay(1.0, factor=0.5, every=100, end=0.1)(250).item()
    0.25
    """

    start: Tensor
    factor: Tensor
    every: Tensor
    end: Tensor

    def __init__(self, start: float, factor: float, every: int, end: float) -> None:
        super().__init__()
        self._keep(start=start, factor=factor, every=every, end=end)

    def forward(self, step: Tensor | int) -> Tensor:
        return torch.maximum(self.end, self.start * self.factor ** (_number(step) / self.every).floor())


class _Piecewise(Schedule):
    """A value for each of some times."""

    values: Tensor
    boundaries: Tensor

    def __init__(self, values: Sequence[float], boundaries: Sequence[int], more_values: int) -> None:
        super().__init__()
        name = type(self).__name__
        for setting, given in (("values", values), ("boundaries", boundaries)):
            if not isinstance(given, Sequence) or not all(map(is_number, given)):
                raise SettingError(f"{name}: {setting}={shown(given)} given, a list of numbers expected.")
        if len(values) != len(boundaries) + more_values or not boundaries:
            expected = "one boundary less than values" if more_values else "a boundary for each value"
            raise SettingError(f"{name}: {len(values)} values and {len(boundaries)} boundaries given, {expected}.")
        if list(boundaries) != sorted(set(boundaries)) or min(boundaries) < 0:
            raise SettingError(f"{name}: boundaries={boundaries!r} given, rising whole numbers >= 0 expected.")
        self._keep(values=values)
        self.register_buffer("boundaries", torch.tensor(boundaries, dtype=torch.float64))


class PiecewiseConstant(_Piecewise):
    """The first of `values` before the first of `boundaries`, the second from there to the second one, and so on.

    >>> schedule = PiecewiseConstant([1.0, 0.5, 0.1], [100, 200])
    >>> [schedule(step).item() for step in (99, 100, 500)]
    [1.0, 0.5, 0.1]
    """

    def __init__(self, values: Sequence[float], boundaries: Sequence[int]) -> None:
        super().__init__(values, boundaries, more_values=1)

    def forward(self, step: Tensor | int) -> Tensor:
        passed = torch.cat([torch.ones(1).to(self.boundaries), (_number(step) >= self.boundaries).to(self.boundaries)])
        here = passed - torch.cat([passed[1:], torch.zeros(1).to(passed)])
        return (self.values * here).sum()


class PiecewiseLinear(_Piecewise):
    """Straight lines from one of `values` to the next, each reached at its step of `boundaries`; level around them.

    >>> PiecewiseLinear([1.0, 0.5], [100, 200])(150).item()
    0.75
    """

    def __init__(self, values: Sequence[float], boundaries: Sequence[int]) -> None:
        super().__init__(values, boundaries, more_values=0)

    def forward(self, step: Tensor | int) -> Tensor:
        lengths = self.boundaries[1:] - self.boundaries[:-1]
        done = ((_number(step) - self.boundaries[:-1]) / lengths).clamp(0, 1)
        return self.values[0] + ((self.values[1:] - self.values[:-1]) * done).sum()


class LearnedTemperature(Schedule):
    """A temperature that is a parameter: the loss that is optimised trains it, by the caller's optimiser.

    What it learns is what the *relaxed* loss gains by it: that is the discrete objective's business only where the
    relaxed loss is a bound (`GumbelSoftmax(kl="relaxed")`). Judge it by `loss()`. The parameter is the logarithm, at
    first that of `start`.

    >>> LearnedTemperature(0.5)(0).item()
    0.5
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        positive_temperature(start, type(self).__name__)
        self.logarithm: nn.Parameter = nn.Parameter(torch.tensor(start, dtype=torch.float64).log())

    def extra_repr(self) -> str:
        return f"{self.logarithm.detach().exp().item():.3g}"

    def forward(self, step: Tensor | int) -> Tensor:
        return self.logarithm.exp()


Temperature = float | Schedule | Callable[[Any], Any]


def checked_temperature(temperature: Temperature, where: str) -> Temperature:
    """`temperature` itself; `SettingError` if it is neither a positive number nor a function of the step."""
    return temperature if callable(temperature) else positive_temperature(temperature, where)


def temperature_at(temperature: Temperature, step: Tensor | int) -> Tensor | float:
    """Its value at this step: a number that does not change is one, all else is a scalar tensor."""
    return torch.as_tensor(temperature(step)) if callable(temperature) else temperature


def described(temperature: Temperature) -> str:
    """For a plan's line."""
    return repr(temperature) if callable(temperature) else f"{temperature:.3g}"
