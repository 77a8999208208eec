"""What a program is worth, whatever it was trained with: bounds, the noise of a gradient, and images that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from models.programs.program import LatentClasses, Program
from pyro_discrete import TraceELBO, TraceIWELBO
from pyro_discrete.diagnostics.gradient_draws import GradientDraws
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import NonFiniteError
from pyro_discrete.programs.pair import Pair

__all__ = [
    "Bounds",
    "GradientNoise",
    "bounds",
    "discrete_elbo",
    "gradient_noise",
    "isolated",
    "log_likelihood",
    "log_weights",
    "reconstruct",
    "sample_prior",
]

EVALUATION_SEED = 1234
"""Seed of every evaluation, so that programs are compared under the same noise."""
ELEMENTS_AT_ONCE = 2**22
"""Largest tensor of an evaluation, in numbers (16 MiB in float32): data are taken in chunks that keep to it."""


REMEDY = "A lower learning rate often helps."


@dataclass(frozen=True)
class Bounds:
    """Means over the elements of the data, in nats per element.

    - `elbo`: mean of log p(x, z) - log q(z | x) over `samples` draws from the guide.
    - `importance_weighted`: log of the mean of p(x, z) / q(z | x) over the same draws; at least `elbo`.

    Where the guide leaves out the latents, both are the exact log p(x), and nothing is sampled.
    """

    elbo: float
    importance_weighted: float
    samples: int


@dataclass(frozen=True)
class GradientNoise:
    """Variance of an estimate of the mean ELBO's gradient per element, summed over parameters; (nats / element)²."""

    guide: float
    model: float
    draws: int

    @classmethod
    def of(cls, variances: Mapping[str, float], batch: int, draws: int) -> GradientNoise:
        """From the variance of each parameter's gradient of the objective of a whole batch."""
        guide = sum(v for name, v in variances.items() if "encoder." in name)
        model = sum(v for name, v in variances.items() if "encoder." not in name)
        return cls(guide / batch**2, model / batch**2, draws)

    @property
    def total(self) -> float:
        return self.guide + self.model


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Within, torch's random numbers start from `seed` and Pyro's param store is empty; outside, both go on as before.

    Two programs of one class name their parameters alike: in one store, `pyro.module` would make the second share
    the first one's.
    """
    with torch.random.fork_rng(), pyro.get_param_store().scope():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def log_weights(program: Program, x: Tensor, samples: int) -> Tensor:
    """`[samples, batch]`: log p(x, z) - log q(z | x) in nats, for hard draws z of the guide; `x` `[batch, ...]`."""
    inside = program.plates_inside
    with pyro.plate("importance_samples", samples, dim=-2 - inside):
        guide_trace = poutine.trace(program.guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(x)
    weights = torch.zeros(samples, len(x), device=x.device)
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        trace.compute_log_prob()
        sites: list[Any] = list(trace.nodes.values())
        for site in sites:
            if site["type"] == "sample":
                shape = (samples, len(x)) + (1,) * inside
                log_prob = site["log_prob"].expand(torch.broadcast_shapes(site["log_prob"].shape, shape))
                weights = weights + sign * log_prob.flatten(2).sum(-1) if inside else weights + sign * log_prob
    return weights


def bounds(program: Program, x: Tensor, samples: int) -> Bounds:
    """ELBO and importance-weighted bound of `x` `[n, ...]` (binary images), both from the same `samples` hard draws.

    Raises `NonFiniteError` if they are not finite.
    """
    if isinstance(program, LatentClasses) and program.marginal:
        exact = log_likelihood(program, x)
        return Bounds(exact, exact, samples)
    if program.sums:
        return _summed_bounds(program, x, samples)
    elbo = importance_weighted = 0.0
    with isolated(EVALUATION_SEED):
        # Some seconds or minutes of silence at the end of a run would look like a crash.
        bar = tqdm(pieces(program, x, samples), desc=f"{samples}-sample bound", leave=False, delay=2, disable=None)
        for piece in bar:
            with _finite_outputs():
                weights = log_weights(program, piece, samples).double()
            elbo += float(weights.mean(0).sum())
            importance_weighted += float((weights.logsumexp(0) - math.log(samples)).sum())
    if not math.isfinite(elbo):
        raise NonFiniteError(f"The discrete ELBO of the data is {elbo}. {REMEDY}")
    return Bounds(elbo / len(x), importance_weighted / len(x), samples)


def _summed_bounds(program: Program, x: Tensor, samples: int) -> Bounds:
    """The same where the guide leaves sites out: they are summed in the model, given each draw of the others."""
    found = []
    for objective in (TraceELBO, TraceIWELBO):
        with isolated(EVALUATION_SEED), torch.no_grad():
            loss = objective("enumerate", num_particles=samples).loss
            cut = tqdm(pieces(program, x, samples), desc=f"{samples}-sample bound", leave=False, delay=2)
            found.append(-sum(loss(program.model, program.guide, piece) for piece in cut) / len(x))
    if not all(map(math.isfinite, found)):
        raise NonFiniteError(f"The discrete ELBO of the data is {found[0]}. {REMEDY}")
    return Bounds(found[0], found[1], samples)


def log_likelihood(program: Program, x: Tensor, values: int = 1) -> float:
    """The exact mean of log p(x) over the elements of `x` `[n, ...]`, in nats: all latents are summed in the model.

    `values`: how many joint values one run goes through that the program's own count of numbers leaves out.
    """
    with isolated(EVALUATION_SEED):
        elbo = TraceELBO("enumerate")
        total = sum(-elbo.loss(program.model, _without_sites, piece) for piece in pieces(program, x, values))
    return total / len(x)


def pieces(program: Program, x: Tensor, samples: int) -> list[Tensor]:
    """`x` on the program's device, in pieces whose runs with so many samples keep to `ELEMENTS_AT_ONCE`."""
    at_once = max(1, ELEMENTS_AT_ONCE // (samples * program.values(x)))
    return list(x.to(next(program.parameters()).device).split(at_once))


def _without_sites(x: Tensor) -> None:
    """A guide that leaves all latents to the model."""


@contextmanager
def _finite_outputs() -> Iterator[None]:
    """Say in one sentence what torch's check of a distribution's parameters says with all of their values."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected parameter"):
            raise
        raise NonFiniteError(f"The discrete ELBO is not finite: a network's outputs are NaN. {REMEDY}") from error


def discrete_elbo(program: Program, x: Tensor) -> float:
    """The discrete ELBO of `x` `[n, ...]`, from one hard draw an element; nats per element."""
    return bounds(program, x, samples=1).elbo


def gradient_noise(
    program: Program, elbo: DiscreteELBO, x: Tensor, draws: int, progress: Callable[[], Any] | None = None
) -> GradientNoise:
    """Variance of the gradient estimate of `elbo` at the program's parameters, on the batch `x` `[batch, ...]`.

    Parameters stay as they are; running averages of the estimator go on with each draw. `draws` is at least 2.
    `progress` is called after each.
    """
    drawn = GradientDraws(elbo, Pair(program.model, program.guide, (x,), {}))
    with isolated(EVALUATION_SEED):
        for _ in range(draws):
            drawn.add()
            if progress is not None:
                progress()
    return GradientNoise.of({name: float(m.variance.sum()) for name, m in drawn.moments.items()}, len(x), draws)


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
