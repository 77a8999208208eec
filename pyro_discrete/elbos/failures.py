"""What went wrong in a run: where a loss or a gradient stopped being finite, and errors as a user needs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, EmptyBatchError, MissingDataError, NonFiniteError, SettingError
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.programs.sites import sample_sites, site_log_prob

__all__ = [
    "check_gradients",
    "explained",
    "fresh_traces",
    "invalid_parameters",
    "loss_not_finite",
    "surrogate_not_finite",
]


@contextmanager
def explained(pair: Pair, step: Callable[[], int]) -> Iterator[None]:
    """Errors of ours as they were raised, without the trace that Pyro adds to them on the way out; some of torch's
    as what they mean for the user."""
    try:
        yield
    except DiscreteInferenceError as error:
        first: BaseException = error
        while isinstance(first.__cause__, type(error)):
            first = first.__cause__
        if first is error:
            raise
        raise first from None
    except ValueError as error:
        invalid = invalid_parameters(error, pair, step())
        if invalid is None:
            raise
        raise invalid from error
    except RuntimeError as error:
        if "Can't call numpy() on Tensor that requires grad" not in str(error):
            raise
        raise SettingError(
            "The program leaves torch (a tensor's .numpy()), but what it is given there is to be differentiated: by "
            "an estimator that wants slopes or relaxed values, or for a reparameterised site. Use 'rloo', 'reinforce' "
            "or 'nvil' ('disarm' for bits), or write it in torch."
        ) from error
    except ZeroDivisionError as error:
        if "size cannot be zero" not in str(error):
            raise
        raise EmptyBatchError(
            "A plate of the program has size 0: the batch holds no data. Leave empty batches out."
        ) from error


def fresh_traces(pair: Pair) -> list[tuple[str, Trace]]:
    """The guide's and the model's traces of a new plain run, for a step that has none to show."""
    with on_trial():
        return list(zip(("guide", "model"), trace_pair(pair, KeepSubsamples()), strict=True))


def loss_not_finite(loss: float, traces: Iterable[tuple[str, Trace]], step: int) -> NonFiniteError:
    """The error for a loss that is not finite, which names the first site that is not."""
    for where, trace in traces:
        for name, msg in sample_sites(trace).items():
            culprit = _culprit(msg)
            if culprit:
                return NonFiniteError(
                    f"The loss is {loss} at step {step}: site {name!r} of the {where} has {culprit}. No parameter was "
                    "changed. Look at the site's parameters and data; a lower learning rate or clipped "
                    "gradients often help."
                )
    return NonFiniteError(
        f"The loss is {loss} at step {step}, though each site's log-probability is finite: their sum overflows. "
        "No parameter was changed."
    )


def surrogate_not_finite(step: int) -> NonFiniteError:
    """The error for a surrogate that is not finite though the loss is."""
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
    if not gradients or math.isfinite(torch.stack([gradient.sum() for gradient in gradients]).sum().item()):
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
