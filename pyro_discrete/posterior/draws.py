"""Draws of the guide with what the model makes of them: predictions, log-likelihoods, importance weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteShapeError
from pyro_discrete.inspection.trial import Trial, check_matched, check_pair
from pyro_discrete.inspection.trial_rows import check_rows
from pyro_discrete.posterior.conditional import joined
from pyro_discrete.posterior.discrete_posterior import ELEMENTS_AT_ONCE, NotSummed, PosteriorRuns, answered
from pyro_discrete.posterior.given_draws import GivenDraws
from pyro_discrete.programs.dims import Frames, plates_of
from pyro_discrete.programs.pair import Pair, UnconditionSites, on_trial, trace_pair
from pyro_discrete.programs.sites import (
    guide_terms,
    is_random_observation,
    latent_sites,
    not_drawable,
    sample_sites,
    site_log_prob,
)
from pyro_discrete.sums.elimination import random_value

__all__ = [
    "PosteriorDraws",
    "draw_posterior",
]

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of a guide, each dict from site to `[draws, *batch, *event]` (log-likelihoods `[draws, *batch]`).

    `log_joint` and `log_weight` `[draws]` are scaled and masked; `plates` maps each plate to its (sub-sampled) indices.
    `sites` has a message for each site, as in a run without rows; what some draws lack is NaN there. Discrete sites of
    the model alone are drawn given the guide's draws, and summed out of everything else: `marginal`
    has the plates of log-likelihoods that several observed sites, or several elements of one, have in common.
    """

    trial: Trial
    sites: dict[str, Any]
    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    log_joint: Tensor
    log_weight: Tensor
    terms: dict[tuple[bool, str], Tensor]
    frames: dict[tuple[bool, str], Frames]
    marginal: dict[str, Frames]
    chains: int = 1

    @property
    def plates(self) -> dict[str, Any]:
        """Plate -> indices of its elements."""
        sizes: dict[str, int] = {}
        for frames in [*map(plates_of, self.sites.values()), *self.frames.values()]:
            for frame in frames:
                if frame.vectorized:
                    sizes[frame.name] = max(frame.size, sizes.get(frame.name, 1))
        kept = self.trial.subsamples.indices
        indices = {name: kept.get(name, torch.arange(size)) for name, size in sizes.items()}
        indices |= {name: torch.arange(size) for name, size in sizes.items() if len(indices[name]) != size}
        return {name: index.cpu().numpy() for name, index in indices.items()}

    def log_weight_in(self, plate: str) -> Tensor:
        """`[draws, size]`: log p - log q of the sites inside a plate, scaled and masked, for each of its elements."""
        total: Tensor | float = 0.0
        for (in_model, name), term in self.terms.items():
            frames = [f for f in self.frames[in_model, name] if f.name == plate]
            if frames and frames[0].dim is not None:
                term = term.movedim(frames[0].dim, 1)
                size = max(frames[0].size, term.shape[1])
                kept = term.expand(-1, size, *term.shape[2:]).reshape(len(term), size, -1).sum(-1)
                total = total + (kept if in_model else -kept)
        return torch.as_tensor(total)


@torch.no_grad()
def draw_posterior(pair: Pair, num_samples: int, draws: GivenDraws | None = None) -> PosteriorDraws:
    """Run the guide, and the model against it, `num_samples` times: at once where the programs can take it.

    `draws`: those of the guide, where they are given.
    """
    return answered(pair, num_samples, _draw_posterior, draws)


def _draw_posterior(runs: PosteriorRuns) -> PosteriorDraws:
    num_samples = runs.num_samples
    with on_trial():
        check_pair(runs.trial)
        try:
            vectorised = not runs.drawn_one_by_one and bool(check_rows(runs.pair, runs.trial))
        except DiscreteInferenceError:
            vectorised = False
    parts: list[_Run] = []
    if vectorised:
        try:
            parts = [_Run(runs, rows, first) for first, rows in _sizes(runs, num_samples)]
        except (NotSummed, EnumerationError, SiteShapeError):
            parts = []
    parts = parts or [_Run(runs, None, i) for i in range(num_samples)]
    rows = [part.rows for part in parts]

    def together(read: Callable[[_Run], dict[Any, Tensor]]) -> dict[Any, Tensor]:
        return joined([read(part) for part in parts], rows)

    return PosteriorDraws(
        runs.trial,
        _largest((part.sites for part in parts), lambda msg: math.prod(msg["fn"].batch_shape)),
        together(lambda run: run.posterior),
        together(lambda run: run.predictive),
        together(lambda run: run.log_likelihood),
        torch.cat([run.log_sum(True) for run in parts]),
        torch.cat([run.log_sum(True) - run.log_sum(False) for run in parts]),
        joined([part.terms for part in parts], rows, 0.0),
        _largest((part.frames for part in parts), _elements),
        _largest((part.marginal for part in parts), _elements),
        runs.chains,
    )


def _elements(frames: Frames) -> int:
    return math.prod(frame.size for frame in frames)


def _largest(of_runs: Iterable[Mapping[Key, Found]], size: Callable[[Found], int]) -> dict[Key, Found]:
    """What is said of each site by the run in which it is largest: the size of a plate may be drawn."""
    found: dict[Key, Found] = {}
    for each in of_runs:
        for key, said in each.items():
            if key not in found or size(said) > size(found[key]):
                found[key] = said
    return found


def _sizes(runs: PosteriorRuns, num_samples: int) -> Iterator[tuple[int, int]]:
    """The first draw of each run, and how many it has."""
    traces = (runs.trial.guide_trace, runs.trial.model_trace)
    largest = max((m["value"].numel() for t in traces for m in sample_sites(t).values()), default=1)
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, largest)) if not runs.values else runs.at_once
    for start in range(0, num_samples, at_once):
        yield start, min(at_once, num_samples - start)


class _Run:
    """One run over `rows` draws from the `first` on (None: one draw, without a leading dim); terms `[rows, *batch]`."""

    def __init__(self, runs: PosteriorRuns, rows: int | None, first: int) -> None:
        trial = runs.trial
        self.trial, self.rows, self.leading = trial, 1 if rows is None else rows, rows is not None
        leading = None if rows is None else (rows, -1 - trial.batch_dims)
        if rows is None:
            part = runs.of_one_draw(random_value, runs.pair.guide, {n: v[first] for n, v in runs.values.items()})
        else:
            given = {n: runs.padded(n, v[first : first + rows]) for n, v in runs.values.items()}
            part = runs.over_rows(rows, random_value, runs.pair.guide, given)
        own = part.decoded()
        values = {n: v[0] if rows is None else runs.padded(n, v) for n, v in (part.draws | own).items()}
        guide_trace, model_trace = trace_pair(runs.pair, trial.subsamples, values, leading)
        check_matched(guide_trace, model_trace)
        drawn = {n: m["value"] for n, m in latent_sites(guide_trace).items()} | {n: values[n] for n in own}
        # what the guide observes is drawn anew in the model
        guide = poutine.block(runs.pair.guide, hide_fn=is_random_observation)
        unconditioned = Pair(UnconditionSites()(runs.pair.model), guide, runs.pair.args, runs.pair.kwargs)
        predicted = Trace()
        try:
            predicted = trace_pair(unconditioned, trial.subsamples, drawn, leading)[1]
        except NotImplementedError:
            without = not_drawable(sample_sites(trial.model_trace))
            if not without:
                raise
            warnings.warn(f"posterior_predictive is left out: {without}.", UserWarning, stacklevel=2)
        of_guide, of_model = (
            (guide_trace, model_trace) if rows is None else (trial.guide_trace, trial.model_trace)
        )  # as without rows
        self.sites = {**latent_sites(of_guide), **sample_sites(of_model)}
        self.posterior = {
            n: self._shaped(m["value"], of_guide.nodes[n]) for n, m in latent_sites(guide_trace).items()
        } | own
        observed = {n: m for n, m in sample_sites(of_model).items() if is_random_observation(m)}
        self.predictive = {
            n: self._shaped(torch.as_tensor(predicted.nodes[n]["value"]), m)
            for n, m in observed.items()
            if n in predicted.nodes
        }
        members: Mapping[str, list[str]] = {}
        if own:
            model_trace, members = runs.summed(guide_trace, rows)
        inside = {n for names in members.values() for n in names}
        self.log_likelihood = {
            n: self._log_likelihood(model_trace.nodes[n], tuple(m["fn"].batch_shape))
            for n, m in observed.items()
            if n not in inside
        }
        self.marginal: dict[str, Frames] = {}
        for label, names in members.items():
            self._marginal(model_trace.nodes[label], [n for n in names if n in observed], of_model)
        self.terms = {**self._terms(guide_terms(guide_trace), False), **self._terms(sample_sites(model_trace), True)}
        self.frames = {
            (trace is model_trace, n): plates_of(m)
            for trace in (guide_trace, model_trace)
            for n, m in sample_sites(trace).items()
        }

    def _shaped(self, value: Tensor, single: Any) -> Tensor:
        """`[rows, *batch, *event]`, whatever leading dims of size one the run had."""
        shape = tuple(single["fn"].batch_shape) + tuple(single["fn"].event_shape)
        if value.numel() == math.prod(shape):
            return value.reshape((1, *shape)).expand((self.rows, *shape))
        return value.reshape((self.rows, *shape))

    def _log_likelihood(self, msg: Any, shape: tuple[int, ...]) -> Tensor:
        log_prob = torch.as_tensor(scale_and_mask(site_log_prob(msg), mask=msg["mask"]))
        return log_prob.reshape((-1, *shape)).expand((self.rows, *shape))

    def _marginal(self, msg: Any, observed: Sequence[str], single: Trace) -> None:
        """The log-likelihood that observed sites have in common, by the name of the one in whose plates it is."""
        if not observed:
            return
        plates, name = plates_of(msg), observed[0]
        sizes = {f.dim: f.size for f in plates if f.dim is not None}
        shape = tuple(sizes.get(d, 1) for d in range(min(sizes, default=0), 0))
        if len(observed) > 1 or plates != plates_of(single.nodes[name]):
            name = " + ".join(observed)
            name = f"{name} together" if len(observed) == 1 else name
            self.marginal[name] = plates
        self.log_likelihood[name] = self._log_likelihood(msg, shape)

    def _terms(self, sites: Mapping[str, Any], in_model: bool) -> dict[tuple[bool, str], Tensor]:
        """Scaled and masked log-probabilities, `[rows, *batch]` with as many batch dims as the program has plates."""
        terms = {}
        for name, msg in sites.items():
            log_prob = torch.as_tensor(scale_and_mask(site_log_prob(msg), msg["scale"], msg["mask"]))
            rowed = self.leading and log_prob.dim() > self.trial.batch_dims
            batch = tuple(log_prob.shape)[1:] if rowed else tuple(log_prob.shape)
            padding = (1,) * (self.trial.batch_dims - len(batch))
            terms[in_model, name] = log_prob.reshape((-1, *padding, *batch)).expand((self.rows, *padding, *batch))
        return terms

    def log_sum(self, in_model: bool) -> Tensor:
        """`[rows]`: the sum of the model's or the guide's terms."""
        values = [term.reshape(self.rows, -1).sum(-1) for (model, _), term in self.terms.items() if model is in_model]
        return torch.stack(values).sum(0) if values else torch.zeros(self.rows)
