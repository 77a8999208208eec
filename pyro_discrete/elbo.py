"""The evidence lower bound."""

from __future__ import annotations

from pyro_discrete.engine import DiscreteELBO
from pyro_discrete.objectives import EvidenceBound

__all__ = ["TraceELBO"]


class TraceELBO(DiscreteELBO):
    r"""The evidence lower bound, its gradient estimated site by site as `estimator` says.

    .. math:: \max \; E_{q(z)}[\log p(x, z) - \log q(z)]

    Used like Pyro's ELBOs: as `loss=` of `SVI`, through `loss_and_grads`, or as a torch module `elbo(model, guide)`
    whose call returns a differentiable loss. The guide and the model run once per step, over rows (coupled draws) x
    particles. Continuous reparameterised sites are pathwise; other continuous sites get the score function.

    - `estimator`: a name from `available_estimators()`, or "auto"; an `Estimator`; a dict from site names or globs to
      these; or a function of a site. A guide site's own `infer={"estimator": ...}` goes before it.
    - `num_particles`: independent repetitions, averaged (and each other's baselines in leave-one-out estimators).
    - `vectorize_particles`: run rows and particles at once; programs that cannot take a leading dim run one by one.
    - `max_plate_nesting`: number of plate dims to allow for; worked out if not given.
    - `retain_graph`: passed to `backward`.
    - `compile`: must be False; capture of a step as a graph is not part of this version.

    `plan` (after the first call) prints what each site got. `state_dict` holds all that the estimators have learned.
    Errors are subclasses of `pyro_discrete.errors.DiscreteInferenceError`.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import SVI
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))))
    >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=TraceELBO("rloo", num_particles=4))
    >>> loss = svi.step(torch.tensor([0.0, 1.0, 1.2]))
    """

    objective = EvidenceBound()
