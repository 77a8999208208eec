"""Draws of the guide with what the model makes of them: predictions, log-likelihoods, importance weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_discrete.errors import SiteShapeError
from pyro_discrete.inspection.trial import Trial, check_pair, check_rows, plain_trial
from pyro_discrete.posterior.discrete_posterior import PosteriorRuns
from pyro_discrete.programs.dims import Frames, plates_of
from pyro_discrete.programs.pair import Pair, UnconditionSites, on_trial, trace_pair
from pyro_discrete.programs.sites import guide_terms, is_random_observation, latent_sites, sample_sites, site_log_prob
from pyro_discrete.sums.components import random_value
from pyro_discrete.sums.marginalisation import marginal_sites

__all__ = [
    "PosteriorDraws",
    "draw_posterior",
]


ELEMENTS_AT_ONCE = 2**24
"""Largest tensor of a run in elements; more draws go in several runs."""


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of a guide, each dict from site to `[draws, *batch, *event]` (log-likelihoods `[draws, *batch]`).

    `log_joint` and `log_weight` `[draws]` are scaled and masked; `plates` maps each plate to its (sub-sampled) indices.
    Discrete sites of the model alone are drawn given the guide's draws, and summed out of everything else: `marginal`
    has the plates of log-likelihoods that several observed sites, or several elements of one, have in common.
    """

    trial: Trial
    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    log_joint: Tensor
    log_weight: Tensor
    terms: dict[tuple[bool, str], Tensor]
    frames: dict[tuple[bool, str], Frames]
    marginal: dict[str, Frames]

    @property
    def plates(self) -> dict[str, Any]:
        """Plate -> indices of its elements."""
        found: dict[str, Any] = {}
        for trace in (self.trial.guide_trace, self.trial.model_trace):
            for msg in sample_sites(trace).values():
                for frame in plates_of(msg):
                    if frame.vectorized:
                        index = self.trial.subsamples.indices.get(frame.name)
                        found[frame.name] = (torch.arange(frame.size) if index is None else index).cpu().numpy()
        return found

    def log_weight_in(self, plate: str) -> Tensor:
        """`[draws, size]`: log p - log q of the sites inside a plate, scaled and masked, for each of its elements."""
        total: Tensor | float = 0.0
        for (in_model, name), term in self.terms.items():
            frames = [f for f in self.frames[in_model, name] if f.name == plate]
            if frames and frames[0].dim is not None:
                kept = term.movedim(frames[0].dim, 1).reshape(len(term), frames[0].size, -1).sum(-1)
                total = total + (kept if in_model else -kept)
        return torch.as_tensor(total)


@torch.no_grad()
def draw_posterior(pair: Pair, num_samples: int) -> PosteriorDraws:
    """Run the guide, and the model against it, `num_samples` times: at once where the programs can take it."""
    with on_trial():
        trial = plain_trial(pair)
        check_pair(trial)
        runs = PosteriorRuns(pair, num_samples) if marginal_sites(trial) else None
        trial = trial if runs is None else runs.trial
        try:
            vectorised = bool(check_rows(pair, trial, num_samples))
        except SiteShapeError:
            vectorised = False
    parts = [_Run(pair, trial, rows, runs) for rows in _sizes(trial, num_samples, vectorised)]

    def joined(read: Callable[[_Run], dict[Any, Tensor]]) -> dict[Any, Tensor]:
        each = [read(part) for part in parts]
        return {name: torch.cat([values[name] for values in each]) for name in each[0]}

    return PosteriorDraws(
        trial,
        joined(lambda run: run.posterior),
        joined(lambda run: run.predictive),
        joined(lambda run: run.log_likelihood),
        torch.cat([run.log_sum(True) for run in parts]),
        torch.cat([run.log_sum(True) - run.log_sum(False) for run in parts]),
        joined(lambda run: run.terms),
        parts[0].frames,
        parts[0].marginal,
    )


def _sizes(trial: Trial, num_samples: int, vectorised: bool) -> Iterator[int | None]:
    """How many draws each run has; None for a run without a leading dim."""
    if not vectorised:
        yield from [None] * num_samples
        return
    traces = (trial.guide_trace, trial.model_trace)
    largest = max((m["value"].numel() for t in traces for m in sample_sites(t).values()), default=1)
    at_once = max(1, ELEMENTS_AT_ONCE // max(1, largest))
    for start in range(0, num_samples, at_once):
        yield min(at_once, num_samples - start)


class _Run:
    """One run over `rows` draws (None: one draw, without a leading dim), its terms `[rows, *batch]`."""

    def __init__(self, pair: Pair, trial: Trial, rows: int | None, runs: PosteriorRuns | None) -> None:
        self.trial, self.rows = trial, 1 if rows is None else rows
        leading = None if rows is None else (rows, -1 - trial.batch_dims)
        values, own = {}, {}
        if runs is not None:
            values, shared = runs.conditional(rows, random_value)
            own = runs.decoded(shared)
            values = {n: v[0] if rows is None else runs.padded(n, v) for n, v in (values | own).items()}
        guide_trace, model_trace = trace_pair(pair, trial.subsamples, values, leading)
        drawn = {n: m["value"] for n, m in latent_sites(guide_trace).items()} | {n: values[n] for n in own}
        guide = poutine.block(pair.guide, hide_fn=is_random_observation)  # what it observes is drawn anew in the model
        unconditioned = Pair(UnconditionSites()(pair.model), guide, pair.args, pair.kwargs)
        predicted = trace_pair(unconditioned, trial.subsamples, drawn, leading)[1]
        self.posterior = {
            n: self._shaped(m["value"], trial.guide_trace.nodes[n]) for n, m in latent_sites(guide_trace).items()
        } | own
        observed = {n: m for n, m in sample_sites(trial.model_trace).items() if is_random_observation(m)}
        self.predictive = {
            n: self._shaped(torch.as_tensor(predicted.nodes[n]["value"]), m) for n, m in observed.items()
        }
        model_trace, members = (model_trace, {}) if runs is None else runs.summed(guide_trace, rows)
        inside = {n for names in members.values() for n in names}
        self.log_likelihood = {
            n: self._log_likelihood(model_trace.nodes[n], tuple(m["fn"].batch_shape))
            for n, m in observed.items()
            if n not in inside
        }
        self.marginal: dict[str, Frames] = {}
        for label, names in members.items():
            self._marginal(model_trace.nodes[label], [n for n in names if n in observed])
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

    def _marginal(self, msg: Any, observed: Sequence[str]) -> None:
        """The log-likelihood that observed sites have in common, by the name of the one in whose plates it is."""
        if not observed:
            return
        plates, name = plates_of(msg), observed[0]
        sizes = {f.dim: f.size for f in plates if f.dim is not None}
        shape = tuple(sizes.get(d, 1) for d in range(min(sizes, default=0), 0))
        if len(observed) > 1 or plates != plates_of(self.trial.model_trace.nodes[name]):
            name = " + ".join(observed)
            name = f"{name} together" if len(observed) == 1 else name
            self.marginal[name] = plates
        self.log_likelihood[name] = self._log_likelihood(msg, shape)

    def _terms(self, sites: Mapping[str, Any], in_model: bool) -> dict[tuple[bool, str], Tensor]:
        """Scaled and masked log-probabilities, `[rows, *batch]` with as many batch dims as the program has plates."""
        terms = {}
        for name, msg in sites.items():
            log_prob = torch.as_tensor(scale_and_mask(site_log_prob(msg), msg["scale"], msg["mask"]))
            batch = tuple(log_prob.shape)[1:] if log_prob.dim() > self.trial.batch_dims else tuple(log_prob.shape)
            padding = (1,) * (self.trial.batch_dims - len(batch))
            terms[in_model, name] = log_prob.reshape((-1, *padding, *batch)).expand((self.rows, *padding, *batch))
        return terms

    def log_sum(self, in_model: bool) -> Tensor:
        """`[rows]`: the sum of the model's or the guide's terms."""
        values = [term.reshape(self.rows, -1).sum(-1) for (model, _), term in self.terms.items() if model is in_model]
        return torch.stack(values).sum(0) if values else torch.zeros(self.rows)
