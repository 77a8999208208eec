"""Gradients at logits where a z-test is ill-posed: each draw in float32 against the same draw in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyro_discrete.errors import NonFiniteError
from pyro_discrete.testing.contract import ElboLike
from pyro_discrete.testing.small_programs.program import BERNOULLI, CATEGORICAL, ONE_HOT, Pair, Program, program

__all__ = [
    "LOGITS",
    "Extreme",
    "ForcedDraws",
    "SharedNoise",
    "compare_precisions",
    "extreme_programs",
    "forced_expectation",
]


LOGITS = tuple(sign * size for size in (0.1, 1.0, 4.0, 8.0, 15.0, 30.0, 50.0) for sign in (1.0, -1.0))
"""The logits that the precision of an estimator is tested at."""


class _Bits:
    """Tells the operations that give Bernoulli draws: `bernoulli`, and a comparison written over uniform numbers."""

    def __init__(self) -> None:
        self._uniform: Tensor | None = None

    def gives(self, func: Any, args: Any, out: Any) -> bool:
        """Whether this operation, with these arguments and this result, has drawn bits."""
        kind = func.overloadpacket
        uniform = self._uniform
        written_over = kind is torch.ops.aten.lt_ and uniform is not None and args[0].is_set_to(uniform)
        if kind is torch.ops.aten.rand:
            self._uniform = out
        return written_over or kind in (torch.ops.aten.bernoulli, torch.ops.aten.bernoulli_)


class SharedNoise(TorchDispatchMode):
    """Makes a float64 program consume the very random numbers that the float32 program does under the same seed.

    Every random operation is carried out on float32 copies of its inputs and its result cast. With `unlikely`, hard
    draws are turned around (a Bernoulli draw into its opposite, an index into the next), so that values are seen that
    would never be drawn.
    """

    def __init__(self, unlikely: bool = False) -> None:
        super().__init__()
        self.unlikely = unlikely
        self._bits = _Bits()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if torch.Tag.nondeterministic_seeded not in func.tags:
            out = func(*args, **kwargs)
            return out.neg_().add_(1) if self._bits.gives(func, args, out) and self.unlikely else out
        wide = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        wide = wide or kwargs.get("dtype") == torch.float64

        def narrow(a: Any) -> Any:
            if isinstance(a, Tensor) and a.dtype == torch.float64:
                return a.float()
            return torch.float32 if a is torch.float64 else a

        out = func(*tree_map(narrow, args), **tree_map(narrow, kwargs))
        if self._bits.gives(func, args, out) and self.unlikely:
            out = 1 - out
        elif self.unlikely and func.overloadpacket is torch.ops.aten.multinomial:
            out = (out + 1) % args[0].shape[-1]
        if wide and isinstance(out, Tensor) and out.is_floating_point():
            out = out.double()
        if func._schema.is_mutable:
            return args[0].copy_(out)
        self._bits.gives(func, args, out)  # the numbers that the program has
        return out


class ForcedDraws(TorchDispatchMode):
    """Gives each particle's Bernoulli draws, at all elements alike, the value that `pattern` `[K]` has for it.

    - `forced`: how many draws it decided.
    """

    def __init__(self, pattern: Sequence[int]) -> None:
        super().__init__()
        self.pattern = pattern
        self.forced: int = 0
        self._bits = _Bits()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **({} if kwargs is None else kwargs))
        if not self._bits.gives(func, args, out):
            return out
        self.forced += 1
        values = torch.tensor(self.pattern, dtype=out.dtype)
        return out.copy_(values.reshape((-1,) + (1,) * (out.dim() - 1)).expand(out.shape))


@dataclass(frozen=True)
class Extreme:
    """The comparison of one program's draws in two precisions.

    - `error`: the largest difference of a gradient, in units of float32 rounding of the costs involved.
    - `finite`: whether all gradients were. `draws`: how many gradients were compared; `skipped`: whose drawn values
      differed between the precisions.
    """

    program: str
    error: float
    finite: bool
    draws: int
    skipped: int


@program(BERNOULLI)
def bernoulli_extremes(dtype: torch.dtype) -> Pair:
    """A bit at each logit of the grid, each with a likelihood of its own."""
    phi = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)

    def model() -> None:
        with pyro.plate("logits", len(LOGITS)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=dtype)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.full((len(LOGITS),), 1.7, dtype=dtype))

    def guide() -> None:
        with pyro.plate("logits", len(LOGITS)):
            pyro.sample("z", dist.Bernoulli(logits=phi))

    return Pair(model, guide, (), {"phi": phi})


def _grid(dtype: torch.dtype) -> Tensor:
    """Logits of three categories `[grid, 3]`."""
    first = torch.tensor(LOGITS, dtype=dtype)
    return torch.stack([first, torch.zeros_like(first), -0.5 * first], -1).requires_grad_()


@program(CATEGORICAL)
def categorical_extremes(dtype: torch.dtype) -> Pair:
    """An integer at each logit of the grid."""
    phi = _grid(dtype)

    def model() -> None:
        with pyro.plate("logits", len(LOGITS)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.2, 0.5], dtype=dtype)))
            pyro.sample("x", dist.Normal(0.8 * z, 1.0), obs=torch.full((len(LOGITS),), 1.7, dtype=dtype))

    def guide() -> None:
        with pyro.plate("logits", len(LOGITS)):
            pyro.sample("z", dist.Categorical(logits=phi))

    return Pair(model, guide, (), {"phi": phi})


@program(ONE_HOT)
def one_hot_extremes(dtype: torch.dtype) -> Pair:
    """A one-hot vector at each logit of the grid."""
    phi = _grid(dtype)
    weight = torch.tensor([0.0, 0.8, 1.6], dtype=dtype)

    def model() -> None:
        with pyro.plate("logits", len(LOGITS)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.3, 0.2, 0.5], dtype=dtype)))
            loc = (z * weight).sum(-1)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.full((len(LOGITS),), 1.7, dtype=dtype))

    def guide() -> None:
        with pyro.plate("logits", len(LOGITS)):
            pyro.sample("z", dist.OneHotCategorical(logits=phi))

    return Pair(model, guide, (), {"phi": phi})


def extreme_programs() -> Sequence[Program]:
    """One program for each family that has logits."""
    return (bernoulli_extremes, categorical_extremes, one_hot_extremes)


def compare_precisions(
    make: Callable[[], ElboLike], program: Program, *, calls: int = 20, seed: int = 0, unlikely: bool = False
) -> Extreme:
    """Run an ELBO in float32 and in float64 under the same noise and compare the gradients call by call.

    The difference is measured against `eps * (1 + |loss|)`, a bound on the rounding of one sum of that size. A call is
    left out where the two drew different values (a probability on the other side of a uniform number). Where the ELBO
    raises NonFiniteError, the result says that the gradients were not finite.
    """
    runs = [_gradients(make, program, dtype, calls, seed, unlikely) for dtype in (torch.float32, torch.float64)]
    (narrow, narrow_loss), (wide, wide_loss) = runs
    finite = bool(narrow.isfinite().all()) and bool(wide.isfinite().all())
    unit = torch.finfo(torch.float32).eps * (1 + wide_loss.abs())
    same = (narrow_loss - wide_loss).abs() <= 1e3 * unit
    error = ((narrow - wide).abs().amax(1) / unit)[same]
    return Extreme(program.name, error.max().item() if len(error) else 0.0, finite, calls, int((~same).sum()))


def _gradients(
    make: Callable[[], ElboLike], program: Program, dtype: torch.dtype, calls: int, seed: int, unlikely: bool
) -> tuple[Tensor, Tensor]:
    """The gradient on all parameters, one after the other `[calls, number]`, and the loss `[calls]`, in float64."""
    gradients, losses = [], []
    with program.running(dtype) as pair:
        elbo, parameters = make(), list(pair.parameters.values())
        for call in range(calls):
            torch.manual_seed(seed + call)
            try:
                with SharedNoise(unlikely):
                    losses.append(float(elbo.loss_and_grads(pair.model, pair.guide, *pair.args)))
            except NonFiniteError:
                losses.append(math.nan)
                parameters[0].grad = torch.full_like(parameters[0], math.nan)
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            gradients.append(torch.cat([g.double().flatten() for g in found]))
            for parameter in parameters:
                parameter.grad = None
    return torch.stack(gradients), torch.tensor(losses, dtype=torch.float64)


def forced_expectation(make: Callable[[], ElboLike], particles: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The exact mean `[grid]` of an estimator's gradient on `bernoulli_extremes`, and the exact gradient `[grid]`.

    Each of the 2^K joint draws of one bit and K particles is forced on an ELBO in its second call, and weighted with
    its probability: so there is no sampling error, and logits up to 50 count as much as others. For estimators that
    draw their bits as the guide's distribution does. Raises RuntimeError where a call draws a bit more than once.
    """
    mean = torch.zeros(len(LOGITS), dtype=torch.float64)
    grid = torch.tensor(LOGITS, dtype=torch.float64)
    for pattern in product((0, 1), repeat=particles):
        with bernoulli_extremes.running(dtype) as pair:
            elbo, phi = make(), pair.parameters["phi"]
            elbo.loss_and_grads(pair.model, pair.guide, *pair.args)  # draws more, to plan; and moves the state
            phi.grad = None
            with ForcedDraws(pattern) as draws:
                elbo.loss_and_grads(pair.model, pair.guide, *pair.args)
            if draws.forced > 1:
                raise RuntimeError(f"one draw for each bit expected, not {draws.forced}: it cannot be forced.")
            gradient = torch.zeros_like(phi) if phi.grad is None else phi.grad
            probability = torch.stack([torch.sigmoid(grid if bit else -grid) for bit in pattern]).prod(0)
            mean = mean + probability * gradient.double()
    return mean, _exact_extremes(grid)


def _exact_extremes(grid: Tensor) -> Tensor:
    """p (1 - p) times the difference of the costs of 1 and 0, at each logit."""
    difference = 0.5 * (1.7 - 1) ** 2 - 0.5 * 1.7**2 - math.log(0.3 / 0.7) + grid
    return grid.sigmoid() * (-grid).sigmoid() * difference
