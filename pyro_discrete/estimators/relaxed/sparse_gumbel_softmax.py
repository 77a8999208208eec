"""Sparse relaxations: sparsemax or entmax in place of the softmax."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pyro_discrete.draws.gumbel import gumbel_like, logistic_like
from pyro_discrete.draws.schedules import Temperature, temperature_at
from pyro_discrete.draws.softening import BINARY, MAPPINGS, corner, straight_through
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator

__all__ = [
    "SparseGumbelSoftmax",
]


class SparseGumbelSoftmax(RelaxedEstimator):
    r"""A Gumbel-Softmax whose softmax is a sparse mapping to the simplex.

    .. math:: \nabla f\big(\mathrm{entmax}((\mathrm{logits} + G) / t)\big), \quad
              \mathrm{entmax}(z) = \arg\max_p\, \langle p, z \rangle + H_\alpha(p)

    with Tsallis' entropy H of order alpha: 1.5 for "entmax", 2 for "sparsemax" (the projection on the simplex). Soft
    values have zeros in them, and are hard with positive probability: then the model sees the discrete program, and
    the draw hands on no gradient. One evaluation, biased. Serves Bernoulli, Categorical and
    OneHotCategorical sites, and counts.

    - `mapping`: "entmax" or "sparsemax".
    - `hard`: hard values in the forward pass (straight-through).

    Raises `SettingError` for a setting out of range.

    The default temperature is chosen by the discrete ELBO of short runs (benchmarks/results/RESULTS.md); with "entmax",
    0.5 is better on bits.

    Source: Martins and Astudillo (2016), From softmax to sparsemax; Peters, Niculae and Martins (2019), Sparse
    sequence-to-sequence models (1.5-entmax); with Gumbel noise in them, after Jang, Gu and Poole (2017).

    >>> from pyro_discrete import SparseGumbelSoftmax, TraceELBO
    >>> elbo = TraceELBO(SparseGumbelSoftmax(mapping="sparsemax"))
    """

    name = "sparse_gumbel_softmax"
    summary = "Gumbel-Softmax with entmax or sparsemax: soft values with zeros in them"
    reference = "Martins and Astudillo 2016; Peters et al. 2019"
    also_known: tuple[str, ...] = ("sparsemax",)

    def __init__(
        self,
        temperature: Temperature = 1.0,
        mapping: Literal["entmax", "sparsemax"] = "entmax",
        hard: bool = False,
    ) -> None:
        if mapping not in MAPPINGS:
            raise SettingError(f"SparseGumbelSoftmax: mapping={mapping!r} given, 'entmax' or 'sparsemax' expected.")
        super().__init__(temperature, hard)
        self.mapping = mapping
        self.hard: bool = hard

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.mapping}{', hard' if self.hard else ''}"

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(mapping="sparsemax"), cls(hard=True)]

    def weights(self, logits: Tensor, step: Tensor | int, one_hot: bool) -> Tensor:
        """The sparse relaxed draw."""
        z = logits + (gumbel_like(logits) if one_hot else logistic_like(logits))
        soft = (MAPPINGS if one_hot else BINARY)[self.mapping](z / temperature_at(self.temperature, step))
        return straight_through(corner(soft, one_hot=one_hot), soft) if self.hard else soft
