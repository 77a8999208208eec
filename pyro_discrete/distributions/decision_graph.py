"""Structures made by decisions on a layered graph: sums, draws, noise and best values by one pass over its arcs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_discrete.distributions.structure import GibbsStructure
from pyro_discrete.draws.gumbel import conditional_gumbel, gumbel_like, gumbel_max
from pyro_discrete.draws.log_space import LARGEST, log_sum_exp
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError

__all__ = ["DecisionGraph", "DecisionLayer", "PathStructure", "best_paths"]


@dataclass(frozen=True)
class DecisionLayer:
    """One decision, in whichever state: arc a of state s is row s, column a of integers `[states, arcs]`.

    - `target`: the state of the next layer that it leads to; -1: there is no such arc.
    - `logit`: the place of the logit that it scores, in the flattened logits of one element; -1: it scores nothing.
    - `label`: the number that it writes into the value.
    """

    target: Tensor
    logit: Tensor
    label: Tensor


class PathStructure(GibbsStructure):
    """A structure whose values are paths, of which the best are found by a recursion: a subclass writes `_best`."""

    def argmax(self, scores: Tensor) -> Tensor:
        return self._best(scores, 1)[0]

    def top_k(self, k: int) -> Tensor:
        self.check_top_k(k)
        return self._best(self.logits.detach(), k)

    def _best(self, scores: Tensor, k: int) -> Tensor:
        """The k values of the largest totals of scores like the logits, `[k, *batch, *event]`."""
        raise NotImplementedError


class DecisionGraph(PathStructure):
    """A Gibbs distribution over the paths of a layered graph, from state 0 of the first layer through all layers.

    A subclass writes `layers`, and of the protocol what depends on how a value reads: here a value is the labels along
    its path, `[*batch, layers]`. Everything costs as much as there are arcs; the loops are over layers alone.

    The noise is a Gumbel for every arc, at its log-probability given its state, whether the path comes there or not:
    noise for the arcs of one path alone would jump where an earlier decision flips, and bias what is differentiated.
    """

    def layers(self) -> tuple[DecisionLayer, ...]:
        """The graph, which depends on shapes and settings alone: make it once for all instances."""
        raise NotImplementedError

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return torch.Size((len(self.layers()),))

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        """log Z, and of each layer the log-probabilities of its arcs given the state, `[*batch, states, arcs]`."""
        after: Tensor | None = None
        tables = []
        for layer, arcs in zip(self.layers()[::-1], self._arc_scores(logits)[::-1], strict=True):
            if after is not None:
                arcs = arcs + _at(after, layer.target.clamp(min=0))
            after = log_sum_exp(arcs, -1)
            tables.append(arcs - torch.where(after > -math.inf, after, 0.0).unsqueeze(-1))
        if after is None:
            raise SettingError(f"{type(self).__name__}: a graph without a layer given, at least one expected.")
        return after[..., 0], *tables[::-1]

    def _arc_scores(self, logits: Tensor) -> list[Tensor]:
        """The score of every arc, -inf where there is none: a layer each, `[*batch, states, arcs]`."""
        flat = logits.flatten(-self.param_dim)
        flat = torch.cat([flat, flat.new_zeros(flat.shape[:-1] + (1,))], -1)  # place -1: no score
        return [torch.where(layer.target < 0, -math.inf, _at(flat, layer.logit)) for layer in self.layers()]

    # ----------------------------------------------------------------------------------------------------------- paths

    def _walk(self, shape: torch.Size, choose: Callable[[int, Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        """States `[*shape]` by layer, and labels `[*shape, layers]`; `choose(layer, states)` gives the arcs taken."""
        state = torch.zeros(shape, dtype=torch.long, device=self.logits.device)
        states, labels = [], []
        for t, layer in enumerate(self.layers()):
            arc = choose(t, state)
            states.append(state)
            labels.append(layer.label[state, arc])
            state = layer.target[state, arc]
        return states, torch.stack(labels, -1)

    def _draw(self, shape: torch.Size) -> Tensor:
        tables = self.tables[1:]
        return self._walk(shape, lambda t, state: gumbel_max(_rows(tables[t], state)))[1]

    def _taken(self, value: Tensor) -> list[Tensor]:
        """Whether a value's path takes each arc: a layer each, `[..., states, arcs]`."""
        layers, found = self.layers(), []

        def choose(t: int, state: Tensor) -> Tensor:
            same = (layers[t].label == value[..., t, None, None]) & (layers[t].target >= 0)
            arc = _rows(same.to(torch.uint8), state).argmax(-1)
            here = one_hot_vector(state, layers[t].target[:, 0])
            taken = here.unsqueeze(-1) * one_hot_vector(arc, layers[t].target).unsqueeze(-2)
            found.append(taken.to(self.logits.dtype))
            return arc

        self._walk(value.shape[:-1], choose)
        return found

    def _gathered(self, arcs: Sequence[Tensor]) -> Tensor:
        """Sum of what arcs have, by the logit that they score: `[..., *param]`."""
        param = self.vertex_shape
        places = torch.cat([layer.logit.flatten() for layer in self.layers()]) % (param.numel() + 1)
        flat = torch.cat([each.flatten(-2) for each in arcs], -1)
        total = flat.new_zeros(flat.shape[:-1] + (param.numel() + 1,)).index_add(-1, places, flat)
        return total[..., :-1].unflatten(-1, tuple(param))

    def vertex(self, value: Tensor) -> Tensor:
        return self._gathered(self._taken(value))

    # ----------------------------------------------------------------------------------------------------------- noise

    def _split(self, noise: Tensor) -> list[Tensor]:
        """Flat noise as one view a layer, `[..., states, arcs]`."""
        shapes = [layer.target.shape for layer in self.layers()]
        parts = noise.split([shape.numel() for shape in shapes], -1)
        return [part.unflatten(-1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]

    def perturb(self) -> Tensor:
        flat = torch.cat([table.flatten(-2) for table in self.tables[1:]], -1).clamp(min=-LARGEST)
        return flat + gumbel_like(flat)

    def perturb_given(self, value: Tensor) -> Tensor:
        """States on the path are given the arc taken, the others are free."""
        value = value.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        parts = []
        for table, taken in zip(self.tables[1:], self._taken(value), strict=True):
            table = table.clamp(min=-LARGEST).expand(taken.shape)
            visited = taken.sum(-1, keepdim=True) > 0
            noise = torch.where(visited, conditional_gumbel(table, taken), table + gumbel_like(table))
            parts.append(noise.flatten(-2))
        return torch.cat(parts, -1)

    def read(self, noise: Tensor) -> Tensor:
        best = [part.argmax(-1, keepdim=True) for part in self._split(noise)]
        return self._walk(noise.shape[:-1], lambda t, state: _rows(best[t], state).squeeze(-1))[1]

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """One unit flows from state 0, and is split at every state by the softmax of its arcs' noise."""
        return self._flow([(part / temperature).softmax(-1) for part in self._split(noise)])

    def _flow(self, shares: Sequence[Tensor]) -> Tensor:
        """What comes by each logit when one unit is split at every state by these shares of its arcs."""
        first = shares[0]
        mass = one_hot_vector(torch.zeros(first.shape[:-2], dtype=torch.long, device=first.device), first[..., 0])
        flows = []
        for t, (layer, share) in enumerate(zip(self.layers(), shares, strict=True)):
            flows.append(mass.unsqueeze(-1) * share)
            if t + 1 < len(shares):
                arriving = first.new_zeros(first.shape[:-2] + (shares[t + 1].shape[-2],))
                mass = arriving.index_add(-1, layer.target.clamp(min=0).flatten(), flows[-1].flatten(-2))
        return self._gathered(flows)

    def marginals(self) -> Tensor:
        return self._flow([table.exp() for table in self.tables[1:]])

    # ------------------------------------------------------------------------------------------------------------ best

    def _best(self, scores: Tensor, k: int) -> Tensor:
        layers = self.layers()
        states, arcs = best_paths(self._arc_scores(scores), [layer.target for layer in layers], k, type(self).__name__)
        steps = [layer.label[state, arc] for layer, state, arc in zip(layers, states, arcs, strict=True)]
        return torch.stack(steps, -1).movedim(-2, 0)


def best_paths(
    arcs: Sequence[Tensor], targets: Sequence[Tensor], k: int, name: str
) -> tuple[list[Tensor], list[Tensor]]:
    """States and arcs of the k paths of the largest totals, by layer: `[*batch, k]` each, the best first.

    `arcs` `[*batch, states, arcs]` by layer, -inf where there is no arc. Raises `SettingError` if fewer than k have a
    total above -inf.
    """
    after: Tensor | None = None
    choices: list[Tensor] = []
    for scores, target in zip(arcs[::-1], targets[::-1], strict=True):
        totals = scores.unsqueeze(-1)
        if after is not None:
            totals = totals + after[..., target.clamp(min=0), :]  # [*batch, states, arcs, ranks]
        kept = totals.flatten(-2).topk(min(k, totals.shape[-1] * totals.shape[-2]), -1)
        ranks = totals.shape[-1]
        choices.append(torch.stack([kept.indices // ranks, kept.indices % ranks], -1))
        after = kept.values
    if after is None or after.shape[-1] < k or bool((after[..., 0, k - 1] == -math.inf).any()):
        raise SettingError(f"{name}: the best k={k} values asked for, and fewer have mass.")
    shape = after.shape[:-2] + (k,)
    rank = torch.arange(k, device=after.device).expand(shape)
    state = torch.zeros_like(rank)
    states, taken = [], []
    for choice, target in zip(choices[::-1], targets, strict=True):
        here = choice.flatten(-3, -2)  # [*batch, states x ranks, 2]
        at = (state * choice.shape[-2] + rank).unsqueeze(-1).expand(shape + (2,))
        arc, rank = here.gather(-2, at).unbind(-1)
        states.append(state)
        taken.append(arc)
        state = target[state, arc]
    return states, taken


def _at(table: Tensor, index: Tensor) -> Tensor:
    """`table[..., index]`, of `[..., n]`, by a sum backward that takes each index as often as it stands there."""
    return table.index_select(-1, index.flatten() % table.shape[-1]).unflatten(-1, tuple(index.shape))


def _rows(table: Tensor, state: Tensor) -> Tensor:
    """Of `[..., states, arcs]` the rows at `state` `[...]`: `[..., arcs]`."""
    table = table.expand(state.shape + table.shape[-2:])
    return table.gather(-2, state[..., None, None].expand(state.shape + (1, table.shape[-1]))).squeeze(-2)
