"""Whether a relaxed site may be scored at its probabilities, which makes its divergence analytic."""

from __future__ import annotations

from pyro.poutine import Trace

from pyro_discrete.dependencies import Dependencies
from pyro_discrete.relaxations.extension import Relaxed, rebuilt
from pyro_discrete.relaxations.point import Point

__all__ = ["point_if_sound"]


def point_if_sound(name: str, point: Point | None, guide_trace: Trace, dependencies: Dependencies) -> Point | None:
    """Where the named site is scored, in the guide too: None, at its value, where an analytic divergence is wrong.

    That is where the prior's parameters depend on what the guide draws from the site, or may do so.
    """
    if point is None or point.temperature is not None:
        return point
    if dependencies.known and name not in dependencies.parameters.get(("model", name), ()):
        return point
    node = guide_trace.nodes[name]
    node["fn"] = rebuilt(node["fn"], lambda fn: Relaxed(fn.base, site=fn.site, infer=fn.infer))
    return None
