"""The processes that train together: how they find each other, what they say, and how one learns of another's end."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyro
import pyro.util
import torch
import torch.distributed as dist
from torch import Tensor

from pyro_discrete.errors import RanksError, SettingError, first_line, in_a_line, shown

__all__ = ["Ranks", "joined_ranks", "launch", "restarted"]

T = TypeVar("T")
PATIENCE = 2.0
"""Seconds in which the end of a killed process becomes visible to the others of its machine."""

ALIKE = 2**32 - 1
"""In the place of a rank's number, for what all ranks draw alike."""


@dataclass
class Asked:
    """Whether a rank, and after their meeting any of them, has asked for something."""

    for_it: bool = False


class Ranks:
    """The processes of a run, of which this one is number `rank` of `size`; alone, nothing is sent anywhere.

    Whatever fails in one of them is raised in all: `together` is around what each does by itself.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank: int = rank
        self.size: int = size
        self._control = control
        self._places: list[tuple[str, int]] = []
        if size > 1:
            self._places = self.told((socket.gethostname(), os.getpid()))

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and shows progress."""
        return self.rank == 0

    def told(self, own: T) -> list[T]:
        """What each rank says, by rank."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        self._meeting(lambda: dist.all_gather_object(found, own, group=self._control))
        return found

    def of_first(self, make: Callable[[], T], doing: str) -> T:
        """What `make` gives on rank 0, on every rank; it is not called elsewhere."""
        made: list[Any] = [None]
        with self.together(doing):
            if self.first:
                made[0] = make()
        if self.size > 1:
            self._meeting(lambda: dist.broadcast_object_list(made, src=0, group=self._control))
        return made[0]

    def spread(self, tensors: list[Tensor]) -> None:
        """Give each of the tensors, in place, the value that it has on rank 0."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                self._meeting(lambda sent=sent: dist.broadcast(sent, src=0, group=self._group(sent)))
                if sent.data_ptr() != tensor.data_ptr():
                    tensor.copy_(sent)

    def added(self, tensors: list[Tensor]) -> None:
        """Put the sum over all ranks into each of the tensors; what they send is on its way side by side."""
        if self.size == 1:
            return

        def reduce() -> None:
            works = [dist.all_reduce(tensor, group=self._group(tensor), async_op=True) for tensor in tensors]
            for work in works:
                work.wait()  # type: ignore[union-attr]

        self._meeting(reduce)

    def any(self, flag: bool) -> bool:
        """Whether it holds on one of them."""
        found = torch.tensor([float(flag)])
        self.added([found])
        return bool(found.item() > 0)

    @contextmanager
    def together(self, doing: str) -> Iterator[Asked]:
        """Around what each rank does by itself: where one fails, it raises its own error and the others say which.

        What one asks for within holds on all of them afterwards.
        """
        asked = Asked()
        if self.size == 1:
            yield asked
            return
        failure: Exception | None = None
        try:
            yield asked
        except Exception as error:
            failure = error
        flags = torch.tensor([float(failure is not None), float(asked.for_it)])
        self.added([flags])
        if flags[0]:
            self.fail(failure, doing)
        asked.for_it = bool(flags[1])

    def fail(self, failure: Exception | None, doing: str) -> None:
        """Raise, on each rank, what has failed on one of them: all have to call it."""
        told = self.told(None if failure is None else in_a_line(failure))
        if failure is not None:
            failure.add_note(f"This was rank {self.rank} of {self.size}, {doing}.")
            raise failure
        failed = {rank: message for rank, message in enumerate(told) if message is not None}
        raise RanksError(f"{named(failed)} failed {doing}: {'; '.join(sorted(set(failed.values()))).rstrip('.')}.")

    def same(self, own: Any, what: str, shows: Callable[[Any], str] = shown) -> None:
        """Raise `RanksError`, on every rank, unless all say the same."""
        told = self.told(own)
        other = [rank for rank in range(self.size) if told[rank] != told[0]]
        if other:
            raise RanksError(
                f"The ranks differ in {what}: {shows(told[0])} on rank 0, {shows(told[other[0]])} on "
                f"{named(other).lower()}. All have to run the same program on the same data, with the same settings "
                "and versions."
            )

    def seed(self, seed: int) -> int:
        """A seed of this rank's own; rank 0 has that of a single process."""
        return seed if self.first else _derived(seed, self.rank)

    def state_alike(self, seed: int) -> Any:
        """A random state that is the same on all ranks, and no rank's own."""
        own = pyro.util.get_rng_state()
        pyro.set_rng_seed(_derived(seed, ALIKE))
        alike = pyro.util.get_rng_state()
        pyro.util.set_rng_state(own)
        return alike

    def _group(self, tensor: Tensor) -> Any:
        return self._control if tensor.device.type == "cpu" else None

    def _meeting(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except (RuntimeError, ValueError) as error:  # torch's errors of a connection are both
            raise RanksError(self._whose_end(error)) from error

    def _whose_end(self, error: Exception) -> str:
        gone: list[int] = []
        until = time.monotonic() + PATIENCE
        while not gone and time.monotonic() < until:
            here = socket.gethostname()
            gone = [r for r, (host, pid) in enumerate(self._places) if host == here and not _lives(pid)]
            if not gone:
                time.sleep(0.05)
        why = shown(first_line(error), 200)
        if gone:
            return (
                f"{named(gone)} of {self.size} is gone, killed or ended while rank {self.rank} waited for it ({why}). "
                "A launcher such as torchrun starts all of them again, with --max-restarts, and fit goes on from its "
                "last checkpoint."
            )
        return (
            f"Rank {self.rank} of {self.size} lost its connection to the others ({why}): one of them was killed, has "
            "failed or cannot be reached. Its own output, or the launcher's, says why."
        )


def _derived(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def named(ranks: Any) -> str:
    """`Rank 1`, or `Ranks 1, 3`."""
    numbers = list(ranks)
    return f"Rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # where there is such a file, it tells of those that nobody has waited for
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


@contextmanager
def joined_ranks(wanted: bool = True) -> Iterator[Ranks]:
    """The ranks of this run: those of a process group that is there, or of one made for what is within.

    One is made where `RANK` and `WORLD_SIZE` are set, as torchrun does. Raises `SettingError` where it cannot be.
    """
    if not wanted or not dist.is_available():
        yield Ranks()
        return
    made = not dist.is_initialized()
    if made:
        size = os.environ.get("WORLD_SIZE", "1")
        if "RANK" not in os.environ or size == "1":
            yield Ranks()
            return
        _make_group(size)
    try:
        if dist.get_world_size() == 1:
            yield Ranks()
            return
        control = None if _serves_processor() else dist.new_group(backend="gloo")
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), control)
        yield ranks
        if made:
            ranks.any(False)  # nobody leaves while another is still being answered
    finally:
        if made:
            dist.destroy_process_group()


_made = 0


def _make_group(size: str) -> None:
    """Torch's own group of all ranks, for the processor and, where there is one, an accelerator.

    Its keys have a prefix of their own: a launcher keeps the store, and a second group of the same processes, or those
    that are started again, would find the addresses of the first.
    """
    global _made
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, rank, count = next(iter(dist.rendezvous("env://")))
        own = dist.PrefixStore(f"pyro_discrete/{size}/{start}/{_made}", store)
        dist.init_process_group(store=own, rank=rank, world_size=count)
    except (ValueError, RuntimeError) as error:
        raise SettingError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={size} are set, but the processes could not be joined "
            f"({shown(first_line(error), 200)}). Start them by torchrun, unset both, or give fit split=None for each "
            "to train by itself."
        ) from error
    _made += 1


def _serves_processor() -> bool:
    return "gloo" in dist.get_backend_config(None) or "mpi" in dist.get_backend_config(None)


def restarted() -> bool:
    """Whether torchrun has started this process again, after one of its run had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def launch() -> str:
    """The launcher that this process is of, the same after a restart; empty without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return "" if run is None else f"{socket.gethostname()}:{os.getppid()}:{run}"
