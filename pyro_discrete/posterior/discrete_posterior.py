"""What a pair says of its discrete sites: marginals, joint samples, most probable values, predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import UNKNOWN, find_dependencies
from pyro_discrete.inspection.trial import Trial, check_data, check_rows, plain_trial
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.pair import Pair, SiteMessenger, Substitute, UnconditionSites, on_trial
from pyro_discrete.programs.sites import (
    Site,
    base_distribution,
    is_latent,
    is_random_observation,
    joint_support,
    latent_sites,
    sample_sites,
)
from pyro_discrete.sums.components import components, highest, random_value, shares
from pyro_discrete.sums.elimination import Reduce, log_sum_exp
from pyro_discrete.sums.enumerated_sites import Marginalise
from pyro_discrete.sums.marginalisation import collapsed, marginal_sites, settle_marginals

__all__ = [
    "DiscretePosterior",
    "PosteriorRuns",
    "modes",
    "standing_alone",
]


def standing_alone(pair: Pair, large: Iterable[Site], every: Iterable[Site]) -> list[str]:
    """The large sites of the guide whose elements are independent, of each other and of the guide's other sites.

    They are drawn given no discrete site, and read by none of `every`. Empty where dependences are not known.
    """
    names = [s.name for s in large if s.distribution.event_dim > len(base_distribution(s.distribution).event_shape)]
    known = find_dependencies(pair) if names else UNKNOWN
    if not known.known:
        return []
    return [
        name
        for name in names
        if not any(
            known.downstream(name, other.name) or (other.family is not None and known.downstream(other.name, name))
            for other in every
            if other.name != name
        )
    ]


def modes(fn: Any) -> Tensor:
    """Each element's most probable value `[*batch, *event]`; the first of them, where there are several."""
    base = base_distribution(fn)
    values = base.enumerate_support(expand=False)
    values = values.reshape(len(values), *base.event_shape)
    scores = base.log_prob(values.reshape(len(values), *(1,) * len(base.batch_shape), *base.event_shape))
    return values[scores.argmax(0)].expand(fn.shape())


SMALL = 256
"""Guide sites of so many joint values at most are summed over; of larger ones, marginals are means over draws."""


Values = dict[str, Tensor]


class DiscretePosterior:
    r"""The posterior of a pair's discrete sites: of those that the guide draws and of those that only the model has.

    .. math:: q(z_g) \; p(z_m \mid z_g, x)

    with :math:`z_g` the guide's sites and :math:`z_m` the model's own, conditioned exactly on the data and on a draw of
    the guide. Each method is one call with the pair's arguments, and no annotations are needed. The cost grows linearly
    with the length of a chain. Subsampled plates are drawn once a call. Continuous sites of the model have to be in
    the guide.

    - `guide`: None where the guide would draw nothing.
    - `num_samples`: draws of the guide to average over, or to return. Where the guide draws nothing that the model's
      own sites depend on, marginals are exact with one.

    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     z = 0
    ...     for t in pyro.markov(range(len(x))):
    ...         z = pyro.sample(f"z{t}", dist.Categorical(torch.tensor([[0.9, 0.1], [0.1, 0.9]])[z]))
    ...         pyro.sample(f"x{t}", dist.Normal(2.0 * z, 1.0), obs=x[t])
    >>> posterior = DiscretePosterior(model)
    >>> best = posterior.most_probable(torch.tensor([0.1, 2.5, 2.6, -1.3]))
    >>> [int(best[f"z{t}"]) for t in range(4)]
    [0, 1, 1, 0]

    Source: Koller and Friedman (2009), Probabilistic graphical models, chapters 9 and 13; gradients of (max, sampled)
    log-sums as marginals, maxima and samples: Eisner (2016), Inside-outside and forward-backward algorithms are just
    backprop; Rush (2020), Torch-Struct.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any] | None = None, num_samples: int = 100
    ) -> None:
        if num_samples < 1:
            raise SettingError(f"DiscretePosterior: num_samples={num_samples} given, a positive number expected.")
        self.model, self.guide, self.num_samples = model, guide or _draws_nothing, num_samples

    def marginals(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Each discrete site's distribution, element by element, of the site's own kind (`Bernoulli`, `Categorical`,
        `OneHotCategorical`, with its `.to_event`; other kinds: `Categorical` over their support in order)."""
        run = self._trial(args, kwargs)
        rows = self.num_samples if latent_sites(run.trial.guide_trace) else 1
        found = self._of_guide(run, rows)
        if run.settings:
            for name, probabilities in run.conditional(rows, log_sum_exp)[1].items():
                found[name] = _distribution(run.model_sites[name], probabilities.mean(0))
        return found

    def samples(self, *args: Any, **kwargs: Any) -> Values:
        """Joint draws of all discrete sites, `[num_samples, *batch, *event]`."""
        run = self._trial(args, kwargs)
        values, shares = run.conditional(self.num_samples, random_value)
        return {n: v for n, v in values.items() if n in run.discrete} | run.decoded(shares)

    def most_probable(self, *args: Any, **kwargs: Any) -> Values:
        """The most probable joint values `[*batch, *event]`, along chains by the Viterbi algorithm.

        The guide's sites take the mode of q, the model's own the most probable values given these; large sites of
        independent elements (30 bits), on which no other site of the guide hangs, theirs element by element. Continuous
        sites of the guide take their mean. A masked site has no term of its own: the values are the most probable ones
        of the sites that are not masked (of chains of unequal length, up to their ends).
        """
        run = self._trial(args, kwargs)
        guide = _AtMean()(self.guide)
        alone = run.standing_alone(guide)
        best = alone | {n: v[0] for n, v in run.decoded(run.of_guide(guide, None, highest, alone)).items()}
        found = run.conditional(None, highest, guide, best)[1]
        return {n: v for n, v in best.items() if n in run.discrete} | {n: v[0] for n, v in run.decoded(found).items()}

    def predictive(self, *args: Any, **kwargs: Any) -> Values:
        """New data: observed sites drawn anew given joint draws of all latent ones, `[num_samples, *batch, *event]`."""
        run = self._trial(args, kwargs)
        values, shares = run.conditional(self.num_samples, random_value)
        return run.predicted(values | run.decoded(shares), self.num_samples)

    def _trial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PosteriorRuns:
        return PosteriorRuns(Pair(self.model, self.guide, args, kwargs), self.num_samples)

    def _of_guide(self, run: PosteriorRuns, rows: int) -> dict[str, Any]:
        """The guide's own marginals: sums where its sites are small, else means over its draws."""
        sites = [run.guide_sites[n] for n in run.discrete if n in run.guide_sites]
        if sites and all(s.cardinality <= SMALL for s in sites):
            found = run.of_guide(self.guide, rows if run.continuous else None, log_sum_exp)
            return {n: _distribution(run.guide_sites[n], p.mean(0)) for n, p in found.items()}
        return {s.name: run.mean_of_draws(s, rows) for s in sites}


def _draws_nothing(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


class _AtMean(SiteMessenger):
    """Continuous latent sites take their mean."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and msg["value"] is None and Site(msg).family in (None, Family.CONTINUOUS):
            msg["value"], msg["done"] = msg["fn"].mean, True


class PosteriorRuns:
    """Runs of one pair with one set of arguments."""

    def __init__(self, pair: Pair, num_samples: int) -> None:
        self.pair, self.num_samples = pair, num_samples
        with on_trial(), torch.no_grad():
            self.trial: Trial = plain_trial(pair)
            check_data(pair, self.trial)
            marginal = marginal_sites(self.trial)
            self.settings = {s.name: Enumerate() for s in marginal}
            if marginal:
                settle_marginals(pair, self.trial, self.settings)
        self.guide_sites = {n: Site(m) for n, m in latent_sites(self.trial.guide_trace).items()}
        self.model_sites = {s.name: s for s in marginal}
        every = self.guide_sites | self.model_sites
        self.discrete = [n for n, s in every.items() if s.family not in (None, Family.CONTINUOUS)]
        self.continuous = [n for n in every if n not in self.discrete]

    @cached_property
    def in_rows(self) -> bool:
        """Whether all draws of the guide may be run at once."""
        with on_trial(), torch.no_grad():
            return self.num_samples > 1 and bool(check_rows(self.pair, self.trial, self.num_samples))

    def _rowed(self, program: Callable[..., Any], rows: int | None) -> Callable[..., Any]:
        program = self.trial.subsamples(program)
        return program if rows is None else pyro.plate(ROWS_PLATE, rows, dim=-1 - self.trial.batch_dims)(program)

    def _traced(self, program: Callable[..., Any]) -> Trace:
        return poutine.trace(program).get_trace(*self.pair.args, **self.pair.kwargs)

    @torch.no_grad()
    def standing_alone(self, guide: Callable[..., Any]) -> Values:
        """The most probable values of the guide's sites that are large and hang together with no other."""
        large = [s for n, s in self.guide_sites.items() if n in self.discrete and SMALL < s.cardinality < math.inf]
        with poutine.block():
            trace = self._traced(self._rowed(guide, None))
        return {n: modes(trace.nodes[n]["fn"]) for n in standing_alone(self.pair, large, self.guide_sites.values())}

    @torch.no_grad()
    def of_guide(
        self, guide: Callable[..., Any], rows: int | None, reduce: Reduce, values: Values | None = None
    ) -> dict[str, Tensor]:
        """For each discrete site of the guide without `values`, how q shares itself out: `[rows, *batch, values]`."""
        settings, drawn = {n: Enumerate() for n in self.discrete}, [*self.continuous, *(values or {})]
        enumerate_guide = Marginalise(drawn, settings, self.trial.batch_dims, masked=reduce is highest)
        with poutine.block():
            trace = self._traced(enumerate_guide(Substitute(values or {})(self._rowed(guide, rows))))
        return self._shared(trace, enumerate_guide, rows, reduce)

    @torch.no_grad()
    def conditional(
        self, rows: int | None, reduce: Reduce, guide: Callable[..., Any] | None = None, values: Values | None = None
    ) -> tuple[Values, dict[str, Tensor]]:
        """Draws of the guide `[rows, *batch, *event]`, and for each site of the model alone how the posterior given
        them shares itself out over its values: `[rows, *batch, values]`."""
        if rows is not None and rows > 1 and not self.in_rows:
            parts = [self.conditional(None, reduce, guide, values) for _ in range(rows)]
            joined = [{n: torch.cat([part[i][n] for part in parts]) for n in parts[0][i]} for i in range(2)]
            return joined[0], joined[1]
        with poutine.block():
            guided = self._traced(Substitute(values or {})(self._rowed(guide or self.pair.guide, rows)))
            drawn = latent_sites(guided)
            marginalise = Marginalise(drawn, self.settings, self.trial.batch_dims, masked=reduce is highest)
            replayed = poutine.replay(marginalise(self._rowed(self.pair.model, rows)), trace=guided)
            trace = self._traced(replayed)
        draws = {n: m["value"].reshape(rows or 1, *self.guide_sites[n].distribution.shape()) for n, m in drawn.items()}
        return draws, self._shared(trace, marginalise, rows, reduce)

    @torch.no_grad()
    def summed(self, guide_trace: Trace, rows: int | None) -> tuple[Trace, dict[str, list[str]]]:
        """The model's trace given one of the guide's, its own sites summed out: see `collapsed`."""
        marginalise = Marginalise(latent_sites(guide_trace), self.settings, self.trial.batch_dims)
        with poutine.block():
            trace = self._traced(poutine.replay(marginalise(self._rowed(self.pair.model, rows)), trace=guide_trace))
        return collapsed(trace, marginalise, self.trial.batch_dims)

    def _shared(self, trace: Trace, enumerated: Marginalise, rows: int | None, reduce: Reduce) -> dict[str, Tensor]:
        found, names = components(trace, enumerated)
        every = {**self.guide_sites, **self.model_sites}
        result = {}
        for component in found:
            for name, part in shares(component, names, enumerated, reduce).items():
                batch = every[name].distribution.batch_shape
                padding = (1,) * (self.trial.batch_dims - len(batch))
                whole = part.expand(rows or 1, *padding, *batch, part.shape[-1])
                result[name] = whole.reshape(rows or 1, *batch, part.shape[-1])
        return result

    def decoded(self, found: Mapping[str, Tensor]) -> Values:
        """Values `[rows, *batch, *event]` of one-hot shares `[rows, *batch, values]`."""
        every = {**self.guide_sites, **self.model_sites}
        values = {}
        for name, share in found.items():
            fn = every[name].distribution
            values[name] = joint_support(fn).reshape(-1, *fn.event_shape)[share.argmax(-1)]
        return values

    @torch.no_grad()
    def mean_of_draws(self, site: Site, rows: int) -> Any:
        """The site's distribution, averaged over the draws before it."""
        if not self.in_rows and rows > 1:
            rows = 1
        with poutine.block():
            fn = self._traced(self._rowed(self.pair.guide, rows)).nodes[site.name]["fn"]
        base = base_distribution(fn)
        probabilities = getattr(base, "probs", None)
        if site.family not in (Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT) or probabilities is None:
            return site.distribution
        mean = probabilities.reshape(rows, *base_distribution(site.distribution).probs.shape).mean(0)
        made = type(base_distribution(site.distribution))(probs=mean)
        return made.to_event(fn.event_dim - len(made.event_shape))

    @torch.no_grad()
    def predicted(self, values: Values, rows: int) -> Values:
        """Observed sites drawn anew, given values of the latent ones `[rows, ...]`."""
        nodes = sample_sites(self.trial.model_trace)
        observed = [n for n, m in nodes.items() if is_random_observation(m)]
        if not self.in_rows:
            parts = [self._again({n: v[i] for n, v in values.items()}, None, observed) for i in range(rows)]
        else:
            padded = {n: self.padded(n, v) for n, v in values.items()}
            parts = [self._again(padded, rows, observed)]
        return {n: torch.cat([p[n].reshape(-1, *nodes[n]["fn"].shape()) for p in parts]) for n in observed}

    def padded(self, name: str, value: Tensor) -> Tensor:
        """Values `[rows, *batch, *event]` with the dims of plates that the site is not in."""
        fn = {**self.guide_sites, **self.model_sites}[name].distribution
        missing = self.trial.batch_dims - len(fn.batch_shape)
        return value.reshape(len(value), *[1] * missing, *fn.shape())

    def _again(self, values: Values, rows: int | None, observed: list[str]) -> Values:
        model = UnconditionSites()(self._rowed(self.pair.model, rows))
        with poutine.block():
            trace = self._traced(Substitute(values)(model))
        return {n: torch.as_tensor(trace.nodes[n]["value"]) for n in observed}


def _distribution(site: Site, probabilities: Tensor) -> Any:
    """A distribution `[*batch, *event]` of a site's kind, from probabilities of its joint values `[*batch, values]`."""
    fn, base = site.distribution, base_distribution(site.distribution)
    probabilities = probabilities.clamp(0, 1)
    if site.family in (Family.COUNT, Family.DISCRETE):
        return dist.Categorical(probs=probabilities)
    support = joint_support(fn).reshape(probabilities.shape[-1], *fn.event_shape)
    if site.family is Family.CATEGORICAL:
        support = F.one_hot(support.long(), base.probs.shape[-1])
    mean = torch.tensordot(probabilities, support.to(probabilities), dims=1)
    kind = dist.Bernoulli if site.family is Family.BERNOULLI else dist.Categorical
    made = (dist.OneHotCategorical if site.family is Family.ONE_HOT else kind)(probs=mean.clamp(0, 1))
    return made.to_event(fn.event_dim - len(made.event_shape))
