"""Why a program fails over several values at once, in words for the user who wrote it, with the line where it does."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path

import pyro
import torch

from pyro_discrete.errors import in_a_line

__all__ = ["LIBRARIES", "innermost_line", "why_not_at_once"]


LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, pyro)) + (
    str(Path(__file__).parents[1]),
)


ONE_VALUE = (
    "converted to Scalar",
    "Boolean value of Tensor with more than one value",
    "only one element tensors can be converted",
    "only integer tensors of a single element",
    "only length-1 arrays",
    "only 0-dimensional arrays",
)
"""What torch and NumPy say where Python wants one value and there are several."""


def why_not_at_once(error: BaseException) -> str:
    """What it means that a run over several values beside each other failed so."""
    frames = traceback.extract_tb(error.__traceback__)
    if error.__cause__ is not None:  # Pyro adds the sites' shapes
        frames += traceback.extract_tb(error.__cause__.__traceback__)
    place = innermost_line(frames)
    if any(said in str(error) for said in ONE_VALUE):
        return f"Python takes a draw for one value{place}, by .item(), if or an index"
    return in_a_line(error) + place


def innermost_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """Where that is in the user's own code, as " at FILE:LINE"; empty if it is in none."""
    for frame in reversed(list(frames)):
        if not frame.filename.startswith(LIBRARIES) and not frame.filename.startswith("<"):
            return f" at {Path(frame.filename).name}:{frame.lineno}"
    return ""
