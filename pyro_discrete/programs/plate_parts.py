"""Plates of which a run sees a part: their terms count for the whole, as those of a subsample do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyro_discrete.programs.pair import SiteMessenger

__all__ = ["PlateParts"]


class PlateParts(SiteMessenger):
    """Around a step, makes each of these plates, of whatever size, a subsample of one `whole / part` times as large.

    Frames say so as Pyro's own subsampling does, so that all that reads a plate's full size (scales, an estimator's
    costs freed of them, the bounds of independent data) treats it alike.

    - `key`: what a captured step depends on.

    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
    >>> with PlateParts(["data"], part=2, whole=6), pyro.poutine.trace() as traced:
    ...     model(torch.zeros(2))
    >>> traced.trace.nodes["x"]["scale"], traced.trace.nodes["x"]["cond_indep_stack"][0].full_size
    (3.0, 6)
    """

    def __init__(self, plates: Iterable[str], part: int, whole: int) -> None:
        super().__init__()
        self.plates: frozenset[str] = frozenset(plates)
        self.part: int = part
        self.whole: int = whole

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(sorted(self.plates)), self.part, self.whole

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        inside = sum(frame.name in self.plates for frame in frames)
        if inside:
            msg["cond_indep_stack"] = tuple([self._widened(frame) for frame in frames])
            msg["scale"] = msg["scale"] * (self.whole / self.part) ** inside

    def _widened(self, frame: Any) -> Any:
        if frame.name not in self.plates:
            return frame
        return frame._replace(full_size=(frame.full_size or frame.size) * self.whole // self.part)
