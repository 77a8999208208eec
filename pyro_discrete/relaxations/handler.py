"""The `relax` effect handler, and the one under which sites score soft values that they do not draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, overload

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK

from pyro_discrete.draws.schedules import Temperature, checked_temperature, temperature_at
from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.errors import (
    SettingError,
    UnknownSiteError,
    UnsupportedSiteError,
    near_matches,
    refuses_unknown_keywords,
)
from pyro_discrete.families import PATHWISE, Family, Need
from pyro_discrete.programs.sites import Site, base_distribution, family_of, is_latent
from pyro_discrete.relaxations.relaxed_distribution import Relaxed, extended, rebuilt

__all__ = [
    "ExtendMessenger",
    "RelaxMessenger",
    "Sites",
    "refuse_handler_around",
    "refuse_to_relax",
    "relax",
]


SOFT = PATHWISE | {Family.STRUCTURE}
"""The kinds of sites that soft values may be scored at."""

Sites = str | Collection[str] | Callable[[Site], bool] | None


def refuse_handler_around(elbo: str) -> None:
    """Raise `SettingError` if an ELBO of this package, of that name, is run under a `relax` handler."""
    if any(isinstance(handler, RelaxMessenger) for handler in _PYRO_STACK):
        raise SettingError(
            f"A relax(...) handler is around this {elbo}, which draws sites by its own estimators. Choose the "
            f"relaxation by {elbo}('gumbel_softmax'), or use the handler with Pyro's Trace_ELBO."
        )


def refuse_to_relax(name: str, family: Family, fn: Any) -> UnsupportedSiteError:
    """The error for a site of a family that has no relaxation."""
    return UnsupportedSiteError(
        f"Site {name!r} is {type(fn).__name__} ({family.value}), which has no relaxation here: Bernoulli, Categorical, "
        "OneHotCategorical, Binomial, Multinomial, Poisson, Geometric and NegativeBinomial sites have. Leave it out "
        "(relax(..., sites=...)), or use TraceELBO with 'rloo' or 'nvil' for it."
    )


class RelaxMessenger(Messenger):
    """Relaxes the latent discrete sites that it is to relax, at the temperature of its step.

    `step` counts how often it has been entered; schedules read it.
    """

    def __init__(
        self, temperature: Temperature | Mapping[str, Temperature], hard: bool = False, sites: Sites = None
    ) -> None:
        super().__init__()
        given = temperature if isinstance(temperature, Mapping) else {"*": temperature}
        self.temperatures: dict[str, Temperature] = {name: checked_temperature(t, "relax") for name, t in given.items()}
        if isinstance(temperature, Mapping) and sites is None:
            sites = tuple(self.temperatures)
        self.hard = hard
        named = (sites,) if isinstance(sites, str) else sites
        self.patterns: Collection[str] | None = None if callable(named) else named
        self.predicate: Callable[[Site], bool] | None = sites if callable(sites) else None
        self.step: int = 0
        self._seen: set[str] = set()
        self._depth = 0

    def __enter__(self) -> RelaxMessenger:
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._depth -= 1
        leaving = super().__exit__(*error)
        if error[0] is None and self._depth == 0:
            self.step += 1
            if self.step == 1:
                self._check_patterns()
        return leaving

    def _check_patterns(self) -> None:
        for pattern in self.patterns or ():
            if not any(fnmatchcase(name, pattern) for name in self._seen):
                raise UnknownSiteError(
                    f"relax: sites={pattern!r} matches no latent site that was drawn. "
                    f"{near_matches(pattern, self._seen) if self._seen else 'There was none.'}"
                )

    def _wanted(self, msg: Any) -> bool:
        if self.predicate is not None:
            return bool(self.predicate(Site(msg)))
        if self.patterns is not None:
            return any(fnmatchcase(msg["name"], pattern) for pattern in self.patterns)
        return not msg["infer"].get("enumerate")  # Pyro will sum over it

    def _temperature(self, name: str) -> Any:
        for pattern, temperature in self.temperatures.items():
            if fnmatchcase(name, pattern):
                return temperature_at(temperature, self.step)
        raise SettingError(
            f"relax: no temperature is given for site {name!r}, which is to be relaxed; there are some for "
            f"{', '.join(map(repr, self.temperatures))}. Add one for it, or for '*'."
        )

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        self._seen.add(msg["name"])
        family = family_of(msg["fn"])
        if family in (None, Family.CONTINUOUS) or not self._wanted(msg):
            return
        if family is Family.STRUCTURE:
            lacking = {Need.NOISE, Need.LOG_MASS} - Site(msg).needs_met
            if lacking:
                raise UnsupportedSiteError(
                    f"Site {msg['name']!r} is {type(base_distribution(msg['fn'])).__name__}, which has no "
                    f"{min(lacking).value}, and so no relaxation here. Leave it out (relax(..., sites=...)), or use "
                    "TraceELBO with 'rloo', 'nvil' or 'straight_through' for it."
                )
        elif family not in PATHWISE:
            raise refuse_to_relax(msg["name"], family, msg["fn"])  # type: ignore[arg-type]
        temperature = self._temperature(msg["name"])
        relaxed = partial(Relaxed, temperature=temperature, hard=self.hard, site=msg["name"], infer=msg["infer"])
        msg["fn"] = rebuilt(msg["fn"], relaxed)


class ExtendMessenger(Messenger):
    """Lets the named sites score soft values, or scores them at points; leaves their draws as they are."""

    def __init__(self, points: Mapping[str, Point | None]) -> None:
        super().__init__()
        self.points = points

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.points and is_latent(msg) and family_of(msg["fn"]) in SOFT:
            point = self.points[msg["name"]]
            msg["fn"] = extended(msg["fn"], msg["name"], None if point is None else point.in_model)


@overload
def relax(
    fn: None = None,
    *,
    temperature: Temperature | Mapping[str, Temperature],
    hard: bool = False,
    sites: Sites = None,
) -> RelaxMessenger: ...


@overload
def relax(
    fn: Callable[..., Any],
    *,
    temperature: Temperature | Mapping[str, Temperature],
    hard: bool = False,
    sites: Sites = None,
) -> Callable[..., Any]: ...


@refuses_unknown_keywords
def relax(
    fn: Callable[..., Any] | None = None,
    *,
    temperature: Temperature | Mapping[str, Temperature],
    hard: bool = False,
    sites: Sites = None,
) -> Any:
    """Relax latent discrete sites of a program, which stays as it is.

    Draws become differentiable: a sigmoid of logistic noise, or a softmax of Gumbel noise, divided by the temperature;
    with `hard=True` their forward value is the hard draw (straight-through). A Bernoulli, OneHotCategorical or
    Multinomial site has a floating value; a Categorical one (OrderedLogistic, too) a `SoftIndex`, which does what the
    integer does; Binomial, Poisson, Geometric and NegativeBinomial ones a soft count, over 0 to the largest one: for a
    Binomial its number of trials, for the others what the site states as `infer={"truncation": 30}`. Log-masses are
    extended linearly to soft values. Structures that have noise of their own (`PlackettLuce`, `KSubset`,
    `SequentialMatching`, `GibbsMatching`, `LinearChain`) are softened by it, to weights (a subset's) or a `SoftIndex`,
    and scored by their `log_mass`; trees have none. Observed and reparameterised sites are left alone.

    The handler wraps a model and a guide (both, as the model has to score the guide's soft values), or is a context
    manager around a whole step, with Pyro's own ELBOs. Outside it, as in `Predictive`, everything stays hard.

    - `temperature`: a number; a `Schedule` or another function of the step, of which there is one each time that the
      handler is entered (its `step` counts them); or a dict from site names or globs to these.
    - `sites`: which latent sites: a name or glob, several of them, or a function of a `Site` (`site.name`,
      `site.family`, `site["infer"]`). By default those that `temperature` names, if it is a dict, else every discrete
      site that Pyro is not told to enumerate.

    When to use which. Soft values (`hard=False`) let every category take part in the likelihood, weighted: they learn
    mixtures and tables from any start, at a loss that is not the discrete one. Hard values keep the discrete loss, but
    a category gets a gradient only from the data that draw it: see "The stall" in benchmarks/results/RESULTS.md.

    Raises `SettingError` if a temperature is not positive, `UnsupportedSiteError` at a discrete site of another family
    (or a count without an end, or a structure without noise), `UnknownSiteError` for a name that the first run has no
    site for, `RelaxationError` where the program does to a soft index what only an integer allows.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-Softmax; Maddison, Mnih and Teh
    (2017), The Concrete distribution; for counts Joo, Kim, Shin and Moon (2020), Generalized Gumbel-Softmax gradient
    estimator for generic discrete random variables; structures name theirs.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> def model():
    ...     z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
    ...     pyro.sample("x", dist.Normal(torch.tensor([0.0, 1.0, 2.0])[z], 1.0), obs=torch.tensor(0.8))
    >>> def guide():
    ...     pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.zeros(3))))
    >>> with relax(temperature=0.5):
    ...     loss = Trace_ELBO().loss_and_grads(model, guide)
    >>> pyro.param("logits").grad is not None
    True
    """
    messenger = RelaxMessenger(temperature, hard, sites)
    return messenger if fn is None else messenger(fn)
