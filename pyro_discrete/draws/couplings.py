"""Uniform draws that depend on one another, and categories factorised into the bits that such draws decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like

__all__ = [
    "COPULAS",
    "FACTORISATIONS",
    "BinaryFactorisation",
    "Copula",
    "DirichletCopula",
    "IndependentCopula",
    "balanced_tree",
    "stick_breaking",
]


class Copula(ABC):
    """How n uniform draws depend on one another.

    With u_1, ..., u_n of the copula, the events u_i < r happen with probability r each, and two of them together with
    probability r times `together(log r)`.
    """

    @abstractmethod
    def log_uniforms(self, draws: int, like: Tensor) -> Tensor:
        """The logarithms of coupled uniforms `[draws, *like.shape]`."""

    @abstractmethod
    def together(self, log_r: Tensor, draws: int) -> Tensor:
        """P(u_j < r given u_i < r), for r of at most one half given by its logarithm; of the shape of `log_r`."""


class IndependentCopula(Copula):
    """Draws that do not depend on one another."""

    def log_uniforms(self, draws: int, like: Tensor) -> Tensor:
        return -_exponentials(draws, like)

    def together(self, log_r: Tensor, draws: int) -> Tensor:
        return log_r.exp()


class DirichletCopula(Copula):
    r"""u_i = (1 - d_i)^{n-1} with d uniform on the simplex: as negatively dependent, in pairs, as n draws can be.

    .. math:: P(u_i < r, u_j < r) = \max(0, 2 r^{1/(n-1)} - 1)^{n-1}

    For two draws u_2 = 1 - u_1. Source: Dimitriev and Zhou (2021), ARMS, section 3.
    """

    def log_uniforms(self, draws: int, like: Tensor) -> Tensor:
        e = _exponentials(draws, like)
        zero = torch.zeros_like(e[:1])
        before = torch.cat([zero, e[:-1].cumsum(0)])
        after = torch.cat([e[1:].flip(0).cumsum(0).flip(0), zero])
        others = before + after  # not the total minus e: 1 - d_i would cancel where d_i is almost 1
        return (draws - 1) * (others.log() - (others + e).log())

    def together(self, log_r: Tensor, draws: int) -> Tensor:
        root = (-log_r / (draws - 1)).clamp(max=1.0).exp()  # r^{-1/(n-1)}; from 2 upwards the pair never happens
        return (2 - root).clamp(min=0).pow(draws - 1)


def _exponentials(draws: int, like: Tensor) -> Tensor:
    return (-gumbel_like(like.detach().expand(draws, *like.shape))).exp()


COPULAS: Mapping[str, Copula] = {"dirichlet": DirichletCopula(), "independent": IndependentCopula()}
"""The copulas by the names that ARMS and CARMS take."""


@dataclass(frozen=True)
class BinaryFactorisation:
    """A binary tree over C categories: its C - 1 nodes split a set of categories each.

    - `left`, `right` `[C - 1, C]` (bool): which categories lie on which side of a node. A node matters for a category
      ("is live") where that is on one of its sides; its bit is 1 for the right side.
    """

    left: Tensor
    right: Tensor

    def logits(self, categorical: Tensor) -> Tensor:
        """The nodes' logits `[..., C - 1]` of categorical logits `[..., C]`; differentiable, and finite for -inf."""
        bounded = categorical.clamp(min=torch.finfo(categorical.dtype).min / 8).unsqueeze(-2)

        def mass(side: Tensor) -> Tensor:
            return bounded.masked_fill(~side.to(categorical.device), -torch.inf).logsumexp(-1)

        return mass(self.right) - mass(self.left)

    def category(self, bits: Tensor) -> Tensor:
        """The category (integer, `[...]`) that the nodes' bits `[..., C - 1]` lead to."""
        left, right = self.left.to(bits), self.right.to(bits)
        return ((1 - bits) @ right + bits @ left).argmin(-1)

    def path(self, category: Tensor) -> tuple[Tensor, Tensor]:
        """For categories `[...]` which nodes are live `[..., C - 1]`, and the bits of those nodes."""
        right, live = (table.to(category.device).T[category] for table in (self.right, self.left | self.right))
        return live, right


def stick_breaking(categories: int) -> BinaryFactorisation:
    """Node i asks whether it is category i, given that it is none before it.

    >>> import torch
    >>> stick_breaking(3).logits(torch.tensor([0.2, 0.3, 0.5]).log()).sigmoid()
    tensor([0.2000, 0.3750])
    """
    index = torch.arange(categories)
    return BinaryFactorisation(left=index > index[:-1, None], right=index == index[:-1, None])


def balanced_tree(categories: int) -> BinaryFactorisation:
    """Every node halves the categories below it; a path has about log2 C nodes.

    >>> import torch
    >>> balanced_tree(4).logits(torch.tensor([0.1, 0.3, 0.2, 0.4]).log()).sigmoid()
    tensor([0.6000, 0.7500, 0.6667])
    """
    nodes, level = [], [(0, categories)]
    while level:
        split = [(start, (start + end) // 2, end) for start, end in level if end - start > 1]
        level = [half for start, middle, end in split for half in ((start, middle), (middle, end))]
        nodes += split
    start, middle, end = torch.tensor(nodes, dtype=torch.long).reshape(-1, 3, 1).unbind(1)
    index = torch.arange(categories)
    return BinaryFactorisation(left=(start <= index) & (index < middle), right=(middle <= index) & (index < end))


FACTORISATIONS: Mapping[str, Callable[[int], BinaryFactorisation]] = {
    "stick_breaking": stick_breaking,
    "tree": balanced_tree,
}
"""The factorisations by the names that `Coupled` takes."""
