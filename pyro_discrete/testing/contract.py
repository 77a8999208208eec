"""Whether the mean of many estimates is the exact gradient: measurement, test and report; bias and variance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal, Protocol
from unittest.mock import patch

import pyro
import torch
from torch import Tensor

from pyro_discrete.errors import EnumerationError, UnsupportedSiteError
from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.testing.small_programs.program import Pair, Program

__all__ = [
    "BiasVariance",
    "Comparison",
    "Decision",
    "ElboLike",
    "Measurement",
    "Report",
    "auxiliary_leaks",
    "bias_and_variance",
    "compare",
    "decide",
]


FIRST_STAGE = 1e-3
"""The probability with which a right comparison goes on to the second stage."""


class ElboLike(Protocol):
    """What the contract needs of an ELBO; Pyro's own have it too."""

    def loss(self, model: Any, guide: Any, *args: Any) -> Any: ...
    def loss_and_grads(self, model: Any, guide: Any, *args: Any) -> Any: ...


@dataclass(frozen=True)
class Measurement:
    """One series of calls: an ELBO on a program.

    - `make`: makes a fresh ELBO, with fresh state.
    - `what`: `"gradients"` calls `loss_and_grads` (and compares the loss that it returns if `with_loss`), `"loss"`
      calls `loss`, `"both"` the one and then the other, of one ELBO, which has to plan once.
    - `calls`: how many of each, each one a sample (the mean of an ELBO's particles).
    """

    program: Program
    make: Callable[[], ElboLike]
    dtype: torch.dtype
    path: str
    calls: int
    seed: int
    what: Literal["gradients", "loss", "both"] = "gradients"
    with_loss: bool = True

    def run(self) -> dict[str, Tensor]:
        """name -> `[calls, *shape]` float64: the gradient of each parameter, and the loss."""
        with self.program.running(self.dtype) as pair, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fallback to the sequential path says so once
            torch.manual_seed(self.seed)
            elbo, out = self.make(), {}
            if self.what != "loss":
                out |= self._gradients(elbo, pair)
            if self.what != "gradients":
                losses = [float(elbo.loss(pair.model, pair.guide, *pair.args)) for _ in range(self.calls)]
                out["loss"] = torch.tensor(losses, dtype=torch.float64)
            return out

    def _gradients(self, elbo: ElboLike, pair: Pair) -> dict[str, Tensor]:
        """Of calls of `loss_and_grads`, as `run` returns them."""
        samples: dict[str, list[Tensor]] = {name: [] for name in pair.parameters}
        losses = []
        for _ in range(self.calls):
            losses.append(float(elbo.loss_and_grads(pair.model, pair.guide, *pair.args)))
            for name, parameter in pair.parameters.items():
                gradient = parameter.grad
                samples[name].append(torch.zeros_like(parameter) if gradient is None else gradient.detach().clone())
                parameter.grad = None
            _descend(own=set(map(id, pair.parameters.values())))
        out = {name: torch.stack(each).double() for name, each in samples.items()}
        return out | ({"loss returned": torch.tensor(losses, dtype=torch.float64)} if self.with_loss else {})


def _descend(own: set[int], rate: float = 0.01) -> None:
    """A step of gradient descent on what the estimator trains: unbiased estimates stay so while its state moves."""
    for _, parameter in pyro.get_param_store().named_parameters():
        if id(parameter) not in own and parameter.grad is not None:
            with torch.no_grad():
                parameter -= rate * parameter.grad
            parameter.grad = None


@dataclass(frozen=True)
class Comparison:
    """A mean over calls against the exact number: `z` standard errors apart (0 within rounding)."""

    program: str
    quantity: str
    dtype: str
    path: str
    exact: float
    mean: float
    standard_error: float
    z: float
    calls: int
    alarm: bool = False

    @property
    def is_loss(self) -> bool:
        """Whether it compares a loss, not a gradient."""
        return self.quantity in ("loss", "loss returned")

    def __str__(self) -> str:
        return (
            f"{self.program:22s} {self.quantity:20s} {self.dtype:8s} {self.path:28s} exact {self.exact:11.5g}  "
            f"mean {self.mean:11.5g} +- {self.standard_error:.2g}  z {self.z:8.2f}  ({self.calls} calls)"
        )


@dataclass(frozen=True)
class Decision:
    """All comparisons, the `|z|` of the second stage's alarm, the programs refused and those that crashed, with why."""

    comparisons: list[Comparison]
    threshold: float
    refused: list[str]
    crashed: list[str]


def compare(measurement: Measurement) -> list[Comparison]:
    """Run the measurement and compare every entry of every parameter's gradient, and the loss, with the exact one."""
    exact = measurement.program.exact
    eps = torch.finfo(measurement.dtype).eps
    rounding = 100 * eps * (1 + abs(exact.loss))
    out = []
    for name, samples in measurement.run().items():
        truth = exact.gradients.get(name, torch.tensor(exact.loss, dtype=torch.float64))
        means, errors = samples.mean(0), samples.std(0) / math.sqrt(measurement.calls)
        for index in range(truth.numel()):
            mean, error = means.flatten()[index].item(), errors.flatten()[index].item()
            right = truth.flatten()[index].item()
            out.append(
                Comparison(
                    measurement.program.name,
                    name if truth.dim() == 0 else f"{name}[{index}]",
                    str(measurement.dtype).removeprefix("torch."),
                    measurement.path,
                    right,
                    mean,
                    error,
                    _z_score(mean - right, error, rounding, measurement.calls),
                    measurement.calls,
                )
            )
    return out


def _z_score(difference: float, error: float, rounding: float, calls: int) -> float:
    """The difference in standard errors, as a normal deviate: 0 within rounding, at most 99.

    Student's t is turned into a normal deviate by the approximation of Wallace (1959), never too large, and good to
    0.4% at twelve calls and a probability of 1e-6.
    """
    if not math.isfinite(difference):
        return 99.0
    if abs(difference) <= rounding:
        return 0.0
    degrees = calls - 1
    t = (abs(difference) - rounding) / max(error, 1e-300)
    z = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(min(t, 1e100) ** 2 / degrees))
    return math.copysign(min(z, 99.0), difference)


def decide(measurements: Iterable[Measurement], false_alarm: float, unbiased: bool = True) -> Decision:
    """All comparisons, decided in two stages.

    A comparison whose `|z|` has a probability below `FIRST_STAGE` is made again with ten times the calls and another
    seed, and alarms if it fails there too, at a level such that all of them together alarm falsely with a probability
    of at most `false_alarm` (the stages' draws are independent, so their probabilities multiply; then Bonferroni).
    Before that it has to be suspicious in three times the calls: few draws have often not seen a rare value, and seem
    to be surer than they are. Where bias is declared, gradients alarm as they should, and only the most suspicious
    program is measured again.
    """
    first: list[tuple[Measurement, list[Comparison]]] = []
    refused, crashed = [], []
    for measurement in measurements:
        where = f"{measurement.program.name} ({measurement.dtype}, {measurement.path})"
        try:
            first.append((measurement, compare(measurement)))
        except (EnumerationError, UnsupportedSiteError) as error:
            refused.append(f"{measurement.program.name}: {error}")
        except Exception as error:  # whatever it is, a program that an estimator serves has to run
            crashed.append(f"{where}: {type(error).__name__}: {error}")
    comparisons = [c for _, each in first for c in each]
    suspicious = _threshold(FIRST_STAGE)
    decisive = _threshold(false_alarm / max(1, len(comparisons)) / FIRST_STAGE)
    most = max((abs(c.z) for c in comparisons if not c.is_loss), default=0.0)

    def again(c: Comparison) -> bool:
        return abs(c.z) > suspicious and (unbiased or c.is_loss or abs(c.z) == most)

    def cleared(measurement: Measurement, each: list[Comparison]) -> bool:
        more = compare(replace(measurement, calls=3 * measurement.calls, seed=measurement.seed + 2_000_003))
        return not any(abs(c.z) > suspicious for before, c in zip(each, more, strict=True) if again(before))

    out = []
    for measurement, each in first:
        if any(map(again, each)) and not (unbiased and cleared(measurement, each)):
            second = compare(replace(measurement, calls=10 * measurement.calls, seed=measurement.seed + 1_000_003))
            each = [
                replace(after, alarm=abs(after.z) > decisive) if again(before) else before
                for before, after in zip(each, second, strict=True)
            ]
        out.extend(each)
    return Decision(out, decisive, sorted(set(refused)), crashed)


def _threshold(probability: float) -> float:
    """The `|z|` that a normal deviate exceeds with this probability."""
    return -NormalDist().inv_cdf(probability / 2)


@dataclass(frozen=True)
class Report:
    """What the contract found about one estimator.

    - `unbiased`: what the estimator declares. `comparisons`: of gradients and losses with the exact ones.
    - `threshold`: the `|z|` at which the second stage alarms. `refused`: the programs that it would not run, and why.
    - `violations`: other breaches, in words.
    """

    estimator: str
    unbiased: bool
    comparisons: Sequence[Comparison]
    threshold: float
    refused: Sequence[str] = ()
    violations: Sequence[str] = field(default_factory=tuple)

    @property
    def failures(self) -> list[str]:
        """Why the estimator does not keep its contract; empty if it does."""
        gradients = [c for c in self.comparisons if not c.is_loss]
        losses = [c for c in self.comparisons if c.is_loss]
        out = [str(c) for c in losses if c.alarm] + list(self.violations)
        if self.unbiased:
            out += [str(c) for c in gradients if c.alarm]
        elif not any(c.alarm for c in gradients):
            out.append("declared biased, but no bias was seen: declare it unbiased, or give it more draws.")
        if not gradients:
            out.append("no program was run: " + "; ".join(self.refused))
        return out

    @property
    def worst(self) -> Comparison:
        """The comparison with the largest `|z|` of those that must agree."""
        counted = [c for c in self.comparisons if self.unbiased or c.is_loss]
        return max(counted, key=lambda c: abs(c.z))

    def by_program(self) -> dict[str, tuple[float, float, int]]:
        """Program -> the worst `|z|` of its gradients, of its losses, and the number of comparisons."""
        out: dict[str, tuple[float, float, int]] = {}
        for c in self.comparisons:
            gradient, loss, number = out.get(c.program, (0.0, 0.0, 0))
            if c.is_loss:
                loss = max(loss, abs(c.z))
            else:
                gradient = max(gradient, abs(c.z))
            out[c.program] = (gradient, loss, number + 1)
        return out

    def __str__(self) -> str:
        claim = "unbiased" if self.unbiased else "biased"
        lines = [
            f"{self.estimator}, declared {claim}: {len(self.comparisons)} comparisons, "
            f"threshold |z| {self.threshold:.2f} in the second stage",
            f"  {'program':24s} {'gradient':>9s} {'loss':>7s} {'comparisons':>12s}   (worst |z|)",
        ]
        for name, (gradient, loss, number) in self.by_program().items():
            lines.append(f"  {name:24s} {gradient:9.2f} {loss:7.2f} {number:12d}")
        lines += [f"  refused {reason}" for reason in self.refused]
        failures = self.failures
        lines += [f"  FAILS: {reason}" for reason in failures[:12]]
        if len(failures) > 12:
            lines.append(f"  ... and {len(failures) - 12} more")
        return "\n".join(lines)


@contextmanager
def auxiliary_leaks(estimator: type[Estimator], leaks: list[str]) -> Iterator[None]:
    """Note in `leaks` every auxiliary loss of this class with a gradient, other than zero, on what is not its own."""
    original = estimator.surrogate

    def surrogate(self: Any, draw: ScoredDraw, cost: Tensor) -> Surrogate:
        out = original(self, draw, cost)
        if isinstance(out.auxiliary, Tensor) and out.auxiliary.requires_grad:
            own = set(map(id, self.parameters()))
            others = [leaf for leaf in leaf_parameters(out.auxiliary) if id(leaf) not in own]
            gradients = (
                torch.autograd.grad(out.auxiliary.sum(), others, retain_graph=True, allow_unused=True) if others else ()
            )
            worst = max((g.abs().max().item() for g in gradients if g is not None), default=0.0)
            if worst > 0 and not leaks:
                leaks.append(f"its auxiliary loss has a gradient of {worst:.3g} on the program's parameters.")
        return out

    with patch.object(estimator, "surrogate", surrogate):
        yield


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
