"""Trial runs at numbers of no special value, so that a weight of zero hides nothing that a step will bring in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.programs.python_state import PythonState

__all__ = ["GenericNumbers", "is_single_number", "single_numbers", "unlearned"]

SIZE = 0.1
"""By so much, relative to itself, a number is moved at most; a zero by so much in all."""


def is_single_number(value: Any) -> bool:
    """Whether a value is a tensor of one floating number: no pattern of zeros can be meant by that."""
    single = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
    return single and not value.is_inference()


def single_numbers(*programs: Any) -> list[Tensor]:
    """The tensors of one number that the code of programs can see: in variables, buffers, attributes."""
    seen = (held() for held in PythonState(programs).tensors)
    return [value for value in seen if value is not None and is_single_number(value)]


def unlearned(state: PythonState) -> list[Tensor]:
    """The tensors that programs can see, or are given, and that are not learned."""
    held = [value for seen in (*state.tensors, *state.contained) if (value := seen()) is not None]
    return [*{id(value): value for value in held if not value.requires_grad}.values()]


class GenericNumbers:
    """While it is entered, these tensors hold other values: those that are to be learned, say.

    A coupling that starts at zero joins nothing in a trial, and two parameters that start alike cancel; neither stays
    so for a step. Each number keeps its sign; flags are the other way round, and whole numbers change places. The
    tensors stay the same objects and get their own values back.

    >>> weight = torch.zeros(2, requires_grad=True)
    >>> with GenericNumbers([weight]):
    ...     bool((weight != 0).all())
    True
    >>> weight.tolist()
    [0.0, 0.0]
    """

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        noise = torch.Generator().manual_seed(0)
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._depth = 0
        for number in numbers:
            own = number.data
            if not number.is_floating_point():
                moved = ~own if own.dtype is torch.bool else own.flatten().roll(1).view(own.shape)
                self._values.append((number, own, moved))
                continue
            by = torch.rand(own.shape, generator=noise).mul_(SIZE).to(own.device, own.dtype)
            zero = own == 0
            if bool(zero.any()):
                moved = torch.addcmul(own, own, by).where(~zero, by.add_(SIZE / 10))
            else:
                moved = by.mul_(own).add_(own)
            self._values.append((number, own, moved))

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            for number, _, moved in self._values:
                number.data = moved

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, own, _ in self._values:
                number.data = own
