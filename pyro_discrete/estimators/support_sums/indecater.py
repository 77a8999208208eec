"""Independent categorical REINFORCE: each element of an event summed out, given one draw of the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pyro_discrete.errors import EnumerationError, SettingError
from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate, weighted_rows
from pyro_discrete.families import Family

__all__ = [
    "IndeCateR",
]


class IndeCateR(Estimator):
    r"""Every element of a factorised event summed out in turn, the others held at one shared draw.

    .. math:: \sum_d \sum_v \nabla q_d(v)\; f(z \text{ with } z_d = v), \qquad z \sim q = \prod_d q_d

    Serves Bernoulli, Categorical and OneHotCategorical, alone or `.to_event`. It is unbiased, exact for a site with one
    element, and for the logits of each element the score function's mean given the other elements, so never noisier.
    One row is the draw itself and serves as each element's drawn value, so a particle of D elements with V values costs
    `1 + D (V - 1)` evaluations: much, for wide events. More shared draws: `num_particles`.

    - `max_rows`: the largest number of evaluations a particle that a site may ask for.

    It changes all elements of a *plate* together; where these share later terms, they are treated as elements of one
    event, each in rows of its own.

    Raises `EnumerationError` above `max_rows` (`SharedTermsError` where it is the elements of a plate that are many),
    `SettingError` for a setting out of range.

    Source: De Smet, Sansone and Zuidberg Dos Martires (2023), Differentiable sampling of categorical distributions
    using the CatLog-derivative trick.

    >>> from pyro_discrete import IndeCateR, TraceELBO
    >>> elbo = TraceELBO(IndeCateR(max_rows=300), num_particles=2)
    """

    name = "indecater"
    summary = "each element of a factorised event summed out, given one draw of the others"
    reference = "De Smet et al. 2023"
    also_known: tuple[str, ...] = ("local_expectation", "legrad")
    evaluations = "1 + elements x (values - 1)"
    families: frozenset[Family] = frozenset({Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT})
    separable = True

    def __init__(self, max_rows: int = 4096) -> None:
        super().__init__()
        if max_rows < 2:
            raise SettingError(f"IndeCateR: max_rows={max_rows} given, at least 2 expected (a draw and another value).")
        self.max_rows = max_rows

    def rows(self, site: SiteView) -> int:
        elements, values = _sizes(site)
        rows = 1 + elements * (values - 1)
        if rows > self.max_rows:
            raise EnumerationError(
                f"Estimator 'indecater' needs {rows} evaluations a particle for site {site.name!r} ({elements} "
                f"elements of {values} values), more than max_rows={self.max_rows}. Use 'rloo' or 'nvil' for the "
                "site, or raise max_rows."
            )
        return rows

    def draw(self, site: SiteView) -> Draw:
        """A draw z, then for each element d each other value: z with `z_d` moved on by 1 to V - 1 categories."""
        z, (elements, values) = site.sample(), _sizes(site)
        category_dims = 1 if site.family is Family.ONE_HOT else 0
        batch = z.shape[: z.dim() - site.event_dim]
        flat = z.reshape(batch + (elements,) + z.shape[z.dim() - category_dims :])
        moved = torch.stack([_moved(flat, site.family, step, values) for step in range(1, values)])
        chosen = torch.eye(elements, dtype=torch.bool, device=z.device)
        chosen = chosen.reshape((elements, 1) + (1,) * len(batch) + (elements,) + (1,) * category_dims)
        others = torch.where(chosen, moved, flat).reshape((-1, *z.shape))
        probability = _log_mass(site, moved, elements).exp()  # [V - 1, K, *batch, D]
        return Draw(torch.cat([z.unsqueeze(0), others])).with_rows(probability=probability)

    def surrogate(self, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        """The sum over d and v of q_d(v) times the cost of z with `z_d = v`, less that of z, which changes nothing."""
        probability = draw.of_rows("probability").movedim(-1, 0)  # [D, V - 1, K, *batch]
        difference = (cost[1:] - cost[0]).reshape(probability.shape)
        return Surrogate(weighted_rows(probability.flatten(0, 1), difference.flatten(0, 1)))


def _sizes(site: SiteView) -> tuple[int, int]:
    """How many elements the site's event has, and how many values an element has."""
    logits, bernoulli = site.logits, site.family is Family.BERNOULLI
    event = logits.shape[logits.dim() - site.event_dim - (1 if site.family is Family.CATEGORICAL else 0) :]
    return (math.prod(event), 2) if bernoulli else (math.prod(event[:-1]), event[-1])


def _moved(flat: Tensor, family: Family | None, step: int, values: int) -> Tensor:
    """Every element of `flat` `[K, *batch, D]` (one-hot: `[K, *batch, D, V]`) moved on by `step` categories."""
    if family is Family.BERNOULLI:
        return 1 - flat
    return flat.roll(step, -1) if family is Family.ONE_HOT else (flat + step) % values


def _log_mass(site: SiteView, moved: Tensor, elements: int) -> Tensor:
    """log q_d of each element's moved value, `[V - 1, K, *batch, D]`, differentiable."""
    logits = site.logits
    if site.family is Family.BERNOULLI:
        return logsigmoid((2 * moved - 1) * logits.reshape(moved.shape[1:]))
    index = moved.argmax(-1) if site.family is Family.ONE_HOT else moved.long()
    normalised = logits.log_softmax(-1).reshape((*index.shape[1:], logits.shape[-1]))
    return normalised.expand((*index.shape, -1)).gather(-1, index.unsqueeze(-1)).squeeze(-1)
