"""The `relax` effect handler."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, overload

from pyro.poutine.messenger import Messenger

from pyro_discrete.errors import UnsupportedSiteError
from pyro_discrete.estimators.base import PATHWISE, Family
from pyro_discrete.relaxations.concrete import positive_temperature
from pyro_discrete.relaxations.extension import Relaxed, extended
from pyro_discrete.relaxations.forms import rebuilt
from pyro_discrete.sites import family_of, is_latent

__all__ = ["ExtendMessenger", "RelaxMessenger", "refuse_to_relax", "relax"]


def refuse_to_relax(name: str, family: Family, fn: Any) -> UnsupportedSiteError:
    """The error for a site of a family that has no relaxation."""
    return UnsupportedSiteError(
        f"Site {name!r} is {type(fn).__name__} ({family.value}), which has no relaxation here: Bernoulli and "
        "OneHotCategorical sites have. Use 'rloo' or 'nvil' for it, or write a Categorical as OneHotCategorical."
    )


class RelaxMessenger(Messenger):
    """Relaxes every latent Bernoulli and OneHotCategorical site it sees."""

    def __init__(self, temperature: float, hard: bool = False) -> None:
        super().__init__()
        self.temperature, self.hard = positive_temperature(temperature, "relax"), hard

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        family = family_of(msg["fn"])
        if family in PATHWISE:
            relaxed = partial(
                Relaxed, temperature=self.temperature, hard=self.hard, site=msg["name"], infer=msg["infer"]
            )
            msg["fn"] = rebuilt(msg["fn"], relaxed)
        elif family not in (None, Family.CONTINUOUS):
            raise refuse_to_relax(msg["name"], family, msg["fn"])


class ExtendMessenger(Messenger):
    """Lets the named sites score soft values, and leaves their draws as they are."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and is_latent(msg) and family_of(msg["fn"]) in PATHWISE:
            msg["fn"] = extended(msg["fn"])


@overload
def relax(fn: None = None, *, temperature: float, hard: bool = False) -> RelaxMessenger: ...
@overload
def relax(fn: Callable[..., Any], *, temperature: float, hard: bool = False) -> Callable[..., Any]: ...
def relax(fn: Callable[..., Any] | None = None, *, temperature: float, hard: bool = False) -> Any:
    """Relax the latent Bernoulli and OneHotCategorical sites of a program (with or without `.to_event`).

    Draws become differentiable: a sigmoid of logistic noise, or a softmax of Gumbel noise, divided by `temperature`;
    with `hard=True` their forward value is the hard draw (straight-through). Log-masses are extended linearly to
    soft values. Observed and reparameterised sites are left alone. The handler wraps a model and a guide (both, as the
    model has to score the guide's soft values), or is a context manager around a whole step.

    Raises `SettingError` if the temperature is not positive, `UnsupportedSiteError` at a discrete site of another
    family.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax; Maddison, Mnih and Teh
    (2017), The Concrete distribution.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> def model():
    ...     z = pyro.sample("z", dist.Bernoulli(0.5))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))
    >>> def guide():
    ...     pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))
    >>> with relax(temperature=0.5):
    ...     loss = Trace_ELBO().loss_and_grads(model, guide)
    >>> pyro.param("logit").grad is not None
    True
    """
    messenger = RelaxMessenger(temperature, hard)
    return messenger if fn is None else messenger(fn)
