"""The posterior of a pair's discrete sites: marginals, joint draws, most probable values, predictions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyro
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.distributions.structure import GibbsStructure
from pyro_discrete.draws.log_space import Reduce, log_sum_exp
from pyro_discrete.errors import (
    DiscreteInferenceError,
    EnumerationError,
    SettingError,
    SiteMatchError,
    SiteShapeError,
    UnsupportedSiteError,
    in_a_line,
    is_whole,
    near_matches,
)
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.enumerability import crossing_site, joined_elements, marked_trial
from pyro_discrete.inspection.trial import Trial, check_data, plain_trial
from pyro_discrete.inspection.trial_rows import check_rows
from pyro_discrete.posterior.conditional import (
    Conditional,
    by_draw,
    check_same_shapes,
    check_supports,
    decoded_shares,
    joined,
    of_one_shape,
    of_shares,
)
from pyro_discrete.posterior.given_draws import GivenDraws, as_pair, uncollapsed
from pyro_discrete.posterior.marginals_picture import picture_marginals
from pyro_discrete.posterior.mixtures import MOST_CATEGORIES, Part, averaged, shares_of
from pyro_discrete.posterior.modes import AtCentre, FiniteCounts, modes, standing_alone
from pyro_discrete.posterior.value_by_value import (
    MOST_RUNS,
    EnumeratedRun,
    Leaf,
    Unmarked,
    disagreement,
    leaves,
    note_of_leaves,
    summed_leaves,
    value_by_value,
)
from pyro_discrete.programs.dims import plates_of, subsampling_scale
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import (
    Pair,
    RowsPlate,
    SiteMessenger,
    Substitute,
    UnconditionSites,
    hidden_from_traces,
    on_trial,
    random_state,
    set_random_state,
)
from pyro_discrete.programs.sites import (
    Site,
    base_distribution,
    batched_alike,
    cardinality,
    family_of,
    is_latent,
    is_random_observation,
    joint_support,
    latent_sites,
    not_drawable,
    sample_sites,
    summed_by_parts,
    without_mask,
)
from pyro_discrete.sums.components import (
    Names,
    components,
    contract,
    shares,
    within_budget,
)
from pyro_discrete.sums.counts import Counts, MoreTermsError
from pyro_discrete.sums.elimination import Elimination, highest, random_value
from pyro_discrete.sums.enumerated_sites import Marginalise, in_pairs_where_needed
from pyro_discrete.sums.factors import Component
from pyro_discrete.sums.left_out import note_left_out
from pyro_discrete.sums.marginalisation import Known, collapsed, marginal_sites
from pyro_discrete.tables.html_table import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DiscretePosterior",
    "NotSummed",
    "PosteriorRuns",
    "answered",
    "outside_of_inference_mode",
]


SMALL = 256
"""Guide sites of so many joint values at most are summed over; of larger ones, marginals are means over draws."""


ELEMENTS_AT_ONCE = 2**24
"""Largest tensor of a run in elements; more draws go in several runs."""


Values = dict[str, Tensor]

R = TypeVar("R")


def outside_of_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    """Sums are shared out by a gradient, which inference mode forbids: the function is run outside of it."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            normal = [_normal(a) for a in args]
            return method(*normal, **{k: _normal(a) for k, a in kwargs.items()})

    return run


def _normal(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) and value.is_inference() else value


class DiscretePosterior:
    r"""The posterior of a pair's discrete sites: of those that the guide draws and of those that only the model has.

    .. math:: q(z_g) \; p(z_m \mid z_g, x)

    with :math:`z_g` the guide's sites and :math:`z_m` the model's own, conditioned exactly on the data and on a draw of
    the guide. Each method is one call with the pair's arguments, and no annotations are needed (Pyro's marks, and the
    `num_samples` of a site, change nothing). The cost grows linearly with the length of a chain. Subsampled plates are
    drawn once a call. Continuous sites of the model have to be in the guide.

    - `guide`: None where the guide would draw nothing.
    - `samples`: draws of another inference in the place of a guide: an `MCMC` run (of the model under `collapse`, say),
      or a dict from site names to `[draws, *batch, *event]`. Marginals, samples and most probable values are then given
      for every draw, `[draws, *batch, ...]`, chain after chain; the mean of the marginals' probabilities over draws is
      the posterior's.
    - `num_samples`: draws of the guide to average over, or to return. Where the guide draws nothing that the model's
      own sites depend on, marginals are exact with one.

    Values are summed over side by side, over all draws at once, if plain runs give the same at some values. A program
    for which they do not (that branches on a value, reads it by `.item()`, or has no dims to spare) is run for one draw
    after another, and if need be for one value after another or one joint value after another (1,024 at most): slower,
    and as exact. Each draw has the sites that its own run has; a site, or an element of a plate of
    drawn size, that some draws lack is NaN there.

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
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
        num_samples: int = 100,
        *,
        samples: Any = None,
    ) -> None:
        if not is_whole(num_samples):
            raise SettingError(f"DiscretePosterior: num_samples={num_samples!r} given, a positive number expected.")
        for name, program in (("model", model), ("guide", guide)):
            if not callable(program) and not (program is None and name == "guide"):
                raise SettingError(
                    f"DiscretePosterior: {name}={type(program).__name__} given, a callable program expected."
                )
        if samples is not None and guide is not None:
            raise SettingError("DiscretePosterior: guide and samples given; draws are of the one or of the other.")
        self.model: Callable[..., Any] = uncollapsed(model)
        self.guide: Callable[..., Any] = guide or _draws_nothing
        self.num_samples: int = num_samples
        self.draws: GivenDraws | None = None if samples is None else GivenDraws.of(samples)

    def __repr__(self) -> str:
        guide = None if self.guide is _draws_nothing else _named(self.guide)
        if self.draws is not None:
            return f"DiscretePosterior(model={_named(self.model)}, samples of {', '.join(self.draws.values)})"
        return f"DiscretePosterior(model={_named(self.model)}, guide={guide}, num_samples={self.num_samples})"

    def _repr_html_(self) -> str:
        guide = "none: sites of the model are summed out" if self.guide is _draws_nothing else _named(self.guide)
        before = ("draws", ", ".join(self.draws.values)) if self.draws is not None else ("guide", guide)
        rows = [("model", _named(self.model)), before]
        rows += [("num_samples", self.num_samples)] if self.draws is None else []
        asked = "marginals, samples, most_probable, predictive and plot are each called with the arguments of the pair"
        return html_table(["DiscretePosterior", ""], rows, notes=[asked])

    def plot(
        self, *args: Any, sites: Sequence[str] | None = None, path: str | Path | None = None, **kwargs: Any
    ) -> Figure:
        """The marginals as a picture: bars of a single site, a map of values by elements of many, alike sites in one.

        - `args`, `kwargs`: as of `marginals`. `sites`: which ones; by default all discrete ones. `path`: where the
          picture is saved, too (extra "plots").

        Raises `SettingError` for unknown sites, and what `marginals` raises.
        """
        found = self.marginals(*args, **kwargs)
        for name in sites or ():
            if name not in found:
                raise SettingError(f"plot: there is no discrete site {name!r}. {near_matches(name, found)}")
        chosen = found if sites is None else {name: found[name] for name in sites}
        draws = 1 if self.draws is None else len(next(iter(self.draws.values.values())))
        return picture_marginals(chosen, draws=draws, path=path)

    @outside_of_inference_mode
    def marginals(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Each discrete site's distribution, element by element, of the site's own kind (`Bernoulli`, `Categorical`,
        `OneHotCategorical`, with its `.to_event`; other kinds: `Categorical` over their support in order, that of a
        Multinomial from all trials in the last category to all in the first).

        A structure's are those of each number of its value by itself: a `Categorical` of the item at each place, the
        column of each row, the state of each link, the parent of each node (so its edges), a `Bernoulli` of whether
        each item is chosen; of a large ranking, which has none in closed form, by 1,000 draws.

        The guide's sites of at most 256 joint values are summed out. What hangs on larger ones, on continuous ones or
        on a branch is averaged over `num_samples` draws of these: a count without a last value is then a
        `MixtureOfDraws`, its distributions given the draws before it. The model's own sites are averaged over the joint
        values of the guide's sites, if these are discrete and have at most `num_samples` of them, else over as many
        draws of the guide. Of a site that some draws lack: its distribution where it is drawn, and so of elements
        of a plate whose size is drawn.
        """
        if self.draws is not None:
            parts = self._answered(args, kwargs, lambda run: run.given_draws(log_sum_exp))
            return by_draw(parts)
        return self._answered(
            args, kwargs, lambda run: run.marginals_of_guide(self.num_samples) | run.own_marginals(self.num_samples)
        )

    @outside_of_inference_mode
    def samples(self, *args: Any, **kwargs: Any) -> Values:
        """Joint draws of all discrete sites, `[num_samples, *batch, *event]`."""
        parts = self._answered(args, kwargs, self._joint_draws)
        return joined([p.discrete | p.decoded() for p in parts], [p.rows for p in parts])

    @outside_of_inference_mode
    def most_probable(self, *args: Any, **kwargs: Any) -> Values:
        """The most probable joint values `[*batch, *event]`, along chains by the Viterbi algorithm.

        The guide's sites take the mode of q, the model's own the most probable values given these; large sites of
        independent elements (30 bits), on which no other site of the guide hangs, theirs element by element, and large
        structures of that kind their own mode (a sequential matching has none: the best of 1,000 draws takes its place,
        with a warning). Counts without a last value are gone through up to where next to no probability is left.
        Continuous sites of the guide take their mean, or their median where that is infinite or has no closed form. A
        masked site has no term of its own: the values are the most probable ones of the sites that are not masked (of
        chains of unequal length, up to their ends).
        """
        if self.draws is not None:
            parts = self._answered(args, kwargs, lambda run: run.given_draws(highest))
            return joined([p.discrete | p.decoded() for p in parts], [p.rows for p in parts])

        def best(run: PosteriorRuns) -> Conditional:
            guide = AtCentre()(run.pair.guide)
            return run.conditional(None, highest, guide, run.best_of_guide(guide))[0]

        part = self._answered(args, kwargs, best)
        return {n: v[0] for n, v in (part.discrete | part.decoded()).items()}

    @outside_of_inference_mode
    def predictive(self, *args: Any, **kwargs: Any) -> Values:
        """New data: observed sites drawn anew given joint draws of all latent ones, `[num_samples, *batch, *event]`."""

        def predicted(run: PosteriorRuns) -> Values:
            parts = self._joint_draws(run)
            return joined([run.predicted(p) for p in parts], [p.rows for p in parts])

        return self._answered(args, kwargs, predicted)

    def _joint_draws(self, run: PosteriorRuns) -> list[Conditional]:
        if self.draws is not None:
            return run.given_draws(random_value)
        return run.conditional(self.num_samples, random_value)

    def _answered(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], question: Callable[[PosteriorRuns], R]) -> R:
        if self.draws is not None:
            return answered(as_pair(self.model, self.draws, args, kwargs), self.num_samples, question, self.draws)
        return answered(Pair(self.model, self.guide, args, kwargs), self.num_samples, question)


def _named(program: Any) -> str:
    return getattr(program, "__qualname__", None) or type(program).__name__


def _draws_nothing(*args: Any, **kwargs: Any) -> None:
    """A guide without sites."""


class NotSummed(Exception):  # caught within the package
    """Sums over values side by side cannot be had, or are not what plain runs give."""


def answered(
    pair: Pair, num_samples: int, question: Callable[[PosteriorRuns], R], draws: GivenDraws | None = None
) -> R:
    """What `question` finds by runs of a pair, whose modules' averages and counts are left as they were: again, where
    a sum over a count has to go further."""
    counts = Counts()
    with kept_state(pair.model, pair.guide):
        while True:
            found = question(PosteriorRuns(counts.around(pair), num_samples, draws))
            try:
                counts.judge()
                return found
            except MoreTermsError:
                continue


class PosteriorRuns:
    """Runs of one pair with one set of arguments; `draws` are those of the guide, where they are given."""

    def __init__(self, pair: Pair, num_samples: int, draws: GivenDraws | None = None) -> None:
        self.pair: Pair = Pair(Unmarked()(pair.model), Unmarked()(pair.guide), pair.args, pair.kwargs)
        self.marked_alone: EnumerationError | None = None
        try:
            self.trial: Trial = _trial(self.pair)
        except (ValueError, RuntimeError, IndexError) as error:
            self.marked_alone = _marked_alone(pair, error)
            self.pair = Pair(_draws_nothing, self.pair.guide, pair.args, pair.kwargs)
            self.trial = _trial(self.pair)
        self.values: Values = {}
        self.chains: int = 1
        self.num_samples: int = num_samples
        if draws is None:
            _refuse_swapped(self.trial)
        else:
            self.values, self.chains = draws.fitted(self.trial)
            self.num_samples = len(next(iter(self.values.values())))
        marginal = marginal_sites(self.trial)
        self.guide_sites: dict[str, Site] = {n: Site(m) for n, m in latent_sites(self.trial.guide_trace).items()}
        self.model_sites: dict[str, Site] = {s.name: s for s in marginal}
        every = self.guide_sites | self.model_sites
        self.settings: dict[str, Enumerate] = {n: Enumerate() for n in every}
        self._places_read: dict[str, int] = {}
        self._without_draws: dict[bool, EnumeratedRun | list[Leaf]] = {}
        self.discrete: list[str] = [n for n, s in every.items() if s.family not in (None, Family.CONTINUOUS)]

    @cached_property
    def by_parts(self) -> dict[str, GibbsStructure]:
        """The model's own structures that are summed by their partition function."""
        found = {n: summed_by_parts(s.distribution) for n, s in self.model_sites.items()}
        return {n: structure for n, structure in found.items() if structure is not None}

    @property
    def guide_draws(self) -> bool:
        """Whether the guide draws anything."""
        return bool(self.guide_sites)

    @property
    def drawn_one_by_one(self) -> bool:
        """Whether the guide has a site whose distribution draws one value at a time."""
        return any(batched_alike(site.distribution) for site in self.guide_sites.values())

    @cached_property
    def in_rows(self) -> bool:
        """Whether all draws of the guide may be run at once."""
        return self._takes_rows(self.pair)

    @cached_property
    def guide_in_rows(self) -> bool:
        """Whether so many runs of the guide, by itself, may be made at once."""
        return self._takes_rows(Pair(_draws_nothing, self.pair.guide, self.pair.args, self.pair.kwargs))

    def _takes_rows(self, pair: Pair) -> bool:
        if self.num_samples == 1 or self.drawn_one_by_one:
            return False
        with on_trial(), torch.no_grad():
            try:
                return bool(check_rows(pair, self._trial_of(pair)))
            except DiscreteInferenceError:
                return False

    def _trial_of(self, pair: Pair) -> Trial:
        model = self.trial.model_trace if pair is self.pair else Trace()
        return Trial(self.trial.guide_trace, model, self.trial.subsamples, self.trial.batch_dims)

    @cached_property
    def _own_hang_together(self) -> bool:
        """Whether elements of a plate of the model's own sites are not to be summed over by themselves."""
        return self._hang_together(self.pair, self.model_sites.values())

    @cached_property
    def _guides_hang_together(self) -> bool:
        """The same of the guide's."""
        alone = Pair(_draws_nothing, self.pair.guide, self.pair.args, self.pair.kwargs)
        return self._hang_together(alone, (s for n, s in self.guide_sites.items() if n in self.discrete))

    def _hang_together(self, pair: Pair, sites: Iterable[Site]) -> bool:
        small = [s for s in sites if s.cardinality <= SMALL]
        with on_trial():
            try:
                crossed = crossing_site(pair, self._trial_of(pair), small)
                return crossed is not None or bool(joined_elements(pair, self._trial_of(pair), small))
            except Exception:  # at values that are never drawn, perhaps: what is believed is checked anyway
                return False

    def rowed(self, program: Callable[..., Any], rows: int | None) -> Callable[..., Any]:
        """The program with the call's subsamples, over rows unless these are None."""
        program = self.trial.subsamples(program)
        return program if rows is None else RowsPlate(rows, -1 - self.trial.batch_dims)(program)

    def traced(self, program: Callable[..., Any], *handlers: Any) -> Trace:
        """The program's trace, the first handler innermost, hidden from those around."""
        for handler in handlers:
            program = handler(program)
        with poutine.block():
            return poutine.trace(program).get_trace(*self.pair.args, **self.pair.kwargs)

    # -------------------------------------------------------------------------------------------- sums

    def _check_apart(self, guides: bool) -> None:
        if self._guides_hang_together if guides else self._own_hang_together:
            raise NotSummed("elements of a plate hang together")

    def _in_parallel(
        self,
        program: Callable[..., Any],
        given: Values,
        drawn: Any,
        rows: int | None,
        masked: bool,
        own_terms_alone: bool = False,
    ) -> EnumeratedRun:
        """A run with values side by side, and checked. Raises `NotSummed`, or `EnumerationError` beyond the budget."""
        self._check_apart(own_terms_alone)
        program = _Unscaled()(program) if own_terms_alone else program
        batch_dims = self.trial.batch_dims - (rows is None)

        def summed(by_parts: Mapping[str, int]) -> tuple[EnumeratedRun, list[Component], Names]:
            enumerated = Marginalise(drawn, self.settings, batch_dims, masked=masked, by_parts=by_parts)
            trace = self.traced(self.rowed(program, rows), enumerated, Substitute(given))
            run = EnumeratedRun(trace, enumerated, rows, batch_dims)
            made = run, *components(self._terms_of(run, own_terms_alone), enumerated)
            self._places_read |= by_parts
            return made

        try:
            own_parts = [] if own_terms_alone else [n for n in self.by_parts if n not in drawn]
            run, found, names = in_pairs_where_needed(summed, {n: self._places_read.get(n, 1) for n in own_parts})
            for component in found:
                within_budget(component, self.settings)
            with on_trial(), torch.no_grad():
                plain = self.rowed(program, None)
                single = {} if rows is not None else given
                reason = disagreement(
                    run,
                    found,
                    names,
                    lambda msg: msg["name"] not in drawn,
                    lambda *handlers: self.traced(plain, *handlers, Substitute(single)),
                    own_terms_alone,
                )
        except DiscreteInferenceError:
            raise
        except Exception as error:
            raise NotSummed(in_a_line(error)) from error
        if reason:
            raise NotSummed(reason)
        return run

    @staticmethod
    def _terms_of(run: EnumeratedRun, own_alone: bool) -> Trace:
        """The trace, of which only the terms of the sites that are summed over are kept if `own_alone`."""
        if not own_alone:
            return run.trace
        kept = Trace()
        for name, msg in run.trace.nodes.items():
            if name in run.enumerated.own:
                kept.add_node(name, **msg)
        return kept

    def _by_value(
        self,
        program: Callable[..., Any],
        given: Values,
        own: Callable[[Any], bool],
        drawn: Any,
        masked: bool,
        own_terms_alone: bool = False,
    ) -> EnumeratedRun:
        """Tables from a run for each value, and checked."""
        self._check_apart(own_terms_alone)
        plain = self.rowed(program, None)

        def traced(*handlers: Any) -> Trace:
            return self.traced(plain, *handlers, Substitute(given))

        try:
            with on_trial(), torch.no_grad():
                run = value_by_value(traced, own, drawn, masked, self.trial.batch_dims)
                found, names = components(self._terms_of(run, own_terms_alone), run.enumerated)
                for component in found:
                    within_budget(component, self.settings)
                reason = disagreement(run, found, names, own, traced, own_terms_alone)
        except Exception as error:
            raise NotSummed(in_a_line(error)) from error
        if reason:
            raise NotSummed(reason)
        return run

    def _shared(
        self, run: EnumeratedRun, reduce: Reduce, own_terms_alone: bool = False
    ) -> tuple[Values, dict[str, Any]]:
        found, names = components(self._terms_of(run, own_terms_alone), run.enumerated)
        result = {}
        for component in found:
            if not component.sites:
                continue
            note_left_out(component)
            for name, part in shares(component, names, run.enumerated, reduce).items():
                batch = run.plain[name].batch_shape
                padding = (1,) * (self.trial.batch_dims - len(batch))
                whole = part.expand(run.rows or 1, *padding, *batch, part.shape[-1])
                result[name] = whole.reshape(run.rows or 1, *batch, part.shape[-1])
        return result, {name: run.plain[name] for name in result}

    def _shared_by_leaves(self, found: Sequence[Leaf], reduce: Reduce) -> tuple[Values, dict[str, Any]]:
        """Shares `[1, *batch, values]` of joint values gone through one by one; a site's add up to its probability."""
        weights = torch.stack([leaf.log_weight for leaf in found])
        if reduce is highest:
            weights = F.one_hot(weights.argmax(), len(found)).double()
        elif reduce is log_sum_exp:
            weights = weights.softmax(0)
        else:
            chosen = torch.distributions.Categorical(logits=weights).sample()
            weights = F.one_hot(chosen, len(found)).double()
        result: Values = {}
        fns: dict[str, Any] = {}
        for leaf, weight in zip(found, weights, strict=True):
            if reduce is not log_sum_exp and not weight:
                continue
            for name, index in leaf.given.items():
                share, fn = (F.one_hot(index, leaf.sizes[name]) * weight).unsqueeze(0), leaf.trace.nodes[name]["fn"]
                both = [(fns[name], result[name]), (fn, share)] if name in result else [(fn, share)]
                check_supports(name, both)
                fns[name] = max(both, key=lambda each: each[1].shape[-1])[0]
                result[name] = torch.cat(of_one_shape(name, [part for _, part in both])).sum(0, keepdim=True)
        return result, fns

    def _shared_by(
        self, way: EnumeratedRun | list[Leaf], reduce: Reduce, own_terms_alone: bool = False
    ) -> tuple[Values, dict[str, Any]]:
        if isinstance(way, EnumeratedRun):
            return self._shared(way, reduce, own_terms_alone)
        return self._shared_by_leaves(way, reduce)

    def _own_shares(self, given: Values, reduce: Reduce) -> tuple[Values, dict[str, Any]]:
        """The model's own sites given one draw of the guide's, by whatever way is exact."""
        masked, drawn, model = reduce is highest, given.keys(), self.pair.model
        if self.model_sites.keys() <= drawn:
            with on_trial():
                trace = self.traced(self.rowed(model, None), Substitute(given))
            if not latent_sites(trace).keys() - drawn:
                return {}, {}
        known = None if given else self._without_draws.get(masked)
        if known is None:
            known = self._way(given, masked)
            if not given:  # the same for every draw
                self._without_draws[masked] = known
        return self._shared_by(known, reduce)

    def _way(self, given: Values, masked: bool) -> EnumeratedRun | list[Leaf]:
        """The model's own sites side by side, or one value after another, or one joint value after another."""
        model, drawn = self.pair.model, given.keys()

        def own(msg: Any) -> bool:
            return msg["name"] not in drawn

        try:
            return self._in_parallel(model, given, drawn, None, masked)
        except SiteMatchError:
            raise
        except (NotSummed, DiscreteInferenceError) as error:
            first = error
        with on_trial():  # what the program draws by itself is the same in every run of a sum
            model = _with_noise_of(int(torch.randint(2**31, ())), model)
        try:
            return self._by_value(model, given, own, drawn, masked)
        except NotSummed:
            pass
        try:
            plain = self.rowed(model, None)
            with on_trial():
                found = list(leaves(lambda *h: self.traced(plain, *h, Substitute(given)), own, masked, False))
            note_of_leaves(found)
            return found
        except Exception as error:
            raise self._refusal(self.model_sites, first, error) from first

    @staticmethod
    def _refusal(sites: Iterable[str], first: Exception, last: Exception) -> Exception:
        if isinstance(first, DiscreteInferenceError):
            return first
        listed = list(sites)
        named = ", ".join(map(repr, listed[:5])) + (", ..." if len(listed) > 5 else "")
        return EnumerationError(
            f"Sites {named} cannot be summed over: not side by side ({first}), nor one joint value after another "
            f"({in_a_line(last)})"
        )

    # -------------------------------------------------------------------------------------------- the model's sites

    @torch.no_grad()
    def conditional(
        self, rows: int | None, reduce: Reduce, guide: Callable[..., Any] | None = None, values: Values | None = None
    ) -> list[Conditional]:
        """Draws of the guide, and how the posterior given them shares itself out: in one run, or one for each draw."""
        guide = guide or self.pair.guide
        if rows is not None and rows > 1 and self.in_rows:
            try:
                return [self.over_rows(rows, reduce, guide, values or {})]
            except (NotSummed, EnumerationError, SiteShapeError):
                pass
        return [self.of_one_draw(reduce, guide, values or {}) for _ in range(rows or 1)]

    @torch.no_grad()
    def given_draws(self, reduce: Reduce) -> list[Conditional]:
        """How the posterior given each of the draws that were handed over shares itself out; many at once."""
        found: list[Conditional] = []
        every, at_once = self.num_samples, self.at_once
        if every > 1 and self.in_rows:
            padded = {n: self.padded(n, v) for n, v in self.values.items()}
            try:
                for start in range(0, every, at_once):
                    rows = min(at_once, every - start)
                    part = {n: v[start : start + rows] for n, v in padded.items()}
                    found.append(self.over_rows(rows, reduce, self.pair.guide, part))
                return found
            except (NotSummed, EnumerationError, SiteShapeError):
                found = []
        for i in range(every):
            found.append(self.of_one_draw(reduce, self.pair.guide, {n: v[i] for n, v in self.values.items()}))
        return found

    @property
    def at_once(self) -> int:
        """How many draws are run together: as many as keep tables to some millions of elements."""
        nodes = [*sample_sites(self.trial.model_trace).values(), *sample_sites(self.trial.guide_trace).values()]
        numbers = max((torch.as_tensor(m["value"]).numel() for m in nodes), default=1)
        values = [
            s.cardinality for n, s in self.model_sites.items() if s.cardinality < math.inf and n not in self.by_parts
        ]
        values += [structure.numbers ** self._places_read.get(n, 1) for n, structure in self.by_parts.items()]
        return max(1, int(ELEMENTS_AT_ONCE // (numbers * max(values, default=1) ** 2)))

    def own_marginals(self, num_samples: int) -> dict[str, Any]:
        """Marginals of the sites of the model alone, averaged over draws of the guide."""
        if not self.model_sites and self.in_rows:  # so are its sites: none in any draw
            return {}
        parts = self._over_joint_values(num_samples)
        if parts is None:
            parts = self.conditional(num_samples if self.guide_draws else 1, log_sum_exp)
        totals: dict[str, list[tuple[Any, Tensor]]] = {}
        for part in parts:
            for name, share in part.shares.items():
                totals.setdefault(name, []).append((part.fns[name], share))
        return {name: of_shares(name, each) for name, each in totals.items()}

    @torch.no_grad()
    def _over_joint_values(self, most: int) -> list[Conditional] | None:
        """Instead of draws of the guide: each of its joint values, shares weighed by how probable it is times how many
        there are. None where there are more than `most`, or continuous sites with noise of their own."""
        if not self.guide_draws or any(n not in self.discrete and not self.is_point_mass(n) for n in self.guide_sites):
            return None
        guide, plain = self.pair.guide, self.rowed(self.pair.guide, None)
        try:
            with on_trial():
                found = list(leaves(lambda *h: self.traced(plain, *h), _is_discrete, False, True, most))
            if any(not _has_no_noise(leaf) for leaf in found):
                return None
        except Exception:  # too many, or of runs at values that are never drawn: draws will do
            return None
        weights = torch.stack([leaf.log_weight for leaf in found]).softmax(0)
        found = [leaf for leaf, weight in zip(found, weights, strict=True) if weight > 0]
        weights = weights[weights > 0] * len(found)
        values: list[Values] = [{n: leaf.value(n) for n in leaf.given} for leaf in found]
        if len(found) > 1 and self.in_rows:
            stacked = {n: self.padded(n, torch.stack([v[n] for v in values])) for n in values[0]}
            try:
                part = self.over_rows(len(found), log_sum_exp, guide, stacked)
                part.shares = {n: s * weights.reshape(-1, *(1,) * (s.dim() - 1)) for n, s in part.shares.items()}
                return [part]
            except (NotSummed, EnumerationError, SiteShapeError):
                pass
        parts = [self.of_one_draw(log_sum_exp, guide, value) for value in values]
        for part, weight in zip(parts, weights, strict=True):
            part.shares = {n: s * weight for n, s in part.shares.items()}
        return parts

    @torch.no_grad()
    def over_rows(self, rows: int, reduce: Reduce, guide: Callable[..., Any], values: Values) -> Conditional:
        """`conditional` in one run."""
        guided = latent_sites(self.traced(self.rowed(guide, rows), Substitute(values)))
        draws = {n: m["value"].reshape(rows, *self.guide_sites[n].distribution.shape()) for n, m in guided.items()}
        part = Conditional(rows, draws, families={n: family_of(m["fn"]) for n, m in guided.items()}, in_rows=True)
        if self.model_sites:
            given = {n: m["value"] for n, m in guided.items()}
            run = self._in_parallel(self.pair.model, given, given.keys(), rows, reduce is highest)
            part.shares, part.fns = self._shared(run, reduce)
        return part

    @torch.no_grad()
    def of_one_draw(self, reduce: Reduce, guide: Callable[..., Any], values: Values) -> Conditional:
        """`conditional` for one draw, matched for itself."""
        guided = latent_sites(self.traced(self.rowed(guide, None), Substitute(values)))
        draws = {n: m["value"].reshape(1, *m["fn"].shape()) for n, m in guided.items()}
        part = Conditional(1, draws, families={n: family_of(m["fn"]) for n, m in guided.items()})
        part.shares, part.fns = self._own_shares({n: m["value"] for n, m in guided.items()}, reduce)
        return part

    @torch.no_grad()
    def summed(self, guide_trace: Trace, rows: int | None) -> tuple[Trace, Mapping[str, list[str]]]:
        """The model's trace given one of the guide's, its own sites summed out: see `collapsed`."""
        given = {n: m["value"] for n, m in latent_sites(guide_trace).items()}
        if rows is not None:
            known = self._in_parallel(self.pair.model, given, given.keys(), rows, False)
        else:
            known = self._way(given, False)
        if isinstance(known, EnumeratedRun):
            return collapsed(known.trace, known.enumerated, known.batch_dims)
        return summed_leaves(known, self.trial.batch_dims)

    # -------------------------------------------------------------------------------------------- the guide's sites

    @torch.no_grad()
    def marginals_of_guide(self, num_samples: int) -> dict[str, Any]:
        """The guide's own marginals: sums over its small sites, means over draws of the others."""
        if not self.guide_draws:
            return {}
        if not any(n in self.guide_sites for n in self.discrete) and self.guide_in_rows:  # so are its sites
            return {}
        beside = [n for n, s in self.guide_sites.items() if n not in self.discrete or s.cardinality > SMALL]
        try:
            return self._enumerated_marginals(beside, num_samples if beside else 1)
        except (NotSummed, DiscreteInferenceError):
            pass
        try:
            return self._marginals_by_values(beside, num_samples)
        except Exception:  # too many, or of runs at values that are never drawn, perhaps
            return self._means_of_draws(num_samples)

    def _marginals_by_values(self, beside: Sequence[str], num_samples: int) -> dict[str, Any]:
        """The same, one value, or joint value, of the small sites after another, all with the same noise of those
        `beside`. What hangs on that noise is averaged over draws, from plain runs if these would be too many."""
        draws = num_samples if any(not self.is_point_mass(n) for n in beside) else 1
        large = [n for n in beside if n in self.discrete]
        found: list[tuple[Values, dict[str, Any]]] = []
        parts: dict[str, list[Part]] = {}
        while len(found) < draws:
            guide = _with_noise_of(int(torch.randint(2**31, ())), self.pair.guide)
            way = self._way_of_guide(guide, {}, beside, False)
            found.append(self._shared_by(way, log_sum_exp, True))
            if isinstance(way, EnumeratedRun):
                runs = math.prod(share.shape[-1] for share in found[-1][0].values())
            else:
                runs = len(way)
                draws = num_samples if not all(map(_has_no_noise, way)) else draws
                weights = torch.stack([leaf.log_weight for leaf in way]).softmax(0)
                for leaf, weight in zip(way, weights, strict=True):
                    for name in large:
                        if name in leaf.trace.nodes:
                            parts.setdefault(name, []).append((leaf.trace.nodes[name]["fn"], weight))
            draws = min(draws, max(2, MOST_RUNS // runs))
        made: dict[str, Any] = {}
        noisy = bool(large)
        for name in dict.fromkeys(n for values, _ in found for n in values):
            each = [(fns[name], values[name]) for values, fns in found if name in values]
            same = len(each) == len(found) and all(_alike(share, each[0][1]) for _, share in each[1:])
            if same or draws == num_samples:
                made[name] = of_shares(name, each)
            else:
                noisy = True
        if draws == num_samples or not noisy:
            for name, each in parts.items():
                check_same_shapes(name, each, len(each))
                total = sum(weight for _, weight in each)
                made[name] = averaged(each[0][0], [(fn, weight / total) for fn, weight in each])
            return made
        return self._means_of_draws(num_samples) | made

    def is_point_mass(self, name: str) -> bool:
        """Whether a site of the guide has no noise of its own."""
        return isinstance(base_distribution(self.guide_sites[name].distribution), Delta)

    def _enumerated_marginals(self, beside: Sequence[str], num_samples: int) -> dict[str, Any]:
        """Sums over the small sites of the guide, given draws of those `beside` them."""
        runs: list[EnumeratedRun] = []
        if num_samples > 1 and self.guide_in_rows:
            try:
                runs = [self._in_parallel(self.pair.guide, {}, beside, num_samples, False, True)]
            except (NotSummed, DiscreteInferenceError):
                runs = []
        runs = runs or [self._in_parallel(self.pair.guide, {}, beside, None, False, True) for _ in range(num_samples)]
        small: dict[str, list[tuple[Any, Tensor]]] = {}
        large: dict[str, list[Part]] = {}
        for run in runs:
            found, fns = self._shared(run, log_sum_exp, True)
            for name, share in found.items():
                small.setdefault(name, []).append((fns[name], share))
            for name in beside:
                if name in self.discrete and name in run.trace.nodes:
                    fn = run.trace.nodes[name]["fn"]
                    large.setdefault(name, []).append((fn, self._weights(run, name) / (run.rows or 1)))
        made = {name: of_shares(name, parts) for name, parts in small.items()}
        for name, parts in large.items():
            made[name] = averaged(self.guide_sites[name].distribution, [(fn, w / len(parts)) for fn, w in parts])
        return {name: made[name] for name in [*self.discrete, *made] if name in made}

    def _weights(self, run: EnumeratedRun, name: str) -> Tensor:
        """What each element of a drawn site's batch weighs, by the values of the summed sites that it hangs on."""
        kept = self._terms_of(run, True)
        msg = run.trace.nodes[name]
        ones = torch.zeros(msg["fn"].batch_shape, dtype=torch.double)
        zero = {"fn": Known(ones), "value": torch.zeros(()), "mask": None, "args": (), "kwargs": {}}
        kept.add_node(name, **{**msg, **zero})
        for component in components(kept, run.enumerated)[0]:
            for factor in component.factors:
                if factor.name == name:
                    return _joint_share(component, name).reshape(ones.shape)
        return torch.ones(ones.shape, dtype=torch.double)

    def _way_of_guide(
        self, guide: Callable[..., Any], given: Values, beside: Sequence[str], masked: bool
    ) -> EnumeratedRun | list[Leaf]:
        """The guide's discrete sites one value, or joint value, after another; those given or `beside` them are not.

        Sites beside them have to be the same in every run in which the sites before them are.
        """
        drawn, guide = [*given, *beside], _Unscaled()(guide)

        def own(msg: Any) -> bool:
            return msg["name"] not in drawn and _is_discrete(msg)

        if not any(n in self.discrete for n in beside):
            try:
                return self._by_value(guide, given, own, drawn, masked, True)
            except NotSummed:
                pass
        plain = self.rowed(guide, None)
        with on_trial():
            return list(leaves(lambda *h: self.traced(plain, *h, Substitute(given)), own, masked, True))

    def _means_of_draws(self, num_samples: int) -> dict[str, Any]:
        """Each discrete site's distribution, averaged over draws of what is before it."""
        parts: dict[str, list[Part]] = {}
        plain: dict[str, Any] = {}
        if num_samples > 1 and self.guide_in_rows:
            trace = self.traced(self.rowed(self.pair.guide, num_samples))
            for name, msg in latent_sites(trace).items():
                fn, plain[name] = msg["fn"], self.guide_sites[name].distribution
                parts[name] = [(fn, torch.full((), 1 / num_samples, dtype=torch.double))]
        else:
            for _ in range(num_samples):
                trace = self.traced(self.rowed(self.pair.guide, None))
                for name, msg in latent_sites(trace).items():
                    plain.setdefault(name, msg["fn"])
                    parts.setdefault(name, []).append((msg["fn"], torch.ones((), dtype=torch.double)))
            parts = {n: [(fn, w / len(each)) for fn, w in each] for n, each in parts.items()}
        found = {}
        for name, each in parts.items():
            if family_of(plain[name]) in (None, Family.CONTINUOUS):
                continue
            if len({fn.batch_shape for fn, _ in each}) > 1 and cardinality(plain[name]) <= MOST_CATEGORIES:
                support = joint_support(plain[name]).reshape(-1, *plain[name].event_shape)
                shares = [(fn, shares_of(without_mask(fn), support).unsqueeze(0)) for fn, _ in each]
                found[name] = of_shares(name, shares)
                continue
            check_same_shapes(name, each, num_samples)
            found[name] = averaged(plain[name], each)
        return found

    @torch.no_grad()
    def best_of_guide(self, guide: Callable[..., Any]) -> Values:
        """The mode of the guide's discrete sites `[*batch, *event]`, its continuous ones given by `guide`."""
        if not self.guide_draws:
            return {}
        guide = FiniteCounts()(guide)
        trace = self.traced(self.rowed(guide, None))
        latent = {n: Site(m) for n, m in latent_sites(trace).items()}
        large = [s for s in latent.values() if s.cardinality > SMALL and _has_modes(s)]
        alone = {n: modes(trace.nodes[n]["fn"]) for n in standing_alone(self.pair, large, latent.values())}
        if all(n in alone or s.family in (None, Family.CONTINUOUS) for n, s in latent.items()):
            return alone
        beside = [*alone, *(n for n in self.guide_sites if n not in self.discrete)]
        try:
            run = self._in_parallel(guide, alone, beside, None, True, True)
            found, fns = self._shared(run, highest, True)
        except SiteMatchError:
            raise
        except (NotSummed, DiscreteInferenceError) as first:
            try:
                continuous = [n for n in self.guide_sites if n not in self.discrete]  # at their centres
                way = self._way_of_guide(guide, alone, continuous, True)
                found, fns = self._shared_by(way, highest, True)
            except Exception as last:
                raise self._refusal([n for n in self.discrete if n in self.guide_sites], first, last) from first
        return alone | {n: v[0] for n, v in decoded_shares(found, fns).items()}

    # -------------------------------------------------------------------------------------------- predictions

    @torch.no_grad()
    def predicted(self, part: Conditional) -> Values:
        """Observed sites drawn anew, given draws of the latent ones: `[rows, *batch, *event]`."""
        self.check_runs()
        values = part.draws | part.decoded()
        model = UnconditionSites()(self.rowed(self.pair.model, part.rows if part.in_rows else None))
        given = {n: self.padded(n, v) if part.in_rows else v[0] for n, v in values.items()}
        nodes = sample_sites(self.trial.model_trace)
        try:
            trace = self.traced(model, Substitute(given))
        except NotImplementedError as error:
            without = not_drawable(nodes)
            if not without:
                raise
            raise UnsupportedSiteError(f"There is nothing to predict by: {without}.") from error
        if part.in_rows:
            observed = {n: m["fn"].shape() for n, m in nodes.items() if is_random_observation(m)}
            return {
                n: torch.as_tensor(trace.nodes[n]["value"]).reshape(-1, *shape).expand(part.rows, *shape)
                for n, shape in observed.items()
            }
        latent = values.keys() | {n for n, m in nodes.items() if is_latent(m)}
        again = {n: m for n, m in sample_sites(trace).items() if n not in latent and _is_drawn_anew(m)}
        return {n: torch.as_tensor(m["value"]).reshape(1, *m["fn"].shape()) for n, m in again.items()}

    def check_runs(self) -> None:
        """Raise `EnumerationError` if the model does not run on single values."""
        if self.marked_alone is not None:
            raise self.marked_alone

    def padded(self, name: str, value: Tensor) -> Tensor:
        """Values `[rows, *batch, *event]` with the dims of plates that the site is not in."""
        fn = {**self.guide_sites, **self.model_sites}[name].distribution
        missing = self.trial.batch_dims - len(fn.batch_shape)
        return value.reshape(len(value), *[1] * missing, *fn.shape())


class _Unscaled(SiteMessenger):
    """Leaves out what weighs a guide's terms: its sites are drawn as they are without it."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def _with_noise_of(seed: int, program: Callable[..., Any]) -> Callable[..., Any]:
    """The program, each of whose runs begins with the same random state, to be run where this is put back after."""

    def run(*args: Any, **kwargs: Any) -> Any:
        pyro.set_rng_seed(seed)
        return program(*args, **kwargs)

    return run


def _has_no_noise(leaf: Leaf) -> bool:
    """Whether nothing but point masses is drawn beside the values that are given."""
    latent = latent_sites(leaf.trace).items()
    return all(n in leaf.given or isinstance(base_distribution(m["fn"]), Delta) for n, m in latent)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Up to rounding in single precision."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=1e-6)


def _is_discrete(msg: Any) -> bool:
    return family_of(msg["fn"]) not in (None, Family.CONTINUOUS)


def _has_modes(site: Site) -> bool:
    """Whether each element's most probable value can be told by itself."""
    return site.family is Family.STRUCTURE or (_is_discrete(site) and site.cardinality < math.inf)


def _is_drawn_anew(msg: Any) -> bool:
    return is_random_observation({**msg, "is_observed": True})


def _trial(pair: Pair) -> Trial:
    """A trial run that leaves the random state as it was, unless it drew a subsample: every call draws its own."""
    before = random_state()
    with hidden_from_traces(), torch.inference_mode(False), torch.no_grad():
        trial = plain_trial(pair)
    frames = [f for t in (trial.guide_trace, trial.model_trace) for m in sample_sites(t).values() for f in plates_of(m)]
    if subsampling_scale(frames) == 1:
        set_random_state(before)
    with on_trial(), torch.no_grad():
        check_data(pair, trial)
    return trial


def _marked_alone(pair: Pair, error: Exception) -> EnumerationError:
    """What to say of a model that runs only while marked sites are enumerated: the guide alone has the posterior.

    Raises `error` of any other model, and `EnumerationError` where the model has latent sites of its own.
    """
    if isinstance(error, DiscreteInferenceError):
        raise error
    with on_trial():
        marked = marked_trial(pair, math.inf)
    if marked is None:
        raise error
    found = EnumerationError(
        "The model runs only while sites are enumerated in parallel, as it marks them: on single values, of which "
        f"this is asked, it raises {in_a_line(error)}. Index from the right so that single values can be read too."
    )
    found.__cause__ = error
    if latent_sites(marked.model_trace).keys() - latent_sites(marked.guide_trace).keys():
        raise found
    return found


def _refuse_swapped(trial: Trial) -> None:
    """Refuse a model that observes nothing beside a guide that does."""
    seen = [n for n, m in sample_sites(trial.guide_trace).items() if is_random_observation(m)]
    if seen and not any(m["is_observed"] for m in sample_sites(trial.model_trace).values()):  # a pyro.factor counts
        raise SettingError(
            f"The guide observes {', '.join(map(repr, seen[:3]))} and the model observes nothing, as if swapped: "
            "the model comes first, the guide second, as in DiscretePosterior(model, guide)."
        )


def _joint_share(component: Component, name: str) -> Tensor:
    """How the values on which a factor hangs share the sum out: packed, as that factor is."""
    wanted = None
    for factor in component.factors:
        dims = factor.value._pyro_dims  # type: ignore[attr-defined]
        factor.value = factor.value.detach().double().requires_grad_(factor.name == name)
        factor.value._pyro_dims = dims  # type: ignore[attr-defined]
        wanted = factor.value if factor.name == name else wanted
    assert wanted is not None
    with torch.enable_grad():
        total = contract(component, Elimination(log_sum_exp)).sum()
        return torch.autograd.grad(total, [wanted])[0]
