"""What went wrong in a run: where a loss or a gradient stopped being finite, and errors as a user needs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.elbos.inquiry import FurtherRuns, reason_of
from pyro_discrete.errors import (
    DiscreteInferenceError,
    EmptyBatchError,
    EnumerationError,
    MissingDataError,
    NonFiniteError,
    SettingError,
)
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.programs.sites import base_distribution, latent_sites, sample_sites, site_log_prob
from pyro_discrete.relaxations.relaxed_distribution import Relaxed

__all__ = [
    "Explained",
    "check_gradients",
    "fresh_traces",
    "invalid_parameters",
    "loss_not_finite",
    "surrogate_not_finite",
]


BEYOND = 1e6
"""Logits below minus this stand for what is impossible, in a relaxed value's share of them too."""


def _impossible(where: str, trace: Trace) -> Iterator[tuple[str, str, float]]:
    """The discrete sites that give a value no probability, by the least of their logits."""
    for name, msg in latent_sites(trace).items():
        base = base_distribution(msg["fn"])
        logits = getattr(base.base if isinstance(base, Relaxed) else base, "logits", None)
        if torch.is_tensor(logits) and bool((logits < -BEYOND).any()):
            yield where, name, logits.min().item()


class Explained:
    """Errors of ours as they were raised, without the trace that Pyro adds to them on the way out; some of torch's
    as what they mean for the user. `step`: gives the number of steps so far."""

    def __init__(self, pair: Pair, step: Callable[[], int]) -> None:
        self.pair = pair
        self.step = step

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DiscreteInferenceError):
            self._own(error)
        elif isinstance(error, MEANINGFUL) and not isinstance(error, torch.OutOfMemoryError):
            meant = _meaning(error, self.pair, self.step())
            if meant is not None:
                raise meant from error

    def _own(self, error: DiscreteInferenceError) -> None:
        first: BaseException = error
        while isinstance(first.__cause__, type(error)):
            first = first.__cause__
        below = first.__cause__
        if isinstance(first, EnumerationError) and isinstance(below, Exception):
            meant = _meaning(below, self.pair, self.step())  # what stopped the sum may be no matter of sums
            if meant is not None:
                raise meant from below
        if first is not error:
            raise first from None


MEANINGFUL = (ValueError, RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)
"""Errors from below that may be about something else than the program."""


def _meaning(error: Exception, pair: Pair, step: int) -> DiscreteInferenceError | None:
    """What an error from below means for the user, None if it is one of the program's own."""
    if isinstance(error, ValueError):
        invalid = invalid_parameters(error, pair, step)
        if invalid is not None:
            return invalid
    if isinstance(error, RuntimeError) and "Can't call numpy() on Tensor that requires grad" in str(error):
        return SettingError(
            "The program leaves torch (a tensor's .numpy()), but what it is given there is to be differentiated: by "
            "an estimator that wants slopes or relaxed values, or for a reparameterised site. Use 'rloo', 'reinforce' "
            "or 'nvil' ('disarm' for bits), or write it in torch."
        )
    if isinstance(error, ZeroDivisionError) and "size cannot be zero" in str(error):
        return EmptyBatchError("A plate of the program has size 0: the batch holds no data. Leave empty batches out.")
    return reason_of(error, pair, step)


def fresh_traces(pair: Pair) -> FurtherRuns:
    """Traces of further runs, at other values of the discrete sites, for a step that has none to show."""
    return FurtherRuns(pair)


def loss_not_finite(loss: float, traces: Iterable[tuple[str, Trace]], step: int) -> NonFiniteError:
    """The error for a loss that is not finite, which names the first site that is not."""
    for where, trace in traces:
        for name, msg in sample_sites(trace).items():
            culprit = _culprit(msg)
            if culprit:
                at = traces.at if isinstance(traces, FurtherRuns) else ""
                return NonFiniteError(
                    f"The loss is {loss} at step {step}: site {name!r} of the {where} has {culprit}"
                    + (f", where {at}" if at else "")
                    + ". No parameter was changed. Look at the site's parameters and data; a lower learning rate or "
                    "clipped gradients often help."
                )
    if isinstance(traces, FurtherRuns):
        return NonFiniteError(
            f"The loss is {loss} at step {step}, a sum over values of discrete sites. At none of those that were "
            "looked at one by one is a site's log-probability NaN or infinite: it is at others, or the sum overflows. "
            "No parameter was changed."
        )
    return NonFiniteError(
        f"The loss is {loss} at step {step}, though each site's log-probability is finite: their sum overflows. "
        "No parameter was changed."
    )


def surrogate_not_finite(step: int, traces: Iterable[tuple[str, Trace]] = ()) -> NonFiniteError:
    """The error for a surrogate that is not finite though the loss is; it names a site that makes values impossible."""
    found = [found for where, trace in traces for found in _impossible(where, trace)]
    for where, name, least in sorted(found, key=lambda each: math.isinf(each[2])):  # first those that were mixed
        return NonFiniteError(
            f"The loss is finite at step {step}, but a learning signal times a score is not: site {name!r} of the "
            f"{where} gives a value no probability (a logit of {least:.2g}), which a relaxed value mixes in. No "
            "parameter was changed. Choose estimators of hard draws ('rloo', 'nvil', 'coupled'), or let the logits end "
            "at -20 or so (logits.clamp(min=-20))."
        )
    return NonFiniteError(
        f"The loss is finite at step {step}, but a learning signal times a score is not: log-probabilities beyond "
        "the float range. No parameter was changed. A lower learning rate or clipped gradients often help."
    )


@torch.no_grad()
def _culprit(msg: Any) -> str:
    value = msg["value"]
    if torch.is_tensor(value) and value.is_floating_point() and not bool(value.isfinite().all()):
        return "a value that is NaN or infinite"
    try:
        log_prob = site_log_prob(msg)
    except ValueError as error:
        return str(error).splitlines()[0]
    if bool(log_prob.isnan().any()):
        return "a log-probability that is NaN"
    if not bool(log_prob.isfinite().all()):
        return "an infinite log-probability (the value is outside the support, or its probability underflows)"
    return ""


def check_gradients(found: list[Tensor], pair: Pair, taken: Tensor, parameters: Iterable[Tensor] = ()) -> None:
    """Raise `NonFiniteError` if a gradient is not finite, after clearing those of `parameters`.

    `taken` is the number of steps with this one.
    """
    gradients = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in found]
    if not gradients or math.isfinite(_added_up([gradient.sum() for gradient in gradients])):
        return
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        return  # their sum overflows, the gradients do not
    for parameter in parameters:
        parameter.grad = None
    raise NonFiniteError(
        f"A gradient is NaN or infinite at step {int(taken) - 1}, though the loss is finite: {_blame(pair)}. No "
        "parameter was changed and gradients were cleared. Look for logits beyond the float range, sqrt or log at "
        "zero, or 0 * inf there."
    )


def _added_up(sums: list[Tensor]) -> float:
    """In Python where that waits for nothing: on the processor, in half the time for a few; elsewhere once for all."""
    if len(sums) <= FEW and all(each.device.type == "cpu" for each in sums):
        return sum(each.item() for each in sums)
    return torch.stack(sums).sum().item()


FEW = 64


def _blame(pair: Pair) -> str:
    """The first site, in a new run, whose log-probability has a gradient that is not finite."""
    with on_trial(), torch.enable_grad():
        for where, trace in zip(("guide", "model"), trace_pair(pair, KeepSubsamples()), strict=True):
            for name, msg in sample_sites(trace).items():
                log_prob = site_log_prob(msg).sum()
                leaves = leaf_parameters(log_prob)
                found = torch.autograd.grad(log_prob, leaves, allow_unused=True, retain_graph=True) if leaves else ()
                if not all(bool(g.isfinite().all()) for g in found if g is not None):
                    return f"it comes from site {name!r} of the {where}"
    return "it does not come from one site's log-probability alone"


def invalid_parameters(error: ValueError, pair: Pair, step: int) -> DiscreteInferenceError | None:
    """The error for a distribution given NaN or infinite parameters; None if `error` is about something else."""
    text = str(error)
    shown = text.partition("found invalid values")[2]
    if not shown or not any(word in shown for word in ("nan", "inf", "...")):
        return None
    refused = _refused_value(error)
    if refused is not None and bool(refused.isfinite().all()):
        return _too_coarse(text, refused, step)
    for name, value in [*enumerate(pair.args), *pair.kwargs.items()]:
        if torch.is_tensor(value) and bool(value.isnan().any()):
            return MissingDataError(
                f"Argument {name!r} of the program contains NaN ({int(value.isnan().sum())} of {value.numel()} "
                f"numbers), which reached a distribution: {text.splitlines()[0].rstrip(':')}. Drop the missing data, "
                "or fill them (torch.nan_to_num) and leave them out with poutine.mask."
            )
    return NonFiniteError(
        f"At step {step} the program made a distribution with parameters that are NaN or infinite: "
        f"{text.splitlines()[0].rstrip(':')}. No parameter was changed. Look at the learning rate and at the "
        "networks or params behind this distribution."
    )


def _refused_value(error: BaseException) -> Tensor | None:
    """The tensor that a distribution's validation refused, which its message shows in part."""
    last, trace = None, error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_filename.endswith("torch/distributions/distribution.py"):
            last = frame.f_locals.get("value", last)
    return last if torch.is_tensor(last) and last.is_floating_point() else None


def _too_coarse(text: str, value: Tensor, step: int) -> DiscreteInferenceError | None:
    """The error for finite probabilities that do not add up to one in half precision; None if that is not why."""
    if "Simplex()" not in text or value.dtype not in (torch.float16, torch.bfloat16) or bool((value < 0).any()):
        return None
    totals = value.sum(-1)
    worst = totals.detach().flatten()[(totals - 1).abs().argmax()]
    return SettingError(
        f"At step {step} the program made a distribution of {value.shape[-1]} categories in {value.dtype}: "
        f"{text.partition(', but found')[0]}, whose check allows for rounding of 1e-6, but in this precision the "
        f"probabilities sum to {worst.item():.6g}. Give the distribution logits or probs in single precision "
        "(logits.float()), or validate_args=False."
    )
