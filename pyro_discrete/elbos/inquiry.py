"""Further runs of a pair after something went wrong: at which site, with what value or distribution."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from pyro_discrete.errors import (
    DiscreteInferenceError,
    MissingDataError,
    NonFiniteError,
    SettingError,
    SiteMatchError,
    SiteShapeError,
    first_line,
    shown,
)
from pyro_discrete.inspection.observations import arguments_of, described, wrong_observation
from pyro_discrete.programs.pair import KeepSubsamples, Pair, SiteMessenger, on_trial, trace_pair
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    joint_support,
    latent_sites,
    values_to_try,
)

__all__ = ["FurtherRuns", "reason_of"]

MOST_RUNS = 256
"""So many combinations of values are run at most, one by one where there are more."""
MOST_SECONDS = 20.0
"""So long further runs are made for."""


def reason_of(error: Exception, pair: Pair, step: int) -> DiscreteInferenceError | None:
    """What is wrong at a site or an argument of the pair, as far as a plain run shows it; None if that shows nothing.

    `error` is what the program raised, or what was raised over one of its sites.
    """
    for where, program in (("model", pair.model), ("guide", pair.guide)) if isinstance(error, TypeError) else ():
        misfit = _misfit(program, pair)
        if misfit is not None:
            return SettingError(
                f"The {where} does not take the arguments of this call: {misfit}. Model and guide are given the same "
                "ones, those behind them: loss(model, guide, x, y), or in fit data=(x, y) or a dict by name."
            )
    with on_trial(), torch.no_grad():
        witness = _Witness("guide", pair, step, error)
        guide_trace = _watched(witness, pair.guide, pair)
        if witness.found is None:
            witness = _Witness("model", pair, step, error)
            model = pair.model if guide_trace is None else poutine.replay(pair.model, trace=guide_trace)
            _watched(witness, model, pair)
    return witness.found or _plate_error(error) or _no_tensor(error, pair)


def _misfit(program: Callable[..., Any], pair: Pair) -> str | None:
    """Why the program cannot be called with the pair's arguments, None if it can (or if that cannot be told)."""
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*pair.args, **pair.kwargs)
    except TypeError as error:
        return str(error)
    return None


def _watched(witness: _Witness, program: Callable[..., Any], pair: Pair) -> Trace | None:
    """The trace of a run under the witness; None if the program fails, or is a handler that runs the model."""
    if isinstance(poutine.unwrap(program), Messenger):
        return None
    try:
        with witness:
            return poutine.trace(program).get_trace(*pair.args, **pair.kwargs)
    except Exception:  # whatever a program raises; what was seen before it is in the witness
        return None


class _Witness(SiteMessenger):
    """Looks at each sample statement before it is carried out, and keeps the first thing that is wrong."""

    def __init__(self, where: str, pair: Pair, step: int, error: Exception) -> None:
        super().__init__()
        self.where, self.pair, self.step, self.error = where, pair, step, error
        self.names: set[str] = set()
        self.found: DiscreteInferenceError | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if self.found is not None or site_is_subsample(msg):
            return
        self.found = self._twice(msg) or self._parameters(msg) or wrong_observation(msg, self.where, self.pair)
        self.names.add(msg["name"])

    def _twice(self, msg: Any) -> DiscreteInferenceError | None:
        name = msg["name"]
        if name not in self.names:
            return None
        return SiteMatchError(
            f"The {self.where} has two sites of the name {name!r}; each needs a name of its own. In a loop, put the "
            f'number into it: pyro.sample(f"{name}_{{i}}", ...).'
        )

    def _parameters(self, msg: Any) -> DiscreteInferenceError | None:
        base = base_distribution(msg["fn"])
        parts = [base, *(part for part in vars(base).values() if isinstance(part, Distribution))]
        for name, value in ((n, vars(part).get(n)) for part in parts for n in getattr(part, "arg_constraints", {})):
            if isinstance(value, Tensor) and bool(value.isnan().any()):
                what = (
                    f"site {msg['name']!r} of the {self.where} is {type(base).__name__} with {name} that "
                    f"{'is' if value.numel() == 1 else 'are'} NaN ({int(value.isnan().sum())} of {value.numel()})"
                )
                missing = _argument_with_nan(self.pair)
                if missing is not None:
                    return MissingDataError(
                        f"At step {self.step} {what}, and argument {missing!r} of the program contains NaN. Drop or "
                        "fill the missing data."
                    )
                return NonFiniteError(
                    f"At step {self.step} {what}. No parameter was changed. Look at the learning rate, and at the "
                    "networks or params behind this distribution."
                )
        return None


def _argument_with_nan(pair: Pair) -> str | None:
    tensors = {n: v for n, v in arguments_of(pair).items() if isinstance(v, Tensor)}
    return next((n for n, v in tensors.items() if bool(v.isnan().any())), None)


def _plate_error(error: Exception) -> DiscreteInferenceError | None:
    """Pyro's own words on a site that does not fit a plate around it."""
    text = first_line(error)
    if re.match(r"Shape mismatch inside plate|.*plate.*(dim|size).*(conflict|collision|mismatch)", text):
        return SiteShapeError(
            f"{text.rstrip('.')}. Make the batch shape of the site's parameters that of the plates around it."
        )
    return None


def _no_tensor(error: Exception, pair: Pair) -> DiscreteInferenceError | None:
    """The program has failed for want of a tensor, and was given arrays or lists of numbers."""
    if isinstance(error, LookupError) or not re.search(r"[Tt]ensor|ndarray|list", str(error)):
        return None
    for name, value in arguments_of(pair).items():
        numbers = isinstance(value, list) and value and isinstance(value[0], int | float | list)
        if isinstance(value, np.ndarray) or numbers:
            return SettingError(
                f"Argument {name!r} of the program is {described(value)}, and the program failed "
                f"({type(error).__name__}: {shown(str(error), 120)}). Give a tensor if it is meant for one: "
                f"torch.as_tensor({name})."
            )
    return None


class FurtherRuns:
    """Runs of a pair whose discrete sites have values of every kind, for a step that has no traces to show.

    Iterating gives `(where, trace)`; `at` says which values the sites have in the run that was given last.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair: Pair = pair
        self.at: str = ""

    def __iter__(self) -> Iterator[tuple[str, Trace]]:
        subsamples, started = KeepSubsamples(), time.monotonic()
        traces = self._run(subsamples, {})
        if traces is None:
            return
        yield from traces
        latent = {n: m for _, trace in traces for n, m in latent_sites(trace).items()}
        sites = {n: m for n, m in latent.items() if math.isfinite(cardinality(m["fn"]))}
        for values in _combinations(sites):
            if time.monotonic() - started > MOST_SECONDS:
                return
            self.at = _written(values)
            yield from self._run(subsamples, values) or []

    def _run(self, subsamples: KeepSubsamples, values: Mapping[str, Tensor]) -> list[tuple[str, Trace]] | None:
        with on_trial(), torch.no_grad():
            try:
                return list(zip(("guide", "model"), trace_pair(self.pair, subsamples, values), strict=True))
            except (ValueError, RuntimeError, ArithmeticError, LookupError):
                return None  # a program need not run at values that it never draws


def _combinations(sites: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Values for the sites, the same in all elements: every combination, or else of each site alone and some drawn."""
    sizes = {name: cardinality(msg["fn"]) for name, msg in sites.items()}
    if math.prod(sizes.values()) <= MOST_RUNS:
        tables = [_table(msg) for msg in sites.values()]
        for values in itertools.product(*tables):
            yield dict(zip(sites, values, strict=True))
        return
    for name, msg in sites.items():
        if sizes[name] <= MOST_RUNS:
            for value in _table(msg):
                yield {name: value}
    for _ in range(MOST_RUNS // 4):
        yield {name: _any_value(msg) for name, msg in sites.items()}


def _table(msg: Any) -> Sequence[Tensor]:
    """Each joint value of the site, in all of its elements."""
    return [value.expand(msg["value"].shape).clone() for value in joint_support(msg["fn"])]


def _any_value(msg: Any) -> Tensor:
    """Values of the support, each element for itself and all alike probable."""
    base, shape = base_distribution(msg["fn"]), msg["value"].shape
    support = values_to_try(msg["fn"])
    elements = shape[: len(shape) - len(base.event_shape)]
    return support[torch.randint(support.shape[0], elements, device=support.device)]


def _written(values: Mapping[str, Tensor]) -> str:
    """The values as a message has them, of a few sites and numbers."""

    def one(value: Tensor) -> str:
        numbers = value.flatten().unique()
        return f"{numbers.item():g}" if len(numbers) == 1 else shown(value.flatten()[:8].tolist())

    listed = [f"{name!r} is {one(value)}" for name, value in itertools.islice(values.items(), 4)]
    return ", ".join(listed) + (" ..." if len(values) > 4 else "")
