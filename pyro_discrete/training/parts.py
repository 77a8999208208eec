"""A rank's part of every batch, and the plates whose terms count for the whole batch nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.util
import torch
from torch import Tensor

from pyro_discrete.errors import DiscreteInferenceError, RanksError, SettingError, in_a_line, near_matches, shown
from pyro_discrete.programs.module_state import undisturbed
from pyro_discrete.programs.pair import KeepSubsamples, Pair, Program, trace_pair
from pyro_discrete.programs.plate_parts import PlateParts
from pyro_discrete.programs.sites import sample_sites
from pyro_discrete.training.batches import Arguments, Batches, LoaderBatches, TensorBatches
from pyro_discrete.training.ranks import Ranks, named

__all__ = ["Part", "Parts", "plates_that_follow"]

INSTEAD = "or give fit split='particles', for each rank to see all of every batch"


@dataclass(frozen=True)
class Part:
    """What a rank does in a step.

    - `args`, `kwargs`: the program's arguments. `share`: the weight of what comes of them; zero where there is none.
    - `elements`: how many the batch of all ranks has, None where its arguments do not say. `around`: goes around it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    share: float
    elements: int | None
    around: AbstractContextManager[Any]


class Parts:
    """Batches, which all ranks draw alike, and of each the part of this rank, as the program's arguments.

    - `prepare`: a batch to the program's arguments. `split`: "data", or "particles" for all of every batch.
    - `plates`: those that follow the data, where a user names them; else `look` finds them. `seed`: of all ranks.
    - `random`: the random state of what all ranks draw alike, None for one alone.

    Alone, a part is the whole batch.
    """

    def __init__(
        self,
        batches: Batches,
        prepare: Callable[[Any], Arguments],
        ranks: Ranks,
        split: str,
        plates: Collection[str] | None,
        seed: int | None,
    ) -> None:
        self.batches: Batches = batches
        self.prepare: Callable[[Any], Arguments] = prepare
        self.ranks: Ranks = ranks
        self.divides: bool = split == "data" and ranks.size > 1
        self.given: Collection[str] | None = plates
        self.plates: frozenset[str] = frozenset[str]()
        self.random: dict[str, Any] | None = ranks.state_alike(seed or 0) if ranks.size > 1 else None
        self._ahead: list[Any] = []
        if ranks.size > 1 and isinstance(batches, LoaderBatches):
            _refuse_a_loaders_own_parts(batches.loader)

    def next(self) -> Part:
        """The next batch's part of this rank."""
        batch, size = self._ahead.pop() if self._ahead else self._drawn(), self.ranks.size
        whole = _length(batch) if self.divides else None
        if whole is None:
            sized = (len(value) for value in _arguments(batch) if _is_of_elements(value))
            with self._alike(size > 1):
                return Part(*self.prepare(batch), 1 / size, next(sized, None), nullcontext())
        start, stop = _bounds(whole, size, self.ranks.rank)
        if start == stop:
            return Part((), {}, 0.0, whole, nullcontext())
        args, kwargs = self.prepare(_cut(batch, whole, start, stop))
        return Part(args, kwargs, (stop - start) / whole, whole, self.around(stop - start, whole))

    def around(self, part: int, whole: int) -> AbstractContextManager[Any]:
        """What makes the plates that follow the data, of `part` elements, count for `whole`."""
        return PlateParts(self.plates, part, whole) if self.plates else nullcontext()

    def look(self, model: Program, guide: Program) -> Any:
        """The first batch of all ranks, not used up, once the plates that follow the data are known.

        Raises `RanksError` for one that leaves a rank without data, `SettingError` where no plate follows it, or which
        one cannot be found out.
        """
        if not self._ahead:
            self._ahead.append(self._drawn())
        batch, size = self._ahead[0], self.ranks.size
        whole = _length(batch) if self.divides else None
        if whole is None:
            return batch
        if whole < size:
            without = list(range(whole, size))
            raise RanksError(
                f"{named(without)} of {size} would have no data: a batch has {whole} element{'s' * (whole > 1)}. Give "
                "a larger batch_size, or start fewer processes."
            )
        elements = whole // size, whole // size + 1
        pairs = [Pair(model, guide, *self.prepare(_cut(batch, whole, 0, count))) for count in elements]
        self.plates = plates_that_follow((pairs[0], pairs[1]), elements, self.given)
        return batch

    def data(self, batch: Any) -> list[Tensor]:
        """What has to be the same on all ranks: a batch, and all data where they are in memory."""
        held = self.batches.tensors if isinstance(self.batches, TensorBatches) else []
        return [*(value for value in _arguments(batch) if isinstance(value, Tensor)), *held]

    def state_dict(self) -> dict[str, Any]:
        """The place in the data."""
        return self.batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._ahead.clear()
        with self._alike(self.ranks.size > 1):
            self.batches.load_state_dict(state)

    def _drawn(self) -> Any:
        with self._alike(self.ranks.size > 1 and not isinstance(self.batches, TensorBatches)):
            return self.batches.next_batch()

    @contextmanager
    def _alike(self, wanted: bool) -> Iterator[None]:
        """Within, the random numbers are those that all ranks have in common."""
        if not wanted or self.random is None:
            yield
            return
        own = pyro.util.get_rng_state()
        pyro.util.set_rng_state(self.random)
        try:
            yield
        finally:
            self.random = pyro.util.get_rng_state()
            pyro.util.set_rng_state(own)


def _length(batch: Any) -> int | None:
    """How many elements a batch has, by its arguments' first dims; None if none has one."""
    lengths = {len(value) for value in _arguments(batch) if _is_of_elements(value)}
    if len(lengths) > 1:
        raise SettingError(
            f"The program's arguments have {' and '.join(map(str, sorted(lengths)))} elements, so that it cannot be "
            "told which dim is that of the data, which are divided among ranks. Give what is no data by "
            f"functools.partial, {INSTEAD}."
        )
    return lengths.pop() if lengths else None


def _arguments(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple | list) else [batch]


def _is_of_elements(value: Any) -> bool:
    return value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, tuple | list)


def _cut(batch: Any, whole: int, start: int, stop: int) -> Any:
    """These elements of the batch, in its container."""

    def cut(value: Any) -> Any:
        return value[start:stop] if _is_of_elements(value) and len(value) == whole else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(cut(value) for value in batch)
    return cut(batch)


def _bounds(whole: int, size: int, rank: int) -> tuple[int, int]:
    """Where a rank's part begins and ends; parts differ by one at most."""
    few, more = divmod(whole, size)
    start = rank * few + min(rank, more)
    return start, start + few + (rank < more)


def _refuse_a_loaders_own_parts(loader: Any) -> None:
    if isinstance(getattr(loader, "sampler", None), torch.utils.data.DistributedSampler):
        raise SettingError(
            "The loader has a DistributedSampler, and fit gives each rank its part of every batch by itself: leave the "
            "sampler out (shuffle=True in its place), with the batch size of all ranks together."
        )


def plates_that_follow(
    pairs: tuple[Pair, Pair], elements: tuple[int, int], given: Collection[str] | None
) -> frozenset[str]:
    """Names of the plates whose full size grows with the data: found by a run on fewer elements and one on more.

    Plates of a fixed full size of which the data are a subsample are none of them: their scale says all. `given`: the
    plates that a user names, of which those are left that are not subsampled.

    Raises `SettingError` if no plate holds the data, if several around one site do, or if the program cannot tell.
    """
    try:
        few, many = (_seen(pair) for pair in pairs)
    except Exception as error:
        if isinstance(error, DiscreteInferenceError):
            raise
        raise SettingError(
            f"The program was run on {elements[0]} and on {elements[1]} elements, to see which plate follows the data, "
            f"and failed ({shown(in_a_line(error), 300)}). Data are divided among ranks only where a program takes any "
            f"number of them; let it, {INSTEAD}."
        ) from error
    names = {name for seen in (few, many) for name in seen.sizes}
    for name in given or ():
        if name not in names:
            raise SettingError(f"data_plate: {name!r} is no plate of this program. {near_matches(name, names)}")
    changed = sorted(n for n in few.params.keys() & many.params.keys() if few.params[n] != many.params[n])
    if changed:
        raise SettingError(
            f"pyro.param {changed[0]!r} has elements for each datum ({few.params[changed[0]]} for {elements[0]} of "
            f"them, {many.params[changed[0]]} for {elements[1]}), which ranks that see different data cannot share. "
            f"Subsample a plate of fixed size and index the param by it, let a network give its values, {INSTEAD}."
        )
    follows = {n for n in few.sizes.keys() & many.sizes.keys() if few.sizes[n] != many.sizes[n]}
    grows = {n for n in follows if few.sizes[n][1] != many.sizes[n][1]}
    for name in sorted(grows):
        if few.sizes[name][1] * elements[1] != many.sizes[name][1] * elements[0] and (given is None or name in given):
            raise SettingError(
                f"Plate {name!r} has {few.sizes[name][1]} elements for {elements[0]} data and {many.sizes[name][1]} "
                f"for {elements[1]}: it grows with the data, and not in proportion, so that the sum over its parts is "
                f"not that of the whole. Name the data's plate by fit(data_plate=...), {INSTEAD}."
            )
    if given is not None:
        return frozenset(given) & grows
    _check_all_inside(few, many, follows)
    return frozenset(grows)


@dataclass
class _Seen:
    """One run: each plate's size and full size, each site's plates and shapes, each param's shape."""

    sizes: dict[str, tuple[int, int]]
    sites: dict[tuple[str, str], tuple[frozenset[str], Any]]
    params: dict[str, tuple[int, ...]]


def _seen(pair: Pair) -> _Seen:
    seen = _Seen({}, {}, {})
    with undisturbed(pair.model, pair.guide):
        traces = trace_pair(pair, KeepSubsamples())
        seen.params = {n: tuple(p.shape) for n, p in pyro.get_param_store().named_parameters()}
    for where, trace in zip(("guide", "model"), traces, strict=True):
        for name, msg in sample_sites(trace).items():
            frames = msg["cond_indep_stack"]
            seen.sizes |= {f.name: (int(f.size), int(f.full_size or f.size)) for f in frames}
            shape = tuple(msg["value"].shape) if isinstance(msg["value"], Tensor) else None
            seen.sites[where, name] = frozenset(f.name for f in frames), shape
    return seen


def _check_all_inside(few: _Seen, many: _Seen, follows: Collection[str]) -> None:
    """Refuse sites that grow with the data outside of plates that do, and ones inside of two."""
    for key, (plates, shape) in many.sites.items():
        where, name = key
        within = sorted(plates & set(follows))
        if len(within) > 1:
            raise SettingError(
                f"Site {name!r} of the {where} is in plates {' and '.join(map(repr, within))}, which both follow the "
                f"data. Name the one that the data are divided along by fit(data_plate=...), {INSTEAD}."
            )
        if not within and (key not in few.sites or few.sites[key][1] != shape):
            raise SettingError(
                f"Site {name!r} of the {where} grows with the data and is in no plate that does, so that its terms "
                "cannot be told from those that all data share. Put what belongs to a datum into "
                f"`with pyro.plate('data', len(x))`, {INSTEAD}."
            )
    if not follows:
        raise SettingError(
            "No plate follows the data, so that their terms cannot be told from those that all data share. Put what "
            f"belongs to a datum into `with pyro.plate('data', len(x))`, {INSTEAD}."
        )
