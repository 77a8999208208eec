"""Images that a program makes: reconstructions of given ones, and samples from the prior."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from models.programs.program import Program
from models.runs.evaluation import EVALUATION_SEED, isolated

__all__ = ["reconstruct", "sample_prior"]


def reconstruct(program: Program, x: Tensor) -> Tensor:
    """Mean images `[batch, pixels]` given one hard draw of the latents for each image of `x` `[batch, pixels]`."""
    with torch.no_grad(), isolated(EVALUATION_SEED):
        x = x.to(next(program.parameters()).device)
        guide_trace = poutine.trace(program.guide).get_trace(x)
        return _mean_images(poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(x))


def sample_prior(program: Program, number: int, pixels: int) -> Tensor:
    """Mean images `[number, pixels]` given latents drawn from the model's prior."""
    with torch.no_grad(), isolated(EVALUATION_SEED):
        empty = torch.zeros(number, pixels, device=next(program.parameters()).device)
        return _mean_images(poutine.trace(poutine.uncondition(program.model)).get_trace(empty))


def _mean_images(trace: poutine.Trace) -> Tensor:
    site: Any = trace.nodes["x"]
    return site["fn"].mean.cpu()
