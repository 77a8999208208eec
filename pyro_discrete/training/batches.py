"""Where the arguments of each training step come from, and how a run finds its place in them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_discrete.errors import EmptyBatchError, SettingError, is_whole, shown

__all__ = [
    "Arguments",
    "Batches",
    "LoaderBatches",
    "TensorBatches",
    "as_arguments",
    "make_batches",
    "one_epoch",
]


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches. One that loads a stream's state goes on where that one was.

    `next_batch()` gives a tensor (the program's argument), a tuple or list (its arguments) or a dict (by name).
    """

    def next_batch(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def as_arguments(batch: Any, device: torch.device | str | None = None) -> Arguments:
    """A batch as the program's arguments and keyword arguments, its tensors on the device."""
    if isinstance(batch, Mapping):
        return (), {str(key): _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_moved(value, device) for value in batch), {}
    return (_moved(batch, device),), {}


def _moved(value: Any, device: torch.device | str | None) -> Any:
    return value.to(device, non_blocking=True) if device is not None and isinstance(value, Tensor) else value


def make_batches(
    data: Any, batch_size: int | None, shuffle: bool, drop_last: bool, seed: int, device: torch.device | str | None
) -> Batches:
    """The stream that `data` stands for. Raises `SettingError` for what is none of the kinds that `fit` documents."""
    if isinstance(data, Batches):
        return data
    data = () if data is None else _with_tensors(data)
    if _in_memory(data):
        return TensorBatches(data, batch_size, shuffle, drop_last, seed, device)
    if isinstance(data, Iterable) and not isinstance(data, str | Mapping | tuple):
        if isinstance(data, Iterator):
            raise SettingError(
                "data is an iterator, which cannot be gone through again; give the loader, or a list of batches."
            )
        if batch_size is not None:
            raise SettingError("batch_size is for tensors in memory; a loader makes its batches by itself.")
        return LoaderBatches(data, device)
    if isinstance(data, Mapping | tuple):
        parts = data.items() if isinstance(data, Mapping) else enumerate(data)
        name, other = next((n, v) for n, v in parts if not isinstance(v, Tensor))
        raise SettingError(
            f"data[{name!r}] is {shown(other)}; tensors alone are expected in a tuple or dict. Give other arguments "
            "of the program by functools.partial."
        )
    raise SettingError(
        f"data is {type(data).__name__} ({shown(data)}); a tensor, a tuple or dict of tensors, a DataLoader (or "
        "another iterable of batches), or an object with next_batch, state_dict and load_state_dict is expected."
    )


def _with_tensors(data: Any) -> Any:
    """NumPy arrays, also within a tuple, list or dict, as tensors that share their numbers where they can."""
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "biufc":
            raise SettingError(f"The data hold an array of dtype {data.dtype}; numbers are expected.")
        array = data if data.flags.writeable and all(s >= 0 for s in data.strides) else data.copy()
        try:
            return torch.as_tensor(array)
        except TypeError as error:
            raise SettingError(f"The data hold an array of dtype {data.dtype}, which torch does not have.") from error
    if isinstance(data, Mapping):
        return {name: _with_tensors(value) for name, value in data.items()}
    if type(data) is tuple:
        return tuple(_with_tensors(value) for value in data)
    return data


def _in_memory(data: Any) -> bool:
    tensors = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else (data,)
    return all(isinstance(value, Tensor) for value in tensors)


def _checked(batch: Any) -> Any:
    """A loader's batch. Raises `SettingError` for what is more likely a datum, or the name of a column."""
    if isinstance(batch, int | float | complex | str | np.generic):
        raise SettingError(
            f"data were gone through for batches, and one is {shown(batch)}. Numbers in a list are not one batch: give "
            "torch.tensor(data). A batch is a tensor, a tuple or list of arguments, or a dict of them by name."
        )
    return [_with_tensors(value) for value in batch] if type(batch) is list else _with_tensors(batch)


def one_epoch(data: Any, batch_size: int | None) -> Iterator[Any]:
    """Each batch of `data` once, in their order: of tensors in memory, a loader, or another iterable of batches."""
    batches = make_batches(data, batch_size if _in_memory(data) else None, False, False, 0, None)
    if isinstance(batches, LoaderBatches):
        yield from map(_checked, batches.loader)
    elif isinstance(batches, TensorBatches):
        for _ in range(batches.steps_per_epoch):
            yield batches.next_batch()
    else:
        raise SettingError("validation_data has no end: tensors, or an iterable of batches, are expected.")


class TensorBatches:
    """Minibatches of tensors in memory, by index, in an order that a seed decides; all of them without `batch_size`.

    - `data`: a tensor `[n, ...]`, or a tuple or dict of such, of one length; moved to `device` once.
    - `drop_last`: leave out the smaller batch at the end of an epoch.

    >>> import torch
    >>> batches = TensorBatches(torch.arange(5.0), batch_size=2, shuffle=False)
    >>> [batches.next_batch().tolist() for _ in range(4)]
    [[0.0, 1.0], [2.0, 3.0], [4.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.names: list[str] | None = list(data) if isinstance(data, Mapping) else None
        self.single: bool = isinstance(data, Tensor)
        tensors = [data] if self.single else list(data.values()) if self.names is not None else list(data)
        self.tensors: list[Tensor] = [_moved(tensor, device) for tensor in tensors]
        self.batch_size = batch_size
        self.shuffle: bool = shuffle
        self.drop_last: bool = drop_last
        self.generator: torch.Generator = torch.Generator().manual_seed(seed)
        self.order: Tensor = torch.empty(0, dtype=torch.long)
        self.position: int = 0
        self._on_device = self.order
        if batch_size is None or not self.tensors:
            self.batch_size = None
            return
        lengths = {len(tensor) if tensor.dim() else 0 for tensor in self.tensors}
        if len(lengths) != 1:
            raise SettingError(
                f"Tensors of lengths {sorted(lengths)} cannot be taken batch by batch; one length is expected."
            )
        self.length: int = lengths.pop()
        if self.length == 0:
            raise EmptyBatchError("The data hold nothing to take batches from.")
        if not is_whole(batch_size) or not 1 <= batch_size <= self.length:
            raise SettingError(f"batch_size={shown(batch_size)} given, 1 to {self.length} (the data) expected.")

    @property
    def steps_per_epoch(self) -> int:
        """Batches until the data begin anew."""
        if self.batch_size is None:
            return 1
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def next_batch(self) -> Any:
        """Views or copies of the rows of the next batch, in the container that the data came in."""
        if self.batch_size is None:
            return self._packed(self.tensors)
        if self.position >= len(self.order):
            everything = torch.arange(self.length)
            self.order = torch.randperm(self.length, generator=self.generator) if self.shuffle else everything
            if self.drop_last:
                self.order = self.order[: self.steps_per_epoch * self.batch_size]
            self.position, self._on_device = 0, self.order.to(self.tensors[0].device)
        chosen = self._on_device[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return self._packed([tensor.index_select(0, chosen.to(tensor.device)) for tensor in self.tensors])

    def _packed(self, tensors: list[Tensor]) -> Any:
        if self.single:
            return tensors[0]
        return tuple(tensors) if self.names is None else dict(zip(self.names, tensors, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order.clone(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order = state["order"].clone()
        self.position = state["position"]
        self._on_device = self.order.to(self.tensors[0].device) if self.tensors else self.order


class LoaderBatches:
    """The batches of a `DataLoader` (or of another iterable), epoch after epoch.

    The place in an epoch is found again by going through it from its start, under the random state that it started in:
    samplers, shuffling and workers then give the same batches. A dataset that draws numbers of its own in this
    process goes on from the saved random state, and so gives the same too.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device | str | None = None) -> None:
        self.loader: Iterable[Any] = loader
        self.device: torch.device | str | None = device
        self.position: int = 0
        self._iterator: Iterator[Any] | None = None
        self._start: dict[str, Any] = {}

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches until the data begin anew; None if the loader does not say."""
        return len(self.loader) if hasattr(self.loader, "__len__") else None  # type: ignore[arg-type]

    def next_batch(self) -> Any:
        """The loader's next batch, its tensors moved to the device."""
        if self._iterator is None:
            self._begin()
        batch = next(self._iterator, _END)  # type: ignore[arg-type]
        if batch is _END:
            if self.position == 0:
                raise EmptyBatchError("The loader gives no batch at all.")
            self._begin()
            batch = next(self._iterator, _END)  # type: ignore[arg-type]
            if batch is _END:
                raise EmptyBatchError("The loader gives no batch the second time that it is gone through.")
        self.position += 1
        args, kwargs = as_arguments(_checked(batch), self.device)
        return kwargs or args

    def _begin(self) -> None:
        own = getattr(self.loader, "generator", None)
        self._start = {"global": torch.get_rng_state(), "own": None if own is None else own.get_state()}
        self._iterator, self.position = iter(self.loader), 0

    def state_dict(self) -> dict[str, Any]:
        own = getattr(self.loader, "generator", None)
        return {**self._start, "now": None if own is None else own.get_state(), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the saved place; leaves torch's global random state as it is."""
        if "now" not in state:
            raise ValueError("it is no loader's")
        self._iterator, self.position = None, 0
        if "global" not in state:
            return
        own, before = getattr(self.loader, "generator", None), torch.get_rng_state()
        torch.set_rng_state(state["global"])
        if own is not None:
            own.set_state(state["own"])
        self._begin()
        for _ in range(state["position"]):
            next(self._iterator, None)  # type: ignore[arg-type]
        self.position = state["position"]
        torch.set_rng_state(before)
        if own is not None:
            own.set_state(state["now"])


_END = object()
