"""What a run has written to, put back: a run that could not be captured is run again from where it began."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_discrete.inspection.provenance import written_tensors

__all__ = [
    "Writes",
]


class Writes(TorchDispatchMode):
    """While it is entered, keeps what tensors held before operations wrote to them, and where generators stood."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[Any, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[Generator, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = written_tensors(func, args, kwargs)
        if func is torch.ops.aten.native_batch_norm.default:  # whose schema does not say so
            written = [t for t in args[3:5] if t is not None]
        for tensor in written:
            if isinstance(tensor, FakeTensor):
                continue
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            if key not in self._tensors:
                self._tensors[key] = (tensor.detach(), tensor.detach().clone())
        generator = kwargs.get("generator")
        if generator is not None:
            self._generators.setdefault(id(generator), (generator, generator.get_state()))
        return func(*args, **kwargs)

    @torch.no_grad()
    def undo(self) -> None:
        """Put all of it back."""
        for tensor, value in reversed(self._tensors.values()):
            tensor.copy_(value)
        for generator, state in self._generators.values():
            generator.set_state(state)
