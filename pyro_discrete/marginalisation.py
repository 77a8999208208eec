"""Discrete sites of the model that the guide does not have: summed out exactly, whatever the guide's estimators.

The model runs with these sites' values in dims left of all plates (and of the rows). The log-probabilities that carry
such dims are contracted, each connected component of them to one marginal log-likelihood, and a trace in which this
term stands for its members goes on to the objective, for which it is an observed site like any other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.components import Component, components, contract, unpacked
from pyro_discrete.enumerated_sites import Marginalise
from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.dims import ROWS_PLATE

__all__ = ["SCALES_DIFFER", "Known", "absorbed", "collapsed"]

SCALES_DIFFER = (
    "the scales of these differ, so there is no marginal likelihood to scale. Put them into the same subsampled plate "
    "and poutine.scale (a kl_weight is one, too: it weighs the sites that the guide draws), or draw them in the guide "
    "too."
)


def _common_scale(component: Component) -> Any:
    """The scale of all factors; it goes outside the logarithm."""
    scales = [f.message["scale"] for f in component.factors]
    first = next((s for s in scales if torch.is_tensor(s)), scales[0])
    if torch.is_tensor(first) and first.numel() > 1:
        raise EnumerationError(f"Site {component.sites[0]!r} of the model alone has a poutine.scale of many elements.")
    # tensors are compared by identity where that is enough, as a step that is to be captured reads no values
    if any(s is not first and s != first for s in scales):
        listed = ", ".join(f"{f.name!r}: {float(s):.6g}" for f, s in zip(component.factors, scales, strict=True))
        raise EnumerationError(
            f"Sites {', '.join(map(repr, component.sites))} of the model alone are summed out together with the sites "
            f"that depend on them ({listed}), but {SCALES_DIFFER}"
        )
    return first


class Known(TorchDistribution):
    """A site whose log-probability is known: zero where another term holds it, or the marginal of a component."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, log_prob: Tensor) -> None:
        self._log_prob = log_prob
        super().__init__(log_prob.shape, torch.Size(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob


def collapsed(model_trace: Trace, marginalise: Marginalise, batch_dims: int) -> tuple[Trace, dict[str, list[str]]]:
    """The trace with each component's marginal log-likelihood in the place of its members', and each one's members.

    The term comes right after its last member (what a site influences, it must come after), in the plates that all
    members are in, with their scale. The members stay, with a log-probability of zero, where others look for them.
    """
    found, names = components(model_trace, marginalise, batch_dims)
    absorbed = {f.name: f.value for c in found for f in c.factors}
    after = {c.factors[-1].name: c for c in found}
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        if name not in absorbed:
            trace.add_node(name, **msg)
            continue
        rows = [f.size for f in msg["cond_indep_stack"] if f.name == ROWS_PLATE]
        zero = absorbed[name].new_zeros([*rows, *(1,) * batch_dims])
        trace.add_node(name, **{**msg, **_with(zero), "scale": 1.0})
        if name in after:
            component = after[name]
            term = contract(component)
            log_prob = unpacked(term, term._pyro_dims, names)  # type: ignore[attr-defined]
            node = {**msg, **_with(log_prob), "scale": _common_scale(component)}
            shared = frozenset.intersection(*(frozenset(f.message["cond_indep_stack"]) for f in component.factors))
            node["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f in shared)
            node |= {"name": component.label, "value": zero, "is_observed": True, "infer": {}}
            trace.add_node(component.label, **node)
    return trace, {c.label: [f.name for f in c.factors] for c in found}


def absorbed(model_trace: Trace, names: Collection[str]) -> Trace:
    """The trace with the named sites marked as `collapsed` marks the members of a component."""
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        trace.add_node(name, **({**msg, **_with(torch.zeros(()))} if name in names else msg))
    return trace


def _with(log_prob: Tensor) -> dict[str, Any]:
    return {"fn": Known(log_prob), "mask": None, "args": (), "kwargs": {}}
