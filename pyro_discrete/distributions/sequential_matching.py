"""Matchings in which row after row takes a column that is left, by its own race."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.distributions.matching import Matching
from pyro_discrete.distributions.structure import Structure, first_element
from pyro_discrete.draws.gumbel import conditional_gumbel, gumbel_like
from pyro_discrete.draws.log_space import LARGEST
from pyro_discrete.draws.soft_scores import log_left
from pyro_discrete.errors import SettingError

__all__ = ["SequentialMatching"]


class SequentialMatching(Matching):
    r"""Matchings of rows and columns: row after row takes one of the columns left, in proportion to exp(logit).

    .. math:: \log p(m) = \sum_i \Big(l_{i, m_i} - \log \sum_{j \notin m_1 \ldots m_{i-1}} e^{l_{ij}}\Big)

    - `logits` `[*batch, n, n]`: of row and column. A value: the column of each row, integers `[*batch, n]`.

    Any n, in n steps. The law depends on the order of the rows; `GibbsMatching` has one that does not, for small n.
    Raises `SettingError` for logits that are not square and, under validation, for logits of -inf: a row could find
    its only column taken, and mass would be lost.

    Source: the race of each row by Maddison, Tarlow and Minka (2014), A* sampling; its noise given the matching by
    truncated Gumbels: Struminsky et al. (2021), Leveraging recursive Gumbel-max trick.

    >>> d = SequentialMatching(torch.tensor([[0.0, 50.0, 0.0], [0.0, 50.0, 20.0], [0.0, 0.0, 0.0]]))
    >>> d.sample(), d.cardinality
    (tensor([1, 2, 0]), 6.0)
    """

    def _check_logits(self) -> None:
        super()._check_logits()
        lost = (self.logits == -math.inf).flatten(-2).any(-1)
        if bool(lost.any()):
            raise SettingError(
                f"SequentialMatching: logits of -inf{first_element(lost)} given, finite ones expected: a row could "
                "find its only column taken, and the law would lose mass. GibbsMatching takes them."
            )

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_mass(self.vertex(value))

    def log_mass(self, vertex: Tensor) -> Tensor:
        """At a soft row what is left of a column is what the row itself and later ones have of it."""
        remaining = log_left(vertex.flip(-2).cumsum(-2).flip(-2), self.logits)
        return ((vertex * self.logits).sum(-1) - remaining).sum(-1)

    def _draw(self, shape: torch.Size) -> Tensor:
        return self._greedy(self.logits + gumbel_like(self.logits.expand(shape + self.vertex_shape)))

    def _greedy(self, scores: Tensor) -> Tensor:
        """Row after row takes the best column that is left."""
        taken = torch.zeros(scores.shape[:-2] + scores.shape[-1:], dtype=torch.bool, device=scores.device)
        columns = []
        for row in scores.unbind(-2):
            column = row.masked_fill(taken, -math.inf).argmax(-1, keepdim=True)
            columns.append(column)
            taken = taken.scatter(-1, column, True)
        return torch.cat(columns, -1)

    def perturb(self) -> Tensor:
        return (self.logits + gumbel_like(self.logits)).flatten(-2)

    def read(self, noise: Tensor) -> Tensor:
        return self._greedy(noise.unflatten(-1, (self.n, self.n)))

    def perturb_given(self, value: Tensor) -> Tensor:
        """In a row the columns left are given that the row's own is the largest; those gone before are free."""
        value = value.expand(torch.broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        taken = self.vertex(value)
        left = taken.flip(-2).cumsum(-2).flip(-2) > 0
        logits = self.logits.expand(taken.shape)
        least = logits.detach().amin(-1, keepdim=True) - LARGEST
        given = conditional_gumbel(torch.where(left, logits, least), taken)
        return torch.where(left, given, logits + gumbel_like(logits)).flatten(-2)

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """The greedy reading softened: a row's softmax, over what earlier rows left of the columns."""
        left, rows = torch.zeros_like(noise[..., : self.n]), []
        least = torch.finfo(noise.dtype).tiny ** 0.4  # whose slope has a slope that is a number
        for row in noise.unflatten(-1, (self.n, self.n)).unbind(-2):
            share = ((row + left) / temperature).softmax(-1)
            rows.append(share)
            before = F.pad(share.cumsum(-1)[..., :-1], (1, 0))
            after = F.pad(share.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
            left = left + (before + after).clamp(min=least).log()  # 1 - share, in all its digits
        return torch.stack(rows, -2)

    @classmethod
    def small(cls) -> list[Structure]:
        logits = torch.tensor(
            [[0.3, -0.9, 1.1, 0.2], [-0.4, 0.8, 0.1, -1.2], [0.5, 0.0, 0.7, -0.3], [1.3, -0.6, 0.4, 0.9]]
        )
        logits = logits.double()
        return [cls(logits), cls(torch.stack([logits[:3, :3], logits[1:, 1:]]))]
