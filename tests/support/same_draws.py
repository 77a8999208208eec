"""The random numbers of one run of all particles, given to runs of some: what differs is then no draw's doing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SameDraws"]


class SameDraws(TorchDispatchMode):
    """Keeps each random operation's result by the site it is made at, and gives chunks their particles' part of it.

    `shared`: the sites that the particles have in common, of which each chunk gets what the first particles had.
    `front`: how many rows of a particle stand before the particles where both are in one dim.
    """

    def __init__(self, shared: Collection[str] = (), front: int = 1, samples: int = 1) -> None:
        super().__init__()
        self.shared, self.front, self.samples = shared, front, samples
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.chunks: Sequence[int] | None = None
        self.run, self.site, self.count = -1, "", 0

    @contextmanager
    def recording(self) -> Any:
        """The run of all particles."""
        self.kept, self.chunks, self.run = {}, None, -1
        with self:
            yield

    @contextmanager
    def given(self, chunks: Sequence[int]) -> Any:
        """Runs of so many particles each, one after the other, as often as they are made."""
        self.chunks, self.run = chunks, -1
        with self:
            yield

    def around(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide, whose beginning is that of a run."""

        def begun(*args: Any, **kwargs: Any) -> Any:
            self.run += 1
            self.at("")
            with _Announce(self):
                return guide(*args, **kwargs)

        return begun

    def at(self, site: str) -> None:
        self.site, self.count = site, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags or not torch.is_tensor(out) or out.dim() == 0:
            return out
        key, self.count = (self.site, self.count), self.count + 1
        if self.chunks is None:
            self.kept[key] = out.clone()
        else:
            out.copy_(self._part(key, out.shape))
        return out

    def _part(self, key: tuple[str, int], shape: torch.Size) -> Tensor:
        assert self.chunks is not None
        whole, number = self.kept[key], self.run % len(self.chunks)
        size, total = self.chunks[number], sum(self.chunks)
        if whole.shape == shape:
            return whole
        (dim,) = [d for d, (a, b) in enumerate(zip(whole.shape, shape, strict=True)) if a != b]
        rest = whole.shape[dim] // total
        assert rest * size == shape[dim], (key, whole.shape, shape)
        front = next(f for f in (self.front * self.samples, self.samples, 1) if rest % f == 0)
        start = 0 if key[0] in self.shared else sum(self.chunks[:number])
        split = whole.reshape(*whole.shape[:dim], front, total, rest // front, *whole.shape[dim + 1 :])
        return split.narrow(dim + 1, start, size).reshape(shape)


class _Announce(Messenger):
    """Says at which site a run is."""

    def __init__(self, draws: SameDraws) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, msg: Any) -> None:
        self.draws.at(msg["name"])
