"""Chains of states with a weight for every pair of neighbours, in logarithmic depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.decision_graph import PathStructure, best_paths
from pyro_discrete.distributions.structure import Structure, float_or_inf
from pyro_discrete.distributions.supports import States, check_square
from pyro_discrete.draws.gumbel import conditional_gumbel, gumbel_like
from pyro_discrete.draws.log_space import LARGEST, log_sum_exp, near_zero, running
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError

__all__ = ["LinearChain"]


SCAN_TABLE = 2**13
"""Elements of the table by which two links are joined; beyond it, one link after another is faster."""


class LinearChain(PathStructure):
    r"""Paths through T states: :math:`p(z) \propto \exp\big(l_{0, 0, z_0} + \sum_{t \ge 1} l_{t, z_{t-1}, z_t}\big)`.

    - `logits` `[*batch, T, S, S]`, `logits[t, from, to]`; of the first link row 0 alone is read.
      `LinearChain.from_potentials(initial, links)` takes them apart.
    - A value: the states, integers `[*batch, T]`. Its vertex: the transitions taken, `[*batch, T, S, S]`, the first
      one from row 0. A program sees soft states `[T, S]`; they are scored as pairs.

    Sums, draws and flows go in log2(T) rounds (T links at once), sums over many states link by link. Raises
    `SettingError` for logits without three dims and, under validation, where no path has mass.

    Source: Lafferty, McCallum and Pereira (2001), Conditional random fields; Särkkä and García-Fernández (2021),
    Temporal parallelization of Bayesian smoothers.

    >>> initial, links = torch.tensor([0.0, 50.0]), torch.tensor([[0.0, 50.0], [50.0, 0.0]]).expand(3, 2, 2)
    >>> d = LinearChain.from_potentials(initial, links)
    >>> d.sample(), d.mode, d.cardinality
    (tensor([1, 0, 1, 0]), tensor([1, 0, 1, 0]), 16.0)
    """

    param_dim = 3
    value_dims: tuple[str, ...] = ("link",)
    number_name: str = "state"

    @classmethod
    def from_potentials(cls, initial: Tensor, links: Tensor, *, validate_args: bool | None = None) -> LinearChain:
        """Of the first state's logits `[*batch, S]`, and those of the T - 1 transitions `[*batch, T - 1, S, S]`.

        Batch dims are broadcast. Raises `SettingError` for other shapes.
        """
        if initial.dim() < 1 or links.dim() < 3 or links.shape[-2:] != initial.shape[-1:] * 2:
            raise SettingError(
                f"LinearChain: initial {list(initial.shape)} and links {list(links.shape)} given, [.., S] and "
                "[.., T - 1, S, S] expected."
            )
        batch = torch.broadcast_shapes(initial.shape[:-1], links.shape[:-3])
        first = initial.expand(batch + initial.shape[-1:])[..., None, None, :]
        others = first.new_zeros(batch + (1, links.shape[-1] - 1, links.shape[-1]))
        logits = torch.cat([torch.cat([first, others], -2), links.expand(batch + links.shape[-3:])], -3)
        return cls(logits, validate_args=validate_args)

    def _check_shape(self, logits: Tensor) -> None:
        super()._check_shape(logits)
        check_square(logits, type(self).__name__)
        if not logits.shape[-3]:
            raise SettingError(f"LinearChain: logits {list(logits.shape)} given, at least one link expected.")

    def _no_mass(self) -> str:
        first, others = self.logits[..., :1, 0, :].amax(-1), self.logits[..., 1:, :, :].amax((-2, -1))
        links = torch.cat([first, others], -1)
        closed = (links == -math.inf).nonzero()
        if len(closed):
            return f"all logits of link {closed[0, -1].item()} are -inf."
        return "its links above -inf do not join to a path."

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return logits.shape[-3:-2]

    @property
    def states(self) -> int:
        """The number of states."""
        return self.logits.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> States:
        return States(self.states)

    @property
    def cardinality(self) -> float:
        length, states = int(self.event_shape[0]), int(self.states)  # a traced program's sizes are tensors of 64 bits
        return float_or_inf(length * math.log(states), lambda: states**length)

    def _support_list(self) -> Tensor:
        return torch.tensor(list(itertools.product(range(self.states), repeat=self.event_shape[0])))

    @property
    def possible(self) -> Tensor:
        first = torch.arange(self.states, device=self.logits.device).unsqueeze(-1) == 0
        read = torch.ones_like(self.logits, dtype=torch.bool)
        read[..., 0, :, :] = first
        return read & (self.logits > -math.inf)

    # ----------------------------------------------------------------------------------------------------------- sums

    @property
    def numbers(self) -> int:
        return self.states

    def weighted(self, weights: Tensor) -> tuple[LinearChain, Tensor]:
        logits = self.logits + weights.unsqueeze(-2)  # to each state, from wherever
        return self.like(logits), logits.new_zeros(logits.shape[:-3])

    def weighted_pairs(self, weights: Tensor) -> LinearChain:
        return self.like(self.logits + F.pad(weights, (0, 0, 0, 0, 1, 0)))

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        """log Z, log-probabilities of the first state `[*batch, S]`, and of each given the last `[*batch, T-1, S, S]`.

        Sums over what follows a state are needed up to a constant alone, as each row is normalised; log Z collects
        the constants.
        """
        initial, links = logits[..., 0, 0, :], logits[..., 1:, :, :]
        total = logits.new_zeros(logits.shape[:-3])
        if links.shape[-3]:
            after = _sums_after(links.movedim(-3, 0))  # [T - 1, *batch, S]
            arcs = links + after.movedim(0, -2).unsqueeze(-2)
            before = log_sum_exp(arcs, -1)  # [*batch, T - 1, S]
            given = arcs - torch.where(before > -math.inf, before, 0.0).unsqueeze(-1)
            own, best = before[..., 1:, :].detach(), after[:-1].movedim(0, -2).detach().max(-1, keepdim=True)
            missing = own.gather(-1, best.indices) - best.values
            total = torch.where(best.values > -math.inf, missing, 0.0).sum((-2, -1))
            initial = initial + before[..., 0, :]
        else:
            given = links
        sum_of_all = log_sum_exp(initial, -1)
        first = initial - torch.where(sum_of_all > -math.inf, sum_of_all, 0.0).unsqueeze(-1)
        return sum_of_all + total, first, given

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of what each state has given the last: a difference of large sums would lose its digits."""
        if self._validate_args:
            self._validate_sample(value)
        _, first, given = self.tables
        value = value.long()
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = value.expand(shape + value.shape[-1:])
        at_first = first.expand(shape + first.shape[-1:]).gather(-1, value[..., :1]).squeeze(-1)
        pairs = value[..., :-1] * self.states + value[..., 1:]
        flat = given.flatten(-2).expand(shape + given.shape[-3:-2] + (self.states**2,))
        return at_first + flat.gather(-1, pairs.unsqueeze(-1)).squeeze(-1).sum(-1)

    def log_mass(self, vertex: Tensor) -> Tensor:
        """Linear in the vertex, by what each state has given the last: `log_prob` says why."""
        _, first, given = self.tables
        log_p = torch.cat([self._from_row_0(first), given], -3)
        term = vertex * torch.where(vertex != 0, log_p, 0.0)
        return term.flatten(-3).sum(-1)

    def _from_row_0(self, first: Tensor) -> Tensor:
        """What each first state has `[..., S]` as the first link, `[..., 1, S, S]`: zero in rows other than 0."""
        return F.pad(first[..., None, None, :], (0, 0, 0, self.states - 1))

    def vertex(self, value: Tensor) -> Tensor:
        hot = one_hot_vector(value, self.logits)
        start = one_hot_vector(torch.zeros_like(value[..., :1]), self.logits)
        return torch.cat([start, hot[..., :-1, :]], -2).unsqueeze(-1) * hot.unsqueeze(-2)

    def value_of(self, vertex: Tensor) -> Tensor:
        return self.index_weights(vertex).argmax(-1)

    def index_weights(self, vertex: Tensor) -> Tensor:
        return vertex.sum(-2)

    # ----------------------------------------------------------------------------------------------------------- noise

    def _draw(self, shape: torch.Size) -> Tensor:
        """One Gumbel vector a place, whichever state comes before: only one does."""
        _, first, given = self.tables
        noise = gumbel_like(first.new_empty(shape + (self.event_shape[0], self.states)))
        return _followed((first + noise[..., 0, :]).argmax(-1), (given + noise[..., 1:, None, :]).argmax(-1))

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Flat noise as views: of the first state `[..., S]`, and of the others `[..., T - 1, S, S]`."""
        states = self.states
        return noise[..., :states], noise[..., states:].unflatten(-1, (self.event_shape[0] - 1, states, states))

    def perturb(self) -> Tensor:
        _, first, given = self.tables
        flat = torch.cat([first, given.flatten(-3)], -1).clamp(min=-LARGEST)
        return flat + gumbel_like(flat)

    def perturb_given(self, value: Tensor) -> Tensor:
        """Of each place the row of the state before is given the state; the other rows are free."""
        _, first, given = (table.clamp(min=-LARGEST) for table in self.tables)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        hot = one_hot_vector(value.expand(shape + value.shape[-1:]), self.logits)
        first, given = first.expand(shape + first.shape[-1:]), given.expand(shape + given.shape[-3:])
        chosen = hot[..., 1:, :].unsqueeze(-2).expand(given.shape)
        visited = hot[..., :-1, :].unsqueeze(-1) > 0
        others = torch.where(visited, conditional_gumbel(given, chosen), given + gumbel_like(given))
        return torch.cat([conditional_gumbel(first, hot[..., 0, :]), others.flatten(-3)], -1)

    def read(self, noise: Tensor) -> Tensor:
        first, others = self._split(noise)
        return _followed(first.argmax(-1), others.argmax(-1))

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        first, others = self._split(noise)
        return self._flow((first / temperature).softmax(-1), (others / temperature).softmax(-1))

    def _flow(self, first: Tensor, shares: Tensor) -> Tensor:
        """Weights of transitions `[..., T, S, S]`, of the first state's weights and of the shares of what follows."""
        start = self._from_row_0(first)
        if not shares.shape[-3]:
            return start
        maps = shares.movedim(-3, 0)
        if _by_scan(maps):
            mass = running(first, maps, lambda x, share: (x.unsqueeze(-2) @ share).squeeze(-2), torch.matmul)
        else:
            steps = [first]
            for share in maps[:-1].unbind(0):
                steps.append((steps[-1].unsqueeze(-2) @ share).squeeze(-2))
            mass = torch.stack(steps)
        mass = mass / mass.detach().sum(-1, keepdim=True)  # one, but for the rounding of as many links as there are
        return torch.cat([start, mass.movedim(0, -2).unsqueeze(-1) * shares], -3)

    def marginals(self) -> Tensor:
        _, first, given = self.tables
        return self._flow(first.exp(), given.exp())

    # ------------------------------------------------------------------------------------------------------------ best

    def _best(self, scores: Tensor, k: int) -> Tensor:
        target = torch.arange(self.states, device=scores.device).expand(self.states, self.states)
        arcs = list(scores.unbind(-3))
        arcs[0] = arcs[0][..., :1, :]
        targets: Sequence[Tensor] = [target[:1], *[target] * (len(arcs) - 1)]
        taken = best_paths(arcs, targets, k, type(self).__name__)[1]
        return torch.stack(taken, -1).movedim(-2, 0)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor([0.3, -0.9, 1.1, 0.2, -0.4, 0.8, 0.1, -1.2, 0.5], dtype=torch.float64)
        logits = torch.stack([logits, logits.flip(0), -1.5 * logits]).unflatten(-1, (3, 3))
        masked = logits.clone()
        masked[0, 0, 1] = masked[1, 2, 0] = masked[2, 1, 1] = -math.inf
        batch = torch.stack([logits[:2], masked[1:]])
        return [cls(logits), cls(masked), cls(batch), cls(logits[:1]), cls(logits[:, :2, :2].repeat(2, 1, 1)[:5] * 1.5)]


def _by_scan(maps: Tensor) -> bool:
    """Whether links `[n, *batch, S, S]` are joined in pairs, by tables of S^3, rather than gone through one by one."""
    return maps[0].numel() * maps.shape[-1] <= SCAN_TABLE


def _sums_after(links: Tensor) -> Tensor:
    """Of links `[n, *batch, S, S]` the sums over all that follows, at the state after each and up to a constant."""

    def before(after: Tensor, link: Tensor) -> Tensor:
        return near_zero(log_sum_exp(link + after.unsqueeze(-2), -1), (-1,))[0]

    def joined(second: Tensor, first: Tensor) -> Tensor:
        # states first in memory: sums over the few of them then run along all links at once
        left, right = (matrix.movedim((-2, -1), (0, 1)).contiguous() for matrix in (first, second))
        table = left.unsqueeze(2) + right.unsqueeze(0)
        return near_zero(log_sum_exp(table, 1), (0, 1))[0].movedim((0, 1), (-2, -1))

    end = links.new_zeros(links.shape[1:-1])
    if _by_scan(links):
        return running(end, links.flip(0), before, joined).flip(0)
    sums = [end]
    for link in links.unbind(0)[:0:-1]:
        sums.append(before(sums[-1], link))
    return torch.stack(sums[::-1])


def _followed(first: Tensor, following: Tensor) -> Tensor:
    """States `[..., T]`, of the first one `[...]` and of what follows each state, `[..., T - 1, S]`."""
    if not following.shape[-2]:
        return first.unsqueeze(-1)

    def step(state: Tensor, maps: Tensor) -> Tensor:
        return maps.gather(-1, state.unsqueeze(-1)).squeeze(-1)

    maps = following.movedim(-2, 0)
    states = running(first, maps, step, lambda one, other: other.gather(-1, one))
    return torch.cat([states, step(states[-1:], maps[-1:])]).movedim(0, -1)
