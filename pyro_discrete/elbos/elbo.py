"""The evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import SettingError, refuses_unknown_keywords, shown
from pyro_discrete.objectives.evidence import EvidenceBound
from pyro_discrete.planning.select import Spec

__all__ = [
    "TraceELBO",
    "advance_weight",
    "checked_weight",
]


class TraceELBO(DiscreteELBO):
    r"""The evidence lower bound, its gradient estimated site by site as `estimator` says.

    .. math:: \max \; E_{q(z)}[\log p(x, z) - \log q(z)]

    Used like Pyro's ELBOs: as `loss=` of `SVI`, through `loss_and_grads`, or as a torch module `elbo(model, guide)`
    whose call returns a differentiable loss. The guide and the model run once per step, over rows (coupled draws) x
    particles. Continuous reparameterised sites are pathwise; other continuous sites get the score function.

    Where they run more often (the plan says how often), each run starts from what modules held before the step,
    and these end as after one run: the buffers of modules that the programs are, close over or call (BatchNorm's
    averages, a counter), and the whole and floating numbers among their attributes; not a tensor outside of modules.

    - `estimator`: a name from `available_estimators()`, or "auto"; an `Estimator`; a dict from site names or globs to
      these; or a function of a site. A guide site's own `infer={"estimator": ...}` goes before it.
    - `num_particles`: independent repetitions, averaged (and each other's baselines in leave-one-out estimators).
    - `vectorize_particles`: run rows and particles at once; programs that cannot take a leading dim run one by one.
    - `max_plate_nesting`: number of plate dims to allow for; worked out if not given.
    - `strict_enumeration_warning`: taken for Pyro's sake, and without effect: sites that can be enumerated are found
      without annotations, so that there is nothing to warn of.
    - `retain_graph`: passed to `backward`.
    - `compile`: True captures the whole step as a graph, once for each shape of the arguments, and has it compiled;
      `"graph"` runs the graph without a compiler, and gives what the eager step gives, bit for bit. See `captures`.

    - `analytic_kl`: where a site has a closed-form KL divergence between guide and model, and neither side's parameters
      depend on the site's own draw, take it instead of log q - log p at that draw: the same mean with less noise. The
      plan says for which sites.
    - `row_chunk`: run at most so many rows (coupled draws x particles) at once. The gradient is that of all particles,
      the memory that of a chunk, and each chunk is run twice; what estimators learn is what they learn from all
      particles. Not for estimators that differentiate one tensor of their draws in another (`double_cv`, if it learns).
    - `kl_weight`: what the terms log p(z) - log q(z) of the guide's sites are multiplied by in training: a number, or
      a schedule from the step (a whole number in a tensor) to a number. `loss()` reports the bound itself, unweighed.

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

    objective: EvidenceBound
    weight: Tensor

    @refuses_unknown_keywords
    def __init__(
        self,
        estimator: Spec = "auto",
        *,
        num_particles: int = 1,
        vectorize_particles: bool = True,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        compile: bool | Literal["graph"] = False,
        row_chunk: int | None = None,
        analytic_kl: bool = False,
        kl_weight: float | Callable[[Any], Any] = 1.0,
    ) -> None:
        self.objective = EvidenceBound(analytic_kl)
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
        self.kl_weight: float | Callable[[int], float] = checked_weight(kl_weight, "kl_weight")
        self.register_buffer("weight", torch.as_tensor(1.0), persistent=False)  # the step says what it is

    def _advance(self) -> None:
        if self.kl_weight == 1.0:
            self.objective.weight = None
            return
        advance_weight(self.weight, self.kl_weight, self.step, "kl_weight")
        self.objective.weight = self.weight


def checked_weight(weight: float | Callable[[Any], Any], name: str) -> float | Callable[[Any], Any]:
    """`weight` itself; `SettingError` unless it is a number that is not negative, or a function of the step."""
    if callable(weight) or (isinstance(weight, int | float) and 0 <= weight < math.inf):
        return weight
    raise SettingError(f"{name}={shown(weight)} given; a number >= 0, or a schedule from the step to one, is expected.")


def advance_weight(buffer: Tensor, weight: float | Callable[[Any], Any], step: Tensor, name: str) -> None:
    """Write the weight of this step into a buffer `[]`: outside of the step, of whose tensors it is one."""
    with torch.no_grad():
        now = torch.as_tensor(weight(step) if callable(weight) else weight)
        if now.numel() != 1 or not 0 <= now < math.inf:
            raise SettingError(f"{name}: its schedule gave {now.tolist()} at step {int(step)}, a number >= 0 expected.")
        buffer.copy_(now.reshape(()))
