"""One fused optimiser for everything that a step learns, with rates by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_discrete.errors import SettingError, near_matches
from pyro_discrete.programs.parameters import parameter_names

__all__ = [
    "OptimizerSpec",
    "Rates",
    "build_optimizer",
    "clip_gradients",
    "named_parameters",
]


OptimizerSpec = str | type[Optimizer] | Callable[..., Optimizer] | Optimizer


Rates = Mapping[str, float | Mapping[str, Any]]


def named_parameters(parameters: Iterable[Tensor], elbo: nn.Module, *programs: Callable[..., Any]) -> dict[str, Tensor]:
    """Names for the leaf tensors of a loss, as `parameter_names` has them, with a dot between module and parameter.

    An estimator's own parameters are `estimators.<site>.<name>`.
    """
    leaves = {id(parameter): parameter for parameter in parameters}
    names = parameter_names(leaves, dict(zip(("model", "guide"), programs, strict=True)))
    names |= {id(parameter): name for name, parameter in elbo.named_parameters()}
    named: dict[str, Tensor] = {}
    for key, parameter in leaves.items():
        name = normalize_param_name(names[key])
        numbered = (name if i == 0 else f"{name}_{i}" for i in range(len(named) + 1))
        named[next(n for n in numbered if n not in named)] = parameter
    return named


def build_optimizer(
    optimizer: OptimizerSpec, named: Mapping[str, Tensor], lr: float | None, rates: Rates | None
) -> Optimizer:
    """The optimiser of these parameters, fused where torch has that; an instance is taken as it is.

    `lr` goes to a name or class; `rates` maps names or globs of parameters to a rate, or to a group's settings.

    Raises `SettingError` for an unknown name, a rate that matches nothing, or settings that cannot be given so.
    """
    if isinstance(optimizer, Optimizer):
        if rates or lr is not None:
            raise SettingError("An optimiser that is made already has its rates: give its class to set lr or rates.")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        left = [name for name, parameter in named.items() if id(parameter) not in held]
        if left:
            warnings.warn(
                f"The optimiser does not hold {', '.join(left)}: these stay as they are. Give its class instead, for "
                "fit to hand it all parameters.",
                stacklevel=4,
            )
        return optimizer
    make = _optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
    settings: dict[str, Any] = {} if lr is None else {"lr": lr}
    groups = parameter_groups(named, rates or {})
    if isinstance(make, type) and "fused" in inspect.signature(make).parameters:
        try:
            return make(groups, **{"fused": True, **settings})
        except RuntimeError:  # a dtype or device for which there is no fused kernel
            pass
    try:
        made = make(groups, **settings)
    except TypeError as error:
        raise SettingError(f"optimizer={optimizer!r} could not be made: {error}.") from error
    if not isinstance(made, Optimizer):
        raise SettingError(f"optimizer={optimizer!r} made {type(made).__name__}; a torch.optim.Optimizer is expected.")
    return made


def _optimizer_class(name: str) -> type[Optimizer]:
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    if name.lower() not in known:
        raise SettingError(f"There is no torch optimiser named {name!r}. {near_matches(name.lower(), known)}")
    return known[name.lower()]


def parameter_groups(named: Mapping[str, Tensor], rates: Rates) -> list[dict[str, Any]]:
    """One group for each of `rates`, in their order (a name goes to the first that matches), and one for the rest."""
    groups: list[dict[str, Any]] = []
    taken: set[str] = set()
    for pattern, settings in rates.items():
        names = [n for n in named if n == pattern or fnmatchcase(n, pattern)]
        if not names:
            raise SettingError(f"{pattern!r} in rates matches no parameter. {near_matches(pattern, named)}")
        names = [n for n in names if n not in taken]
        taken.update(names)
        own = dict(settings) if isinstance(settings, Mapping) else {"lr": settings}
        groups.append({"params": [named[n] for n in names], **own})
    rest = [parameter for name, parameter in named.items() if name not in taken]
    return [group for group in [{"params": rest}, *groups] if group["params"]]


def clip_gradients(parameters: Sequence[Tensor], norm: float | None, value: float | None) -> None:
    """Clip `.grad` in place: each number to [-value, value], then all together to `norm`. Reads no number."""
    if value is not None:
        nn.utils.clip_grad_value_(parameters, value)
    if norm is not None:
        nn.utils.clip_grad_norm_(parameters, norm)
