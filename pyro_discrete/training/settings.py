"""What the settings of a training run may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import SettingError, is_number, is_whole, shown

__all__ = ["SEEDS", "check_settings"]

SEEDS = 2**32
"""NumPy's generator takes seeds below this."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `SettingError` that names the first of `fit`'s settings that is out of its range; None is not looked at."""
    for name, value in settings.items():
        if value is None:
            continue
        fits, expected = KINDS[name]
        if not fits(value):
            raise SettingError(f"{name}={shown(value)} given; {expected} expected.")
    for pattern, rate in (settings["rates"] or {}).items():
        group = rate if isinstance(rate, Mapping) else {"lr": rate}
        if "params" in group or not _is_rate(group.get("lr", 0.0)):
            raise SettingError(f"rates[{pattern!r}]={shown(rate)} given; a rate of at least 0, or a dict of settings.")
    for callback in settings["callbacks"]:
        if not callable(callback) or not is_whole(getattr(callback, "every", 1)):
            every = f" with every={shown(callback.every)}" if callable(callback) else ""
            raise SettingError(
                f"callbacks has {shown(callback)}{every}; functions of a FitState are expected, `every` a whole number "
                "of at least 1."
            )


def _is_rate(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and bool(value.isfinite()) and bool(value >= 0)
    return is_number(value, least=0)


def _is_device(value: Any) -> bool:
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError):
        return False
    return True


def _is_listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


Kind = tuple[Callable[[Any], bool], str]
NUMBER: Kind = (is_whole, "a whole number of at least 1 is")
BOUND: Kind = (lambda value: value == math.inf or is_number(value, above=0), "a positive number is")
FUNCTION: Kind = (callable, "a function is")
KINDS: dict[str, Kind] = {
    "steps": NUMBER,
    "epochs": NUMBER,
    "batch_size": NUMBER,
    "log_every": NUMBER,
    "validate_every": NUMBER,
    "checkpoint_every": NUMBER,
    "patience": NUMBER,
    "seed": (lambda value: is_whole(value, 0) and value < SEEDS, f"a whole number from 0 to {SEEDS - 1} is"),
    "lr": (_is_rate, "a rate of at least 0 is"),
    "rates": (lambda value: isinstance(value, Mapping), "a dict from names or globs of parameters to rates is"),
    "clip_norm": BOUND,
    "clip_value": BOUND,
    "min_delta": (lambda value: is_number(value, least=0), "a number of at least 0 is"),
    "device": (_is_device, "a torch device of this machine is"),
    "transform": FUNCTION,
    "scheduler": FUNCTION,
    "callbacks": (
        _is_listed,
        "a list of functions of a FitState is",
    ),
    "checkpoint": (lambda value: isinstance(value, str | PathLike), "the path of a file is"),
    "resume": (lambda value: isinstance(value, bool) or value == "auto", "True, False or 'auto' is"),
    "split": (lambda value: value in ("data", "particles"), "'data', 'particles' or None is"),
    "data_plate": (
        lambda value: isinstance(value, str) or (_is_listed(value) and all(isinstance(v, str) for v in value)),
        "the name of a plate, or a list of names, is",
    ),
    "metadata": (lambda value: isinstance(value, Mapping), "a dict of plain values is"),
}
"""By the name of a setting: whether a value fits, and what is expected."""
