"""Bias, variance and cost of estimators on a user's own pair, at its parameters as they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_discrete.diagnostics.comparison_report import EstimatorComparison
from pyro_discrete.diagnostics.exact import Oracle
from pyro_discrete.diagnostics.gradient_draws import GradientDraws, Moments, train_own_parts
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SettingError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.registry import available_estimators
from pyro_discrete.estimators.score.nvil import NVIL
from pyro_discrete.planning.select import Spec
from pyro_discrete.programs.module_state import undisturbed
from pyro_discrete.programs.pair import Pair

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare_estimators"]

Objective = Callable[..., DiscreteELBO]
Candidate = Spec | DiscreteELBO
REFERENCE_FACTOR = 4
"""So many times the draws go into a reference that has to be sampled."""
ROUNDING = 1e-4
"""A distance of so many gradient norms may be the rounding of float32 sums."""
EXACT_BUDGET = 2_000
"""Up to so many joint assignments, an exact gradient that parallel enumeration cannot give is found one by one."""


@dataclass(frozen=True)
class _Reference:
    """The gradient to compare with: name -> mean, and the moments of the long run that it comes from, if any."""

    kind: str
    mean: Mapping[str, Tensor]
    moments: Mapping[str, Moments]


def compare_estimators(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    estimators: Iterable[str | Estimator] | Mapping[str, Candidate] | None = None,
    draws: int = 200,
    num_particles: int | None = None,
    seconds: float = math.inf,
    objective: Objective = TraceELBO,
    warm_up: int = 200,
    next_batch: Callable[[], Any] | None = None,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> EstimatorComparison:
    r"""Measure estimators of the gradient on a model and guide, at their parameters as they are.

    - `estimators`: names or instances, or a dict from labels to whatever `TraceELBO` takes, or to ELBOs (which are
      copied); by default every one in `available_estimators()` that serves the pair.
    - `draws`: gradient estimates for each mean and variance, at least 2, of the same arguments `args` and `kwargs`;
      an estimator that would take longer than `seconds` makes fewer.
    - `num_particles`: for all; by default each has the least that it works with.
    - `objective`: `TraceELBO`, or another class of objectives.
    - `warm_up`: steps in which an estimator first learns what it learns (baselines, coefficients), by Adam from
      `learning_rate`: on the same arguments, or on what `next_batch()` returns (a tensor, or a tuple of them), which
      is fairer to baselines that read the data. `nvil` by name is measured without its variance normalisation, which
      rescales its gradient.

    Returns an `EstimatorComparison`: a dataset with dims `estimator` and `parameter`, a table, a plot, and the line of
    code that it recommends. The exact gradient is the reference where it can be had (parallel enumeration, else up to
    2,000 joint assignments one by one); otherwise it is a long run, of four times the draws, of the unbiased
    estimator with the least variance, whose own error is taken into account.

    Parameters, their `.grad`, the param store, modules' buffers and random states stay as they were. An estimator
    that does not serve the pair is left out, with its error in `left_out`.

    Raises `SettingError` for a setting out of range, and what the pair itself raises.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))))
    >>> x = torch.tensor([0.0, 1.2])
    >>> found = compare_estimators(model, guide, x, estimators=["reinforce", "disarm"], draws=50, progress=False)
    >>> found["variance"].dims, found.reference
    (('estimator', 'parameter'), 'exact')
    >>> found.recommendation
    'TraceELBO("disarm")'
    """
    if draws < 2:
        raise SettingError(f"compare_estimators: draws={draws} given, at least 2 expected.")
    if warm_up < 0 or not seconds > 0:
        raise SettingError("compare_estimators: warm_up >= 0 and seconds > 0 are expected.")
    pair = Pair(model, guide, args, kwargs)
    chosen = _chosen(estimators)
    with undisturbed(model, guide):
        torch.manual_seed(seed)
        measured, left_out = _prepared(pair, chosen, objective, num_particles)
        if not measured:
            raise SettingError(f"compare_estimators: no estimator serves this pair: {left_out}")
        exact = _exact(pair, objective)
        with tqdm(total=len(measured) * (draws + warm_up), unit="draw", disable=None if progress else True) as bar:
            for label, drawn in measured.items():
                bar.set_description(label)
                _learn(drawn, warm_up, learning_rate, next_batch, bar)
                _measure(drawn, draws, seconds, bar)
        reference = exact or _sampled_reference(measured, draws, progress)
        taken = _times(list(measured.values()))
    dataset = _dataset(measured, reference, taken, draws)
    return EstimatorComparison(
        dataset, left_out, {label: _code(label, chosen[label], drawn) for label, drawn in measured.items()}
    )


def _chosen(estimators: Iterable[str | Estimator] | Mapping[str, Candidate] | None) -> dict[str, Candidate]:
    """Label -> what to give to an objective."""
    if isinstance(estimators, Mapping):
        return {str(label): spec for label, spec in estimators.items()}
    found: dict[str, Candidate] = {}
    for each in available_estimators() if estimators is None else estimators:
        label = each if isinstance(each, str) else each.name
        number = sum(known.split(" #")[0] == label for known in found)
        found[label if not number else f"{label} #{number + 1}"] = each
    return found


def _prepared(
    pair: Pair, chosen: Mapping[str, Candidate], objective: Objective, num_particles: int | None
) -> tuple[dict[str, GradientDraws], dict[str, str]]:
    """What serves the pair, planned; and label -> why not for the rest."""
    measured: dict[str, GradientDraws] = {}
    left_out: dict[str, str] = {}
    for label, spec in chosen.items():
        try:
            drawn = GradientDraws(_elbo(spec, objective, num_particles), pair)
            drawn.draw()
        except DiscreteInferenceError as error:
            left_out[label] = str(error)
        else:
            measured[label] = drawn
    return measured, left_out


def _elbo(spec: Candidate, objective: Objective, num_particles: int | None) -> DiscreteELBO:
    if isinstance(spec, DiscreteELBO):
        return copy.deepcopy(spec)
    fair = NVIL(variance_normalisation=False) if spec == NVIL.name else spec
    return objective(fair, num_particles=num_particles or _least_particles(spec))


def _least_particles(spec: Spec) -> int:
    """The least number of particles that every estimator named in `spec` works with."""
    if isinstance(spec, str):
        known = available_estimators().get(spec)
        return 1 if known is None else max(known.cls.min_particles, known.cls.min_inner)
    if isinstance(spec, Mapping):
        return max(map(_least_particles, spec.values()), default=1)
    return max(spec.min_particles, spec.min_inner) if isinstance(spec, Estimator) else 1


def _exact(pair: Pair, objective: Objective) -> _Reference | None:
    """The exact gradient, if it can be had."""
    try:
        drawn = GradientDraws(objective("enumerate"), pair)
        first, second = drawn.draw(), drawn.draw()
    except (DiscreteInferenceError, NotImplementedError):
        first, second = {}, {"": torch.zeros(())}
    same = first.keys() == second.keys() and all(torch.allclose(first[n], second[n], rtol=1e-4) for n in first)
    if same and drawn.elbo.plan.path == "enumerated":
        return _Reference("exact", {n: g.double() for n, g in first.items()}, {})
    if objective is not TraceELBO:
        return None
    try:
        found = Oracle(budget=EXACT_BUDGET)(pair.model, pair.guide, *pair.args, **pair.kwargs)
    except EnumerationError:
        return None
    return _Reference("exact", found.gradients, {})


def _learn(drawn: GradientDraws, steps: int, rate: float, next_batch: Callable[[], Any] | None, bar: tqdm) -> None:
    """Train the estimator's own parts, if it has any."""
    if not any(state.is_floating_point() for state in [*drawn.elbo.parameters(), *drawn.elbo.buffers()]):
        bar.update(steps)
        return
    train_own_parts(drawn.elbo, drawn.pair, steps, rate, bar.update, next_batch)


def _measure(drawn: GradientDraws, draws: int, seconds: float, bar: tqdm) -> None:
    """Draw, for as long as there are seconds."""
    for number in range(draws):
        if number >= 10 and sum(drawn.seconds) > seconds:
            bar.update(draws - number)
            break
        drawn.add()
        bar.update()


def _sampled_reference(measured: Mapping[str, GradientDraws], draws: int, progress: bool) -> _Reference:
    """A long run of the unbiased estimator with the least variance."""
    unbiased = {label: d for label, d in measured.items() if _declared_unbiased(d.elbo)} or dict(measured)

    def noise(label: str) -> float:
        return sum(float(m.variance.sum()) for m in unbiased[label].moments.values())

    best = min(unbiased, key=noise)
    long = GradientDraws(unbiased[best].elbo, unbiased[best].pair)
    for _ in tqdm(
        range(REFERENCE_FACTOR * draws), desc=f"reference: {best}", disable=None if progress else True, leave=False
    ):
        long.add()
    return _Reference(f"{long.draws} draws of {best}", long.mean, long.moments)


def _declared_unbiased(elbo: DiscreteELBO) -> bool:
    return all(e is None or e.unbiased for e in elbo.plan.estimators.values())


def _times(measured: Sequence[GradientDraws], rounds: int = 7) -> list[float]:
    """Least seconds of a draw, in turns: what is above it is other programs' doing. A slow one has fewer turns."""
    taken: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for drawn, so_far in zip(measured, taken, strict=True):
            if len(so_far) < 3 or sum(so_far) < 2.0:
                drawn.draw()
                so_far.append(drawn.seconds[-1])
    return [min(each) for each in taken]


def _dataset(
    measured: Mapping[str, GradientDraws], reference: _Reference, seconds: Sequence[float], draws: int
) -> xr.Dataset:
    """See `EstimatorComparison.dataset`."""
    import xarray as xr  # here, as it is slow to import

    names = sorted(set(reference.mean).union(*(drawn.moments for drawn in measured.values())))
    zero = torch.zeros((), dtype=torch.float64)
    none = Moments(zero, zero)
    rows: dict[str, list[list[float]]] = {
        key: [] for key in ("variance", "bias", "bias_error", "bias_z", "signal_to_noise")
    }
    norms = [float(reference.mean.get(name, zero).norm()) for name in names]
    for drawn in measured.values():
        table: dict[str, list[float]] = {key: [] for key in rows}
        for name, norm in zip(names, norms, strict=True):
            own, other = drawn.moments.get(name, none), reference.moments.get(name, none)
            variance = float(own.variance.sum())
            squared_bias = float((own.mean - reference.mean.get(name, zero)).square().sum())
            expected = own.squared_error + other.squared_error
            spread = math.sqrt(own.spread + other.spread)
            excess = max(math.sqrt(squared_bias) - ROUNDING * norm, 0.0) ** 2 - expected
            table["variance"].append(variance)
            table["bias"].append(math.sqrt(squared_bias))
            table["bias_error"].append(math.sqrt(expected))
            table["bias_z"].append(excess / spread if spread > 0 else math.inf if excess > 0 else 0.0)
            table["signal_to_noise"].append(norm / math.sqrt(variance) if variance > 0 else math.inf)
        for key, values in table.items():
            rows[key].append(values)
    both = ("estimator", "parameter")
    evaluations = [drawn.elbo.plan.evaluations for drawn in measured.values()]
    dataset = xr.Dataset(
        {
            **{name: (both, values) for name, values in rows.items()},
            "gradient_norm": ("parameter", norms),
            "seconds": ("estimator", list(seconds)),
            "evaluations": ("estimator", evaluations),
            "draws": ("estimator", [drawn.draws for drawn in measured.values()]),
            "unbiased": ("estimator", [_declared_unbiased(drawn.elbo) for drawn in measured.values()]),
        },
        coords={"estimator": list(measured), "parameter": names},
        attrs={"reference": reference.kind, "draws_asked_for": draws},
    )
    total = dataset["variance"].sum("parameter")
    dataset["variance_x_time"] = total * dataset["seconds"]
    dataset["variance_x_evaluations"] = total * dataset["evaluations"]
    return dataset


def _code(label: str, spec: Candidate, drawn: GradientDraws) -> str:
    """The line that makes this ELBO."""
    elbo = drawn.elbo
    given = repr(spec) if isinstance(spec, Estimator | Mapping) else f'"{spec if isinstance(spec, str) else label}"'
    particles = f", num_particles={elbo.num_particles}" if elbo.num_particles > 1 else ""
    return f"{type(elbo).__name__}({given}{particles})"
