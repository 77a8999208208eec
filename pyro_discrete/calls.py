"""A call's arguments taken apart: tensors and floats are what a graph takes, everything else says which graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.graph_rewriting import NotCapturableError
from pyro_discrete.programs.pair import Pair

__all__ = ["Call"]

PLAIN = (bool, int, str, bytes, complex, type(None), torch.dtype, torch.device, slice, range)


class Call:
    """A model and a guide with the arguments of a call.

    - `tensors`, `floats`: those among the arguments, in containers as well, in order.
    - `float_dtype`: as what floats are to be given to a graph; None makes their values a part of the key.
    - `register`: whether the estimators' own parameters are made known to Pyro in the step.
    - `key`: what a graph depends on: shapes, dtypes and devices of the tensors, and the values of what is no tensor.
    - `objects`: the model, the guide, and other objects among the arguments, which are told apart by identity.

    Raises `NotCapturableError` for an argument that may change without being seen to.
    """

    def __init__(self, pair: Pair, register: bool, float_dtype: torch.dtype | None) -> None:
        self.pair, self.register, self._float_dtype = pair, register, float_dtype
        self.tensors: list[Tensor] = []
        self.floats: list[float] = []
        self.objects: list[object] = [pair.model, pair.guide]
        self.key = (
            self._described(pair.args),
            self._described(dict(pair.kwargs)),
            register,
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
        )

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
                raise NotCapturableError(f"an argument is a tensor of type {type(value).__name__} ({value.layout})")
            self.tensors.append(value)
            return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
        if isinstance(value, float):
            if self._float_dtype is None:
                return float, value
            self.floats.append(value)
            return float
        if isinstance(value, list | tuple):
            return type(value), *(self._described(each) for each in value)
        if isinstance(value, dict):
            return dict, *((key, self._described(each)) for key, each in value.items())
        if isinstance(value, PLAIN):
            return type(value), str(value) if isinstance(value, slice) else value
        if type(value).__hash__ is None or type(value).__module__.partition(".")[0] == "numpy":
            raise NotCapturableError(
                f"an argument is of type {type(value).__name__}, whose contents may change unseen; give a tensor"
            )
        self.objects.append(value)
        return id(value)

    def inputs(self) -> list[Tensor]:
        """The tensors, and the floats as tensors."""
        return [*self.tensors, *(torch.tensor(value, dtype=self._float_dtype) for value in self.floats)]

    def stand_ins(self) -> list[Tensor]:
        """Like `inputs`, each an object of its own: what the program has of a tensor elsewhere is no argument."""
        return [t.detach().requires_grad_(t.requires_grad) for t in self.inputs()]

    def with_inputs(self, inputs: Sequence[Tensor]) -> Pair:
        """The pair, called with these in place of its own tensors and, if there are as many, of its floats."""
        remaining = iter(inputs[: len(self.tensors)])
        numbers = iter(inputs[len(self.tensors) :] or self.floats)
        args = self._rebuilt(self.pair.args, remaining, numbers)
        kwargs = self._rebuilt(dict(self.pair.kwargs), remaining, numbers)
        return Pair(self.pair.model, self.pair.guide, args, kwargs)

    def _rebuilt(self, value: Any, tensors: Iterator[Tensor], numbers: Iterator[Any]) -> Any:
        if isinstance(value, Tensor):
            return next(tensors)
        if isinstance(value, float) and self._float_dtype is not None:
            return next(numbers)
        if isinstance(value, list | tuple):
            parts = [self._rebuilt(each, tensors, numbers) for each in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self._rebuilt(each, tensors, numbers) for key, each in value.items()}
        return value
