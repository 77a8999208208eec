"""Checkpoints that neither a kill nor a full disk can spoil, and that tell whether a bit of them has changed."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pyro_discrete.errors import CheckpointError, WriteError, shown

__all__ = ["FORMAT", "load_checkpoint", "save_checkpoint", "write_atomically"]

FORMAT = 3
"""Version of the layout of a checkpoint: torch's archive, and behind it a line with its SHA-256."""
UNSUMMED = 2
"""The layout before: the archive alone. Its parts are checked by the sums that an archive has of each."""
MARK = b"\npyro_discrete sha256 "
TRAILER = len(MARK) + 2 * hashlib.sha256().digest_size + 1


PLAIN = (Tensor, str, bytes, int, float, complex, type(None), set, torch.Size, torch.dtype, torch.device)
"""What a checkpoint holds in lists, tuples and dicts; nothing else is read from one."""


class _Summed:
    """A file to write to that keeps a sum of what has gone into it, and the error that stopped it, if any."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sum.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, plain values) as the file `path`; the old one stays until the new one is whole.

    Raises `WriteError` where the file cannot be written, `CheckpointError` for a value that could not be read again;
    nothing of the attempt is left.
    """
    plain = {"format": FORMAT, **{name: _plain(value, name) for name, value in state.items()}}

    def write(file: BinaryIO) -> None:
        summed = _Summed(file)
        try:
            torch.save(plain, summed)  # type: ignore[arg-type]
        except RuntimeError:
            if summed.error is not None:  # torch's archive hides what stopped it
                raise summed.error from None
            raise
        file.write(MARK + summed.sum.hexdigest().encode() + b"\n")

    _replace(path, write)


def _plain(value: Any, where: str) -> Any:
    """The value, with Python's numbers for NumPy's; what it holds is nothing else than tensors and plain values."""
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return value.item()
    if isinstance(value, Mapping):
        found = {key: _plain(part, f"{where}[{key!r}]") for key, part in value.items()}
        return value if all(part is value[key] for key, part in found.items()) else found
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        parts = [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if not isinstance(value, PLAIN):
        raise CheckpointError(
            f"{where} is {shown(value)} ({type(value).__name__}), which a checkpoint cannot hold, as it is not pickled "
            "whole: tensors, numbers, strings, and lists and dicts of them are expected."
        )
    return value


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint in that file, on the processor; nothing but tensors and plain values is read from it.

    Raises `CheckpointError` if there is none, none that this version can read, or one in which a bit has changed.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint in {path.parent} ({path.name}) to resume from; leave out resume to start anew."
        )
    try:
        summed = _is_whole(path)
    except OSError as error:
        raise _damaged(path, error.strerror or type(error).__name__) from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise _damaged(path, f"{type(error).__name__}: {shown(str(error).partition('. ')[0])}") from error
    if not isinstance(state, dict) or state.get("format") not in (UNSUMMED, FORMAT):
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path} is no checkpoint of this version: its format is {shown(found)}, expected {UNSUMMED} or {FORMAT}."
        )
    if state["format"] == FORMAT and not summed:
        raise _damaged(path, "its end, which holds a sum of the rest, is missing")
    return state


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or no checkpoint ({why}). Put back a copy of it, or remove it and start anew."
    )


def _is_whole(path: Path) -> bool:
    """Whether the file has a sum behind its archive; raises `CheckpointError` if that, or one of a part, differs."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        if length > TRAILER:
            file.seek(length - TRAILER)
            end = file.read()
            if end.startswith(MARK):
                file.seek(0)
                found = hashlib.sha256()
                for start in range(0, length - TRAILER, 1 << 20):
                    found.update(file.read(min(1 << 20, length - TRAILER - start)))
                if end != MARK + found.hexdigest().encode() + b"\n":
                    raise _damaged(path, "its contents do not agree with the sum that was saved with them")
                return True
    try:
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()
    except Exception as error:  # what a changed bit makes of an archive's names and flags is of every kind
        raise _damaged(path, "it is no archive of torch's, or a part of one") from error
    if spoilt is not None:
        raise _damaged(path, f"its part {spoilt} does not agree with the sum that was saved with it")
    return False


def write_atomically(path: Path, text: str | bytes) -> None:
    """Put `text` (or bytes) in the file as a whole: after a kill it holds either the old text or the new one.

    Raises `WriteError` where it cannot be written; nothing of the attempt is left.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode() if isinstance(text, str) else text)

    _replace(path, write)


def _replace(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a file beside `path`, in a folder that is made if need be, then put that in its place."""
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; the one that was there stays as it was" if path.is_file() else ""
        raise WriteError(
            f"{path} could not be written ({error.strerror or error}){kept}. Make room there, or see whether its "
            "folder may be written to."
        ) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # in a folder that cannot be written to there is nothing to remove
        return


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
