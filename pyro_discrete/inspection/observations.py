"""What a program observes: whether it is data of the kind and the shape that the site's distribution is of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, NonFiniteError, SettingError, SiteShapeError, shown
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import base_distribution, is_random_observation, site_log_prob

__all__ = ["arguments_of", "described", "wrong_observation"]


def wrong_observation(
    msg: Any, where: str, pair: Pair, score: Callable[[Any], Any] = site_log_prob
) -> DiscreteInferenceError | None:
    """Why a site's distribution cannot score the value that is observed: no tensor, another shape, outside of the
    support; None if it can, or if the reason is another. `score`: the same as `site_log_prob`."""
    fn, value, name = msg["fn"], msg["value"], msg["name"]
    if not is_random_observation(msg):
        return None
    if (isinstance(value, Tensor) or not hasattr(value, "__len__")) and _is_scored(msg, score):
        return None
    if not isinstance(value, Tensor):
        given = next((n for n, v in arguments_of(pair).items() if v is value), None)
        of = "" if given is None else f", the argument {given!r} of the program"
        return SettingError(
            f"Site {name!r} of the {where} observes {described(value)}{of}; a tensor is expected. Give "
            f"torch.as_tensor({given or '...'})."
        )
    expected = tuple(fn.batch_shape) + tuple(fn.event_shape)
    try:
        fits = torch.broadcast_shapes(value.shape, expected) is not None
    except RuntimeError:
        fits = False
    if not fits or (fn.event_dim and tuple(value.shape[-fn.event_dim :]) != tuple(fn.event_shape)):
        return SiteShapeError(
            f"Site {name!r} of the {where} observes a value of shape {tuple(value.shape)}, and its "
            f"distribution has shape {expected} (batch shape {tuple(fn.batch_shape)}, event shape "
            f"{tuple(fn.event_shape)}): they do not go together. Give data of this shape, or make the plates and "
            "parameters around it fit the data."
        )
    return _outside_support(msg, where)


@torch.no_grad()
def _is_scored(msg: Any, score: Callable[[Any], Any]) -> bool:
    try:
        score(msg)
    except Exception:  # whatever a distribution raises
        return False
    return True


def _outside_support(msg: Any, where: str) -> DiscreteInferenceError | None:
    fn, value = msg["fn"], msg["value"]
    if bool(value.isnan().any()):
        return None  # missing data have an error of their own
    try:
        batch = torch.broadcast_shapes(value.shape[: value.dim() - fn.event_dim], fn.batch_shape)
        inside = torch.as_tensor(fn.support.check(value)).expand(batch)
    except (NotImplementedError, RuntimeError, ValueError, AttributeError):
        return None
    mask = msg["mask"]
    inside = inside if mask is None else inside | ~torch.as_tensor(mask, device=inside.device)
    if bool(inside.all()):
        return None
    return NonFiniteError(
        f"Site {msg['name']!r} of the {where} observes values that its {type(base_distribution(fn)).__name__} "
        f"does not have ({int((~inside).sum())} of {inside.numel()} lie outside the support): their probability is "
        "zero. Look at the data, or choose another distribution."
    )


def described(value: Any) -> str:
    """A value for a message, one of a container by its kind."""
    return f"a {type(value).__name__}" if isinstance(value, list | tuple) else shown(value)


def arguments_of(pair: Pair) -> Mapping[str, Any]:
    """The pair's arguments by name, or place."""
    for program in (pair.model, pair.guide):
        try:
            return inspect.signature(program).bind(*pair.args, **pair.kwargs).arguments
        except (TypeError, ValueError):
            continue
    return {**{str(i): value for i, value in enumerate(pair.args)}, **pair.kwargs}
