"""Bias and variance of an estimator against the exact gradient, and how they trade off over temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyro_discrete.diagnostics.contract import ElboLike, Measurement
from pyro_discrete.diagnostics.programs import Program

__all__ = ["BiasVariance", "bias_and_variance"]


@dataclass(frozen=True)
class BiasVariance:
    """Of the whole gradient of a program, in units of the exact gradient's norm (variance: of its square).

    - `bias`: distance of the mean estimate from the exact gradient, sampling error taken off; `bias_error` that error.
    - `variance`: of one particle's estimate, summed over coordinates.
    """

    bias: float
    bias_error: float
    variance: float


def bias_and_variance(
    make: Callable[[int], ElboLike], program: Program, *, particles: int = 2_000, calls: int = 40, seed: int = 0
) -> BiasVariance:
    """Measure the ELBO that `make(num_particles)` gives, from `calls` gradients, each a mean over the particles.

    >>> from pyro_discrete import TraceELBO
    >>> from pyro_discrete.testing import programs
    >>> found = bias_and_variance(lambda k: TraceELBO("rloo", num_particles=k), programs()[0], calls=5)
    >>> found.bias < 10 * found.bias_error
    True
    """
    measured = Measurement(program, lambda: make(particles), torch.float64, "vectorised", calls, seed).run()
    exact = program.exact.gradients
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in exact.values()))
    variance = sum(float(measured[name].var(0).sum()) for name in exact)
    distance = sum(float((measured[name].mean(0) - exact[name]).square().sum()) for name in exact)
    error = variance / calls
    return BiasVariance(
        math.sqrt(max(distance - error, 0.0)) / norm, math.sqrt(error) / norm, particles * variance / norm**2
    )
