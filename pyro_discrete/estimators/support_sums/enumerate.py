"""Exact sums over a site's support."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate, weighted_rows
from pyro_discrete.families import FINITE, Need

__all__ = [
    "Enumerate",
]


class Enumerate(Estimator):
    r"""The exact gradient :math:`\sum_z \nabla q(z)\, f(z)`.

    Where it is chosen for every discrete site, the whole program is enumerated in parallel by Pyro's `TraceEnum_ELBO`:
    sites of the guide and of the model alone (which are marginalised), joint values of `.to_event` sites included.
    Beside other estimators it is the local expectation: the site's whole support in its rows, other sites sampled.
    With `product` several sites of such a program have the product of their supports as rows, and no noise from each
    other; the cost, rows in `elbo.plan`, is the product of their numbers of values instead of the sum.
    Serves Bernoulli, Categorical, OneHotCategorical and other sites of finite support, and counts without an end:

    - of the model alone they are summed until what is left out is below 1e-8 of the sum. That is judged in every step,
      by the prior's mass beyond the last value times the largest densities of what reads the count: 1 for discrete
      data; a density's largest value where its scale does not depend on the count; an error where none is known. With
      `infer={"truncation": 20}` at the site the sum ends there, each value with its own probability, and a warning says
      so where its last term has a share above 1e-6.
    - of the guide they are cut, at the truncation that the site states or where a probability of 1e-15 is left: the
      values beyond are taken out of the guide's distribution, and the others' probabilities divided by their sum. The
      draws of the site, `loss()` and the gradient are then those of this distribution, and the loss is a bound.
    - a `Binomial` whose elements have different numbers of trials goes up to the largest of them.

    - `max_elements`: the largest table, in elements, that may be built. `max_operations`: elements of all tables of a
      step together. More is refused before any work is done.
    - `max_rows`: the most rows a particle, beside other estimators, where the elements of a plate share later terms and
      each has the support in rows of its own; `SharedTermsError` beyond.
    - `product`: a name of your choice. Sites, in the same plates, whose `Enumerate` has the same one are enumerated
      jointly.

    A `.to_event(1)` site of many elements is summed over element by element (d k values instead of k^d) where every
    discrete site of the guide is such a one and a trial run shows that no term joins two elements: it follows the
    elements through operations known to keep them apart (arithmetic, comparisons, tables, views), to terms that are
    themselves independent along that dim. Else give the site "indecater" (exact where no term joins its elements,
    unbiased where one does, at the cost of the elements' values added up), or declare them as a `pyro.plate`.

    Raises `EnumerationError`, naming the site and the size, if a support is infinite or a table too large.

    Source: Titsias and Lázaro-Gredilla (2015), Local expectation gradients; Obermeyer et al. (2019), Tensor variable
    elimination for plated factor graphs.

    >>> from pyro_discrete import Enumerate, TraceELBO
    >>> elbo = TraceELBO(Enumerate(max_elements=10**6))
    >>> elbo = TraceELBO({"z*": Enumerate(product="both layers"), "y": "nvil"})
    """

    name = "enumerate"
    summary = "exact sum over the support"
    reference = "Titsias & Lázaro-Gredilla 2015; Obermeyer et al. 2019"
    also_known: tuple[str, ...] = ("exact", "marginalise", "marginalize", "sum_out", "parallel", "sequential")
    evaluations = "all values, at once"
    separable = True
    families = FINITE
    needs: frozenset[Need] = frozenset({Need.SUPPORT})

    def __init__(
        self, max_elements: int = 2**27, max_operations: int = 2**34, product: str = "", max_rows: int = 4096
    ) -> None:
        super().__init__()
        budgets = {"max_elements": max_elements, "max_operations": max_operations, "max_rows": max_rows}
        for name, value in budgets.items():
            if value < 1:
                raise SettingError(f"Enumerate: {name}={value} given, a positive number expected.")
        if not isinstance(product, str):
            raise SettingError(f"Enumerate: product={product!r} given, the name of a product expected.")
        self.max_elements: int = max_elements
        self.max_operations: int = max_operations
        self.product: str = product
        self.max_rows = max_rows

    def rows(self, site: SiteView) -> int:
        return 1 + int(site.cardinality)

    def draw(self, site: SiteView) -> Draw:
        """A draw from q, then every value of the support."""

        support = site.support()
        rows = torch.cat([site.sample().unsqueeze(0), support])
        return Draw(rows).with_rows(log_support=site.log_mass(support))

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """Sum over the support of q(z) times the cost that z led to; in a product, over all joint values."""
        probability = draw.of_rows("log_support").exp()
        if "others" in draw.extra:
            probability = probability * draw.of_rows("others")
        return Surrogate(weighted_rows(probability, cost[1:]))
