"""Handlers that look at sample statements alone: a program with networks has many more `pyro.param` statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger

from pyro_discrete.sites import is_deterministic

__all__ = ["SiteMessenger", "UnconditionSites", "trace_sites"]


class SiteMessenger(Messenger):
    """A messenger that acts on sample statements, and lets all others go by at the least cost."""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_post_sample(msg)

    def _pyro_sample(self, msg: Any) -> None: ...
    def _pyro_post_sample(self, msg: Any) -> None: ...


class _TraceSites(SiteMessenger, TraceMessenger):
    """Pyro's trace of the sample statements."""

    def _pyro_post_sample(self, msg: Any) -> None:
        TraceMessenger._pyro_post_sample(self, msg)


class _ReplaySites(SiteMessenger, ReplayMessenger):
    """Pyro's replay of the sample statements."""

    def _pyro_sample(self, msg: Any) -> None:
        ReplayMessenger._pyro_sample(self, msg)


class UnconditionSites(SiteMessenger, UnconditionMessenger):
    """Draws observed sites anew. Pyro's own would draw `pyro.deterministic` too, and expand it into its plates."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg):
            UnconditionMessenger._pyro_sample(self, msg)


def trace_sites(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, replayed: Trace | None = None
) -> Trace:
    """The trace of a run of the program, without its params; with the values of `replayed`, if that is given."""
    if replayed is not None:
        program = _ReplaySites(replayed)(program)
    traced = TraceHandler(_TraceSites(), program)
    traced(*args, **kwargs)
    return traced.trace
