"""One fused optimiser for everything that a step learns, with rates by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_discrete.errors import DiscreteInferenceError, SettingError, near_matches, shown
from pyro_discrete.programs.parameters import parameter_names

__all__ = [
    "OptimizerSpec",
    "Rates",
    "build_optimizer",
    "clip_gradients",
    "make_step",
    "named_parameters",
]


OptimizerSpec = str | type[Optimizer] | Callable[..., Optimizer] | Optimizer | PyroOptim


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
        _check_steps_alone(optimizer)
        if rates or lr is not None:
            raise SettingError("An optimiser that is made already has its rates: give its class to set lr or rates.")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        left = [name for name, parameter in named.items() if id(parameter) not in held]
        if left:
            listed = ", ".join(left[:5]) + (" and others" if len(left) > 5 else "")
            warnings.warn(
                f"The optimiser does not hold {listed}: these stay as they are. Give its class instead, for "
                "fit to hand it all parameters.",
                stacklevel=4,
            )
        return optimizer
    settings: dict[str, Any] = {} if lr is None else {"lr": lr}
    if isinstance(optimizer, PyroOptim):
        optimizer, own = _of_pyro(optimizer)
        settings = own | settings
    make = _optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
    if not callable(make):
        raise SettingError(f"optimizer={shown(make)} given; a name, a class or an optimiser of torch is expected.")
    groups = parameter_groups(named, rates or {})
    if isinstance(make, type) and "fused" in inspect.signature(make).parameters:
        try:
            return _checked(make(groups, **{"fused": True, **settings}), rates)
        except (RuntimeError, TypeError, ValueError) as error:  # no fused kernel, or what the next call says better
            if isinstance(error, DiscreteInferenceError):
                raise
    try:
        made = make(groups, **settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, DiscreteInferenceError):
            raise
        raise SettingError(f"optimizer={shown(optimizer)} could not be made: {shown(str(error), 300)}.") from error
    if not isinstance(made, Optimizer):
        raise SettingError(f"optimizer={shown(optimizer)} made {shown(made)}; a torch.optim.Optimizer is expected.")
    return _checked(made, rates)


def _checked(optimizer: Optimizer, rates: Rates | None) -> Optimizer:
    """The optimiser itself, if it can be stepped and knows the settings of its groups."""
    _check_steps_alone(optimizer)
    for pattern, settings in (rates or {}).items():
        unknown = [name for name in settings if name not in optimizer.defaults] if isinstance(settings, Mapping) else []
        if unknown:
            raise SettingError(
                f"rates[{pattern!r}] has {unknown[0]!r}, which {type(optimizer).__name__} does not. "
                f"{near_matches(unknown[0], optimizer.defaults)}"
            )
    return optimizer


def _check_steps_alone(optimizer: Optimizer) -> None:
    """Refuse one that evaluates the loss by itself, such as LBFGS."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise SettingError(
            f"optimizer {type(optimizer).__name__} evaluates the loss by itself, several times a step (a closure), "
            "which fit does not offer, as the loss is drawn anew each time. Give another one, such as 'adam'."
        )


def _of_pyro(optimizer: PyroOptim) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """What one of Pyro's optimisers makes for each parameter: torch's class, and its settings."""
    name = getattr(optimizer.pt_optim_constructor, "__name__", "Adam")
    if isinstance(optimizer, PyroLRScheduler):
        raise SettingError(
            "optimizer is a schedule of pyro.optim; give fit torch's: "
            f"optimizer={name!r}, scheduler=lambda optimizer: ... ."
        )
    if not isinstance(optimizer.pt_optim_args, dict) or optimizer.pt_clip_args:
        raise SettingError(
            "optimizer is one of pyro.optim whose settings depend on the parameter, or which clips gradients; give fit "
            f"torch's: optimizer={name!r}, with rates={{name or glob: settings}}, clip_norm or clip_value."
        )
    make: Any = optimizer.pt_optim_constructor
    return make, dict(optimizer.pt_optim_args)


def make_step(optimizer: Optimizer) -> None:
    """One step. Raises `SettingError` where the optimiser cannot take gradients of this kind (sparse or dense ones)."""
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"optimizer {type(optimizer).__name__} could not make a step: {shown(str(error), 300)}. Give one that "
            "serves such parameters and gradients, such as 'adam'."
        ) from error


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
