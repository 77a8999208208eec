"""The folder of a run: whose it is while it runs, and whether it holds one already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from models.errors import ConfigError
from models.runs.config import CHECKPOINT_NAME, RunConfig
from pyro_discrete.checkpoints import load_checkpoint
from pyro_discrete.errors import CheckpointError
from pyro_discrete.training.ranks import launch, restarted

try:
    import fcntl
except ImportError:  # not on every system; two runs on one folder are then told apart by its files alone
    fcntl = None

__all__ = ["RUN_FILES", "rank_of", "refuse_used_folder", "taken", "was_broken_off"]

RUN_FILES = (CHECKPOINT_NAME, "config.json", "metrics.jsonl")
"""What a run writes from its start on."""


def rank_of() -> tuple[int, int]:
    """The number of this process among those that a launcher has started for one run, and how many they are."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)


def was_broken_off(out: Path) -> bool:
    """Whether this process was started again by the launcher under which the run in that folder was broken off."""
    if not restarted():
        return False
    try:
        return load_checkpoint(out / CHECKPOINT_NAME).get("launch") == launch()
    except CheckpointError:
        return False


@contextmanager
def taken(out: Path | None) -> Iterator[None]:
    """Within, the folder (made if need be) is this run's: a second one is refused by a `ConfigError` before it writes.

    The mark is the system's and ends with the process, however that ends.
    """
    if out is None:
        yield
        return
    refuse_a_file(out)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(f"Another run is at work in {out}; wait for it, or choose another --out.") from error
            except OSError:  # a file system without such marks
                pass
        yield
    finally:
        os.close(descriptor)
        if made:
            with suppress(OSError):
                out.rmdir()  # only if nothing was written


def refuse_used_folder(out: Path, signs: Sequence[str] = RUN_FILES) -> None:
    """Raise `ConfigError` if the folder already holds a run, of which one of these files is the sign.

    A run that ended before its first checkpoint is none: there is nothing to go on with, and nothing lost by a new one.
    """
    refuse_a_file(out)
    held = [name for name in signs if (out / name).exists()]
    if held and not (set(held) <= set(RUN_FILES) and _ended_at_once(out)):
        raise ConfigError(
            f"{out} already holds a run ({held[0]}); add --resume to go on with it, or choose another --out."
        )


def refuse_a_file(out: Path) -> None:
    """Raise `ConfigError` if that is no folder, nor can become one."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; --out names a folder.")


def _ended_at_once(out: Path) -> bool:
    """Whether a run has written its settings there, and no checkpoint."""
    if (out / CHECKPOINT_NAME).exists():
        return False
    try:
        config = json.loads((out / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.keys() == {field.name for field in fields(RunConfig)}
