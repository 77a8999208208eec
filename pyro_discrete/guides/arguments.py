"""Which of the model's arguments a guide's network reads beside the observed values, and how they meet the plates."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.programs.sites import is_random_observation, sample_sites

__all__ = ["Reading", "read", "readings"]

MOST_SHARED = 256
"""An argument that is in no plate, so that all elements would read it, is read up to so many numbers."""


@dataclass(frozen=True)
class Reading:
    """An argument as the network of some plates reads it: `plates` of its first dims, outermost first, then features.

    `kept` are the plates among them that the network's sites are in; over the others the mean is taken.
    """

    name: str
    plates: tuple[str, ...]
    kept: frozenset[str]
    features: tuple[int, ...]


def readings(
    model: Any, trace: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], plates: Collection[str], own: bool
) -> list[Reading]:
    """The tensors among the arguments that a network for sites in `plates` reads: what is not observed anyway.

    With a network of the user's `own`, whose size is made for the observed values, there are none. What is given and
    not read is told of by a warning.
    """
    frames, found, unread = _frames(trace), [], []
    for name, value in _not_observed(trace, _arguments(model, args, kwargs), frames).items():
        matched = _matched(value.shape, frames, plates)
        reading = Reading(name, matched, frozenset(matched) & frozenset(plates), tuple(value.shape[len(matched) :]))
        if own or (not matched and value.numel() > MOST_SHARED):
            unread.append(f"{name!r} {list(value.shape)}")
        else:
            found.append(reading)
    if unread:
        why = "a network of your own" if own else "none of its first dims is a plate's"
        warnings.warn(
            f"The network of amortize= reads the observed values, and of the model's arguments not {', '.join(unread)} "
            f"({why}). Give input=, a function of the model's arguments, if it is to read them.",
            stacklevel=2,
        )
    return found


def read(
    reading: Reading, model: Any, trace: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_dims: int
) -> Tensor:
    """The argument of a call as features `[*batch, features]`; its `batch_dims` have size 1 where it is in no plate.

    Raises `SettingError` where it is absent, or shaped otherwise than in the first call.
    """
    frames, value = _frames(trace), _arguments(model, args, kwargs).get(reading.name)
    shape = None if value is None else tuple(value.shape)
    fits = value is not None and shape is not None and shape[len(reading.plates) :] == reading.features
    fits = fits and len(value.shape) >= len(reading.plates)  # type: ignore[union-attr]
    fits = fits and all(value.shape[i] in _sizes(frames[p]) for i, p in enumerate(reading.plates))  # type: ignore[union-attr]
    if not fits or value is None:
        what = "absent" if value is None else f"of shape {shape}"
        raise SettingError(
            f"The network of amortize= reads the model's argument {reading.name!r}, [{', '.join(reading.plates)}] x "
            f"{list(reading.features)} in the first call; it is {what} in this one. Give it as then, or say by input= "
            "what the network reads."
        )
    value = _selected(value, reading.plates, frames, trace)
    batch = [1] * batch_dims
    value = value.reshape(*value.shape[: len(reading.plates)], -1)
    for i, plate in enumerate(reading.plates):
        if plate in reading.kept:
            batch[frames[plate].dim] = value.shape[i]
        else:
            value = value.mean(i, keepdim=True)
    return value.reshape(*batch, -1)


def _arguments(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors (and arrays of numbers) among a call's arguments by name, those in containers too."""
    try:
        bound: Mapping[str, Any] = inspect.signature(model).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"argument {i}": value for i, value in enumerate(args)}, **kwargs}
    return dict(_tensors_in(bound.items()))


def _tensors_in(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for name, value in items:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            yield name, torch.as_tensor(value.copy())
        elif isinstance(value, Tensor) and not value.is_complex():
            yield name, value.detach()
        elif isinstance(value, Mapping):
            yield from _tensors_in((f"{name}[{key!r}]", part) for key, part in value.items())
        elif isinstance(value, list | tuple):
            yield from _tensors_in((f"{name}[{i}]", part) for i, part in enumerate(value))


def _frames(trace: Any) -> dict[str, Any]:
    """The plates of the run's sample sites by name, outermost first."""
    frames = {f.name: f for m in sample_sites(trace).values() for f in m["cond_indep_stack"] if f.vectorized}
    return dict(sorted(frames.items(), key=lambda item: item[1].dim))


def _sizes(frame: Any) -> tuple[int, ...]:
    return (frame.size, frame.full_size or frame.size)


def _matched(shape: Sequence[int], frames: Mapping[str, Any], plates: Collection[str]) -> tuple[str, ...]:
    """The plates of the first dims, by their sizes and in their order, until all of `plates` are met."""
    matched: list[str] = []
    left = list(frames)
    for size in shape:
        if plates and set(plates) <= set(matched):
            break
        fitting = [name for name in left if size in _sizes(frames[name])]
        fitting = [name for name in fitting if name in plates] or fitting
        if not fitting:
            break
        matched.append(fitting[0])
        left = left[left.index(fitting[0]) + 1 :]
    return tuple(matched)


def _selected(value: Tensor, plates: Sequence[str], frames: Mapping[str, Any], trace: Any) -> Tensor:
    """The rows of a subsample, where the argument has those of all data; as numbers without NaN."""
    for i, name in enumerate(plates):
        frame = frames[name]
        if frame.size != frame.full_size and value.shape[i] == frame.full_size and name in trace.nodes:
            value = value.index_select(i, trace.nodes[name]["value"].to(value.device))
    return value.to(value.dtype if value.is_floating_point() else torch.get_default_dtype()).nan_to_num()


def _not_observed(trace: Any, given: Mapping[str, Tensor], frames: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments but those that are observed, number by number, and those that say which rows a subsample has."""
    observed = [m["value"].detach() for m in sample_sites(trace).values() if is_random_observation(m)]
    indices = [m["value"] for m in trace.nodes.values() if m["type"] == "sample" and site_is_subsample(m)]
    rest = {n: v for n, v in given.items() if not any(v.shape == i.shape and torch.equal(v, i) for i in indices)}
    rest = {n: v for n, v in rest.items() if v.numel() and not _is_viewed(v, observed)}
    memory = {value.untyped_storage().data_ptr() for value in given.values()}
    observed = [value for value in observed if value.untyped_storage().data_ptr() not in memory]
    numbers = {n: _columns(_selected(v, _matched(v.shape, frames, ()), frames, trace)) for n, v in rest.items()}
    seen = set().union(*(_columns(_plain(value)) for value in observed))
    for name in list(rest):
        others = set().union(*(c for n, c in numbers.items() if n != name))
        if numbers[name] <= seen and not numbers[name] & others:  # two arguments of equal numbers: which is observed?
            del rest[name]
    return rest


def _plain(value: Tensor) -> Tensor:
    return value.to(value.dtype if value.is_floating_point() else torch.get_default_dtype()).nan_to_num()


def _columns(value: Tensor) -> set[bytes]:
    """The numbers of each column, the last dim being that of the columns unless there is but one."""
    flat = value.reshape(-1, 1) if value.dim() < 2 else value.reshape(-1, value.shape[-1])
    return {column.double().contiguous().cpu().numpy().tobytes() for column in flat.T}


def _is_viewed(argument: Tensor, observed: Sequence[Tensor]) -> bool:
    """Whether each number of the argument is one of those observed: in the same memory, whatever they are now."""
    storage = argument.untyped_storage()
    views = [o for o in observed if o.untyped_storage().data_ptr() == storage.data_ptr() and o.dtype == argument.dtype]
    if not views:
        return False
    seen = torch.zeros(storage.nbytes() // argument.element_size(), dtype=torch.bool)
    for view in views:
        seen.as_strided(view.shape, view.stride(), view.storage_offset())[...] = True
    return bool(seen.as_strided(argument.shape, argument.stride(), argument.storage_offset()).all())
