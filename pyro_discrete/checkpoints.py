"""Checkpoints that a kill cannot spoil: written beside the old one, then put in its place in one move."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from pyro_discrete.errors import CheckpointError

__all__ = ["FORMAT", "load_checkpoint", "save_checkpoint", "write_atomically"]

FORMAT = 2
"""Version of the layout of a checkpoint; another one is refused."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, plain values) as the file `path`; the old one stays until the new one is whole."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint in that file, on the processor; nothing but tensors and plain values is read from it.

    Raises `CheckpointError` if there is none, or none that this version can read.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint in {path.parent} ({path.name}) to resume from; leave out resume to start anew."
        )
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is no checkpoint of this version: its format is {found!r}, expected {FORMAT}.")
    return state


def write_atomically(path: Path, text: str) -> None:
    """Put `text` in the file as a whole: after a kill it holds either the old text or the new one."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
