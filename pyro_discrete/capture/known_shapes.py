"""What `make_fx` notes of each node's value, its shape and kind, made once for values that are alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["known_shapes"]


@contextmanager
def known_shapes() -> Iterator[None]:
    """Within, a trace describes each value by a tensor without data, the same one for values that are alike.

    By itself `make_fx` sets up a mode for each node; by one mode for all it still makes a tensor each, a fifth of the
    time in which a step is traced. Nobody may change these tensors.
    """
    with tracing(TracingContext(_Alike(allow_fallback_kernels=True))):
        yield


class _Alike(FakeTensorMode):
    """Makes one empty tensor for all that are alike."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._made: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.empty_strided.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        key = (*map(tuple, args), *sorted((name, str(value)) for name, value in (kwargs or {}).items()))
        if key not in self._made:
            self._made[key] = super().__torch_dispatch__(func, types, args, kwargs)
        return self._made[key]
