"""What ranks exchange in a step: gradients add up to the joint batch's, what estimators learn is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGINT, SIGTERM
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import RanksError
from pyro_discrete.steps.outcome import StepGradients
from pyro_discrete.training.ranks import Ranks, named

__all__ = ["Exchange", "OwnStep"]

FAILED, NEW, INTERRUPTED, TERMINATED, FLAGS = range(5)
"""Places of what is counted over ranks, and how many they are."""
PROCESSOR = torch.device("cpu")


Key = tuple[int, str]


@dataclass
class OwnStep:
    """What a rank brings to a step.

    - `share`: the weight of its part. `result`: of that part, None where it has none, or where `failure` says why.
    - `parameters`: all that there are, by name. `adding`: ids of those whose gradients are sums over elements in each
      part, and so are added up without a weight.
    - `learned`: tensors to be averaged. `buffers`: those of the program's modules, of which `moved` are to be, too.
    - `signal`: one that has asked for an end.
    """

    share: float
    parameters: Mapping[str, Tensor]
    result: StepGradients | None = None
    failure: Exception | None = None
    adding: frozenset[int] = frozenset()
    learned: Sequence[Tensor] = ()
    buffers: Mapping[Key, Tensor] = field(default_factory=dict)
    moved: frozenset[Key] = frozenset()
    signal: int | None = None


@dataclass
class Exchange:
    """One step after another of all ranks.

    - `bytes`: what a rank hands over in a step. By a ring each sends and receives `2 (size - 1) / size` times as much.
    - `signal`: one that any rank has got. `moving`: the buffers that are averaged, as a step has changed them once.
    """

    ranks: Ranks
    bytes: int = 0
    signal: int | None = None
    moving: tuple[Key, ...] = ()
    _layout: Any = None
    _gradients: dict[Any, Tensor] = field(default_factory=dict)

    def of(self, own: OwnStep, doing: str) -> StepGradients:
        """The joint step, the same on all ranks; what was to be averaged is, in place.

        Raises, on every rank, the error of one; `RanksError` where they have not the same to exchange.
        """
        if self._layout is None:
            self._agree(own, doing)
        while True:
            current = own.failure is not None or (own.moved <= {*self.moving} and self._layout_of(own) == self._layout)
            counts, places = self._fill_gradients(own, current)
            averaged = [] if own.failure is not None else self._averaged(own)
            flat = self._fill_averages(own, counts, averaged if current else [])
            buffers = [*self._gradients.values(), *flat.values()]
            self.bytes = sum(b.numel() * b.element_size() for b in buffers)
            self.ranks.added(buffers)
            counts = flat[PROCESSOR][: len(counts)].tolist()
            if counts[FAILED]:
                self.ranks.fail(own.failure, doing)
            if not counts[NEW]:
                break
            self._agree(own, doing)
        self.signal = SIGTERM if counts[TERMINATED] else SIGINT if counts[INTERRUPTED] else None
        loss = torch.zeros((), device=_home(own), dtype=torch.float64)
        _take_up([loss, *averaged], flat, len(counts))
        present = [place for place, count in zip(places, counts[FLAGS:], strict=True) if count]
        return StepGradients(loss, [parameter for parameter, _ in present], [gradient for _, gradient in present])

    def _averaged(self, own: OwnStep) -> list[Tensor]:
        return [*own.learned, *(own.buffers[key] for key in self.moving)]

    def _layout_of(self, own: OwnStep) -> Any:
        """What a rank has to exchange, as plain values: parameters, and what is averaged."""
        return (
            [(name, tuple(p.shape), p.device.type, str(p.dtype)) for name, p in own.parameters.items()],
            [("", tuple(t.shape), t.device.type, str(t.dtype)) for t in self._averaged(own)],
        )

    def _agree(self, own: OwnStep, doing: str) -> None:
        """See that all ranks have the same to exchange, and make place for it."""
        if self.ranks.any(own.failure is not None):
            self.ranks.fail(own.failure, doing)
        self.moving = tuple(sorted({*self.moving}.union(*self.ranks.told(own.moved))))
        self._layout = self._layout_of(own)
        told = self.ranks.told(self._layout)
        for what, index in (("parameters", 0), ("state of estimators and modules", 1)):
            other = [rank for rank, each in enumerate(told) if each[index] != told[0][index]]
            if other:
                raise RanksError(_difference(what, told[0][index], told[other[0]][index], other))
        total: dict[Any, int] = {}
        for parameter in own.parameters.values():
            key = parameter.device, parameter.dtype
            total[key] = total.get(key, 0) + parameter.numel()
        self._gradients = {key: torch.empty(n, device=key[0], dtype=key[1]) for key, n in total.items()}

    def _fill_gradients(self, own: OwnStep, current: bool) -> tuple[list[float], list[tuple[Tensor, Tensor]]]:
        """This rank's part in the buffers of gradients: what is counted over ranks, and each parameter's place."""
        given: dict[int, Tensor] = {}
        if own.result is not None and current:
            given = {id(p): g for p, g in zip(own.result.parameters, own.result.gradients, strict=True)}
        counts = [own.failure is not None, not current, own.signal == SIGINT, own.signal == SIGTERM]
        places, taken = [], dict.fromkeys(self._gradients, 0)
        for name, shape, *_ in self._layout[0]:
            parameter = own.parameters[name]
            key, count = (parameter.device, parameter.dtype), parameter.numel()
            place = self._gradients[key][taken[key] : taken[key] + count].view(shape)
            taken[key] += count
            gradient = given.get(id(parameter))
            counts.append(gradient is not None)
            if gradient is None:
                place.zero_()
            else:
                torch.mul(gradient, 1.0 if id(parameter) in own.adding else own.share, out=place)
            places.append((parameter, place))
        return [float(count) for count in counts], places

    def _fill_averages(
        self, own: OwnStep, counts: list[float], averaged: Sequence[Tensor]
    ) -> dict[torch.device, Tensor]:
        """By device what is counted and this rank's part of the averages, in float64; zeros where it has none."""
        home = _home(own)
        parts: dict[torch.device, list[Tensor]] = {PROCESSOR: [torch.tensor(counts, dtype=torch.float64)]}
        loss = None if own.result is None else own.result.loss.to(home)
        for (_, shape, kind, _), tensor in zip(
            [("", (), home.type, ""), *self._layout[1]],
            [loss, *(averaged or [None] * len(self._layout[1]))],
            strict=True,
        ):
            if tensor is None or own.share == 0:
                device = PROCESSOR if kind == "cpu" else home
                part = torch.zeros(shape, device=device, dtype=torch.float64)
            else:
                part = tensor.detach().to(torch.float64) * own.share
            parts.setdefault(part.device, []).append(part.flatten())
        return {device: torch.cat(each) for device, each in parts.items()}


def _home(own: OwnStep) -> torch.device:
    """Where the parameters are, or the first of them is."""
    return next((parameter.device for parameter in own.parameters.values()), PROCESSOR)


@torch.no_grad()
def _take_up(tensors: Sequence[Tensor], flat: Mapping[torch.device, Tensor], counted: int) -> None:
    """Put the averages into the tensors."""
    taken = {device: counted if device == PROCESSOR else 0 for device in flat}
    for tensor in tensors:
        device = tensor.device
        mean = flat[device][taken[device] : taken[device] + tensor.numel()].view(tensor.shape)
        taken[device] += tensor.numel()
        tensor.copy_(mean if tensor.is_floating_point() else mean.round())


def _difference(what: str, first: Any, other: Any, ranks: list[int]) -> str:
    here, there = [entry for entry in first if entry not in other], [entry for entry in other if entry not in first]
    listed = "; ".join(
        f"{', '.join(map(_entry, entries[:3]))} on {where}"
        for entries, where in ((here, "rank 0 alone"), (there, f"{named(ranks).lower()} alone"))
        if entries
    )
    return (
        f"The ranks differ in their {what}: {listed or 'in another order'}. All have to run the same program, and to "
        "make its parameters in the same step: make them before, if what makes them depends on the data."
    )


def _entry(entry: Any) -> str:
    return f"{entry[0]!r} {entry[1]}" if entry[0] else f"a tensor {entry[1]}"
