"""The importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import SettingError, is_whole, refuses_unknown_keywords, shown
from pyro_discrete.objectives.importance import ImportanceBound
from pyro_discrete.planning.select import Spec

__all__ = [
    "TraceIWELBO",
]


class TraceIWELBO(DiscreteELBO):
    r"""The importance-weighted bound with K particles, one bound for each independent datum.

    .. math:: \max \; E_g\Big[\log \frac{p(g)}{q(g)} + s \sum_n E_z\Big[ \log \frac1K \sum_{k=1}^K w_{nk} \Big]\Big],
        \qquad w_{nk} = \frac{p(x_n, z_{nk} \mid g)}{q(z_{nk} \mid g, x_n)}

    With K = 1 it is the evidence lower bound; it rises with K towards log p(x). Used like `TraceELBO`, with its
    arguments; those that are not explained here are explained there. Latent variables g outside the data's plate are
    drawn once for all K particles, and a subsampled plate's scale s multiplies the bound (so does a `poutine.scale`
    around the whole program; a scale of some terms alone, such as a weight on the KL terms, stays in the weights).

    - `estimator`: as in `TraceELBO`. The cost that a particle's rows are compared by is minus the bound with this
      particle's weight replaced. "vimco" is made for it; estimators of independent particles ("rloo") need outer
      samples to run over. "reweighted_wake_sleep" trains the guide by another objective.
    - `num_particles`: K. `num_outer_samples`: independent samples of the whole bound, averaged.
    - `datum_plates`: the name (or names) of the plates of independent data; `()` for one joint bound. By default the
      plates that the observed sites, and the latent ones that share a plate with them, have in common. If there is
      none, or a site outside comes after sites inside, all data are bounded jointly, with a warning.
    - `dreg`: doubly reparameterised gradients at continuous sites (Tucker et al. 2019), where no later site of the
      guide depends on the site: the same mean, with noise that does not take over as K grows. The plan says where.
    - `row_chunk`: run at most so many rows (coupled draws x particles) at once, but at least one particle of each outer
      sample. The gradient is that of all particles, the memory that of a chunk and of the weights; each chunk is run
      twice; what the particles share is drawn once, what estimators learn is what they learn from all particles. Not
      for estimators with slopes of all particles together (`muprop`, `double_cv`, `rodeo`; `rebar` and `relax` at sites
      that the particles share).

    `loss()` with many particles (a test likelihood) runs them in blocks, see `pyro_discrete.steps.hard_loss.AT_ONCE`.
    Raises `SettingError` for subsampling within a datum, whose log-weights would be estimates, and `ParticleError` for
    an estimator without the particles that it needs.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Mnih and Rezende (2016),
    Variational inference for Monte Carlo objectives.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))))
    >>> x = torch.tensor([0.3, 1.9])
    >>> loss = TraceIWELBO("vimco", num_particles=8).loss_and_grads(model, guide, x)
    >>> bound = -TraceIWELBO(num_particles=5_000).loss(model, guide, x)
    """

    @refuses_unknown_keywords
    def __init__(
        self,
        estimator: Spec = "auto",
        *,
        num_particles: int = 1,
        num_outer_samples: int = 1,
        datum_plates: str | Iterable[str] | None = None,
        dreg: bool = False,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        compile: bool | Literal["graph"] = False,
        row_chunk: int | None = None,
    ) -> None:
        if not is_whole(num_outer_samples):
            raise SettingError(f"num_outer_samples={shown(num_outer_samples)} given, a positive whole number expected.")
        plates = (datum_plates,) if isinstance(datum_plates, str) else datum_plates
        self.objective: ImportanceBound = ImportanceBound(
            num_particles, num_outer_samples, None if plates is None else tuple(plates), dreg
        )
        super().__init__(
            estimator,
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
            strict_enumeration_warning=strict_enumeration_warning,
            compile=compile,
            row_chunk=row_chunk,
        )
