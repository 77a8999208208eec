"""Uniform draws that depend on one another: each is uniform, any two of them have one and the same joint law."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_discrete.relaxations.gumbel import gumbel_like

__all__ = ["COPULAS", "Copula", "DirichletCopula", "IndependentCopula"]


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
