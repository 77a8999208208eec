"""The exact importance-weighted bound of a small pair: brute force over all K-tuples, independent of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete.diagnostics.assignments import AssignValues, Choices
from pyro_discrete.diagnostics.exact import Exact
from pyro_discrete.programs.parameters import leaf_parameters, parameter_names

__all__ = ["BoundOracle"]

Program = Callable[..., Any]


@dataclass(frozen=True)
class BoundOracle:
    r"""Minus the exact importance-weighted bound of a model and a guide, and its gradient.

    .. math:: \mathcal L = -\sum_g q(g) \Big[ \log\frac{p(g)}{q(g)} + s \sum_n \sum_{a_1 \dots a_K}
        \prod_k q(a_k \mid g) \, \log \frac1K \sum_k w_n(a_k, g) \Big]

    with g the guide's sites outside the data's plates and the subsamples, a those inside, each over all joint values of
    all elements: every K-tuple of them, so that nothing is assumed of independence between data.

    - `particles`: K. `plates`: the plates of independent data; the frames are vectorised plates, or none at all.
    - `scale`: what multiplies the bound (the subsampled plates' full size / size).
    - `budget`: the most joint assignments. `nodes`: quadrature nodes for each element of a `Normal` site.
    """

    particles: int
    plates: Collection[str] = ()
    scale: float = 1.0
    budget: int = 2_000
    nodes: int = 20

    def __call__(self, model: Program, guide: Program, *args: Any) -> Exact:
        """The exact answer for `model(*args)` and `guide(*args)`; touches no `.grad`."""
        groups: dict[Any, list[_Assignment]] = {}
        choices, more, count = Choices(self.budget), True, 0
        while more:
            choices.restart()
            assign = AssignValues(choices, self.nodes)
            found = self._assignment(model, guide, args, assign)
            if found.weight.item() > 0:
                groups.setdefault(found.outside, []).append(found)
            count += 1
            more = choices.advance()
        loss = torch.stack([self._group(each) for each in groups.values()]).sum()
        leaves = leaf_parameters(loss)
        gradients = torch.autograd.grad(loss, leaves) if leaves else ()
        names = parameter_names({id(leaf): leaf for leaf in leaves}, {"model": model, "guide": guide})
        return Exact(
            loss.item(),
            {names[id(leaf)]: g.double() for leaf, g in zip(leaves, gradients, strict=True)},
            {names[id(leaf)]: leaf for leaf in leaves},
            count,
        )

    def _assignment(self, model: Program, guide: Program, args: tuple[Any, ...], assign: AssignValues) -> _Assignment:
        with assign:
            guide_trace = poutine.trace(guide).get_trace(*args)
        with AssignValues(Choices(1), self.nodes, assign.values):
            model_trace = poutine.trace(model).get_trace(*args)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        log_weight: Tensor | float = 0.0
        outer: Tensor = torch.zeros((), dtype=torch.float64)
        outside: list[Any] = list(assign.subsets)
        for trace, sign in ((guide_trace, -1.0), (model_trace, 1.0)):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or name in [n for n, _ in assign.subsets]:
                    continue
                if type(site["fn"]).__name__ == "_Subsample":
                    continue
                frames = {f.name: f.dim for f in site["cond_indep_stack"]}
                term = sign * torch.as_tensor(site["log_prob"]).double()
                if set(self.plates) <= frames.keys():
                    log_weight = log_weight + self._per_datum(term, [frames[p] for p in self.plates]) / self.scale
                else:
                    outer = outer + term.sum()
                    if trace is guide_trace and not site["is_observed"]:
                        outside.append((name, tuple(torch.as_tensor(site["value"]).detach().flatten().tolist())))
        return _Assignment(tuple(outside), assign.weight, torch.as_tensor(log_weight), outer)

    @staticmethod
    def _per_datum(term: Tensor, dims: list[int | None]) -> Tensor:
        """A term `[*batch]` summed over all dims but the data's: `[data]`."""
        kept = sorted(term.dim() + d for d in dims if d is not None)
        others = [d for d in range(term.dim()) if d not in kept]
        return (term.sum(others) if others else term).reshape(-1)

    def _group(self, each: list[_Assignment]) -> Tensor:
        """The summand of one value of what lies outside."""
        weight = torch.stack([a.weight for a in each])
        whole = weight.sum()
        log_w = torch.stack([a.log_weight for a in each])  # [A, data]
        inside, assignments = weight / whole, len(each)
        probability = weight.new_ones((1,) * self.particles)
        parts = []
        for k in range(self.particles):
            shape = [1] * self.particles
            shape[k] = assignments
            parts.append(log_w.reshape(*shape, -1))
            probability = probability * inside.reshape(shape)
        joint = torch.stack(torch.broadcast_tensors(*parts)).logsumexp(0) - math.log(self.particles)
        bound = (probability.unsqueeze(-1) * joint).sum()
        return -(whole * (each[0].outer + self.scale * bound))


@dataclass(frozen=True)
class _Assignment:
    """One joint value: of what lies outside, its probability, log w of each datum, and the shared terms."""

    outside: tuple[Any, ...]
    weight: Tensor
    log_weight: Tensor
    outer: Tensor
