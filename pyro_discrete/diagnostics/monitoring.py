"""What an estimator does while it trains, noted and drawn: gradient noise, baseline fit, temperature, entropy."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete.diagnostics.gradient_draws import GradientDraws
from pyro_discrete.distributions.structure import Structure
from pyro_discrete.draws.schedules import temperature_at
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator, ScoredDraw, Surrogate
from pyro_discrete.families import Family
from pyro_discrete.posterior.mixtures import marginals_of
from pyro_discrete.programs.module_state import undisturbed
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import base_distribution, family_of, latent_sites
from pyro_discrete.tables.html_table import html_table

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "Monitor",
    "picture",
]


ACTIVE = 0.01
"""A latent is dead if the guide's mean of it varies less than this over the data (Burda et al. 2016, appendix C)."""


MOST_VALUES = 2**14
"""A structure of so many values at most has its entropy from them, where there is no closed form."""


BY_SITE = ("baseline_fit", "temperature", "entropy", "dead_latents", "latents")


IN_ALL = ("gradient_variance", "gradient_norm", "signal_to_noise")


class Monitor:
    r"""Looks at a pair and its ELBO now and then during training, and leaves both as they are.

    Call it after a step with the step's arguments, or give it to `fit` among its `callbacks`. Every `every` steps it
    makes `draws` (at least 2) gradient estimates of its own on them, so its cost is `draws / every` of the training's.
    `history` is a dataset with the dims `step` and `site`:

    - `gradient_variance`: of one estimate on this batch, summed over all parameters; `gradient_norm`: of the mean
      gradient, noise taken off; `signal_to_noise`: the latter over the root of the former.
    - `baseline_fit`: R² of a site's control variate, 1 - mean((f - c)²) / var(f), f the cost and c what is taken off it
      before it multiplies the score. 0 is as good as f's mean over the batch; NaN where nothing multiplies a score.
    - `temperature`: of a relaxed estimator. `entropy`: of the guide, nats a latent variable.
    - `dead_latents` of `latents`: those whose mean under the guide has a variance over the data below 0.01. A structure
      (a ranking, a subset) is one latent variable, its mean the probabilities of its items at their places.

    Raises `SettingError` for a setting out of range. Random states and parameters stay as they were.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders (active units).

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer import SVI
    >>> from pyro_discrete import TraceELBO
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x)))))
    >>> elbo, x = TraceELBO("rloo", num_particles=2), torch.tensor([0.0, 1.2])
    >>> svi, monitor = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=elbo), Monitor(model, guide, elbo, every=5)
    >>> for step in range(10):
    ...     loss = svi.step(x)
    ...     monitor(x)
    >>> monitor.history["step"].values.tolist(), monitor.history["entropy"].dims
    ([5, 10], ('step', 'site'))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        elbo: DiscreteELBO,
        *,
        every: int = 100,
        draws: int = 2,
    ) -> None:
        if every < 1 or draws < 2:
            raise SettingError(f"Monitor: every={every}, draws={draws} given; every >= 1 and draws >= 2 are expected.")
        self.model: Callable[..., Any] = model
        self.guide: Callable[..., Any] = guide
        self.elbo: DiscreteELBO = elbo
        self.every: int = every
        self.draws: int = draws
        self.calls: int = 0
        self.records: list[dict[str, Any]] = []
        self._gradients: GradientDraws | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What is recorded; the parameters that are looked at are found again."""
        return {**self.__dict__, "_gradients": None}

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Count a step, and look every so many of them; `args` and `kwargs` are the step's, or the state that `fit`
        hands to its callbacks, which counts by itself."""
        from pyro_discrete.training.loop import FitState  # which imports this package

        if len(args) == 1 and isinstance(args[0], FitState):
            self.look(args[0].step, *args[0].args, **args[0].kwargs)
            return
        self.calls += 1
        if self.calls % self.every == 0:
            self.look(self.calls, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The records so far, and how many steps were counted."""
        return {"records": self.records, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved records."""
        self.records = list(state["records"])
        self.calls = state["calls"]

    def look(self, step: int, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Look now; the record is added to the history under `step` and returned."""
        pair = Pair(self.model, self.guide, args, kwargs)
        record: dict[str, Any] = {"step": step, "sites": {}}
        with undisturbed(self.model, self.guide):
            gradients = self._follow(pair)
            signals = _watch(gradients.elbo)
            try:
                found = [gradients.draw() for _ in range(self.draws)]
            finally:
                for signal in signals.values():
                    signal.stop()
            record |= _noise(found)
            with torch.no_grad():
                trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
                for name, msg in latent_sites(trace).items():
                    if family_of(msg["fn"]) not in (None, Family.CONTINUOUS):
                        signal = signals.get(name)
                        record["sites"][name] = {
                            "baseline_fit": signal.fit() if signal else math.nan,
                            "temperature": _temperature(signal.estimator, self.elbo.step) if signal else math.nan,
                            **_posterior(msg),
                        }
        self.records.append(record)
        return record

    @property
    def history(self) -> xr.Dataset:
        """All records so far."""
        import xarray as xr  # here, as it is slow to import

        steps = [record["step"] for record in self.records]
        sites = sorted({name for record in self.records for name in record["sites"]}, key=_by_number)
        nothing: dict[str, float] = {}
        by_site = {
            key: (
                ("step", "site"),
                [[r["sites"].get(s, nothing).get(key, math.nan) for s in sites] for r in self.records],
            )
            for key in BY_SITE
        }
        in_all = {key: ("step", [record[key] for record in self.records]) for key in IN_ALL}
        return xr.Dataset({**in_all, **by_site}, coords={"step": steps, "site": sites})

    def latest(self) -> str:
        """The last look in a few words, for a progress bar; empty before there is one."""
        if not self.records:
            return ""
        last = self.records[-1]
        found = [(site["dead_latents"], site["latents"]) for site in last["sites"].values()]
        known = [(dead, latents) for dead, latents in found if math.isfinite(dead)]
        dead, latents = (int(sum(numbers)) for numbers in zip(*known, strict=True)) if known else (0, 0)
        return f"signal/noise {last['signal_to_noise']:.2g}" + (f", {dead} of {latents} dead" if latents else "")

    def __repr__(self) -> str:
        looks = f"{len(self.records)} look{'s' * (len(self.records) != 1)}"
        last = f", at step {self.records[-1]['step']}: {self.latest()}" if self.records else ""
        return f"Monitor(every={self.every}, draws={self.draws}; {looks}{last})"

    def _repr_html_(self) -> str:
        """The last look, site by site."""
        if not self.records:
            return html_table(["site", *BY_SITE], [], title=repr(self))
        last = self.records[-1]
        sites = sorted(last["sites"], key=_by_number)
        rows = [[name, *(_shown(last["sites"][name].get(key, math.nan)) for key in BY_SITE)] for name in sites]
        noise = ", ".join(f"{key.replace('_', ' ')} {last[key]:.3g}" for key in IN_ALL)
        heads = ["site", *(key.replace("_", " ") for key in BY_SITE)]
        return html_table(heads, rows, title=repr(self), notes=[noise])

    def plot(self, path: str | Path | None = None) -> Figure:
        """The history as curves; written to `path` if given (extra `plots`)."""

        return picture(self.history, path)

    def _follow(self, pair: Pair) -> GradientDraws:
        """Gradient estimates of a copy of the ELBO, which is as the original is now and learns nothing for it."""
        if self._gradients is None:
            shadow = copy.deepcopy(self.elbo)
            shadow.loss(pair.model, pair.guide, *pair.args, **pair.kwargs)  # which plans
            self._gradients = GradientDraws(shadow, pair)
        state = copy.deepcopy(self.elbo.state_dict())  # an optimiser takes up tensors as they are
        self._gradients.elbo.load_state_dict(state, strict=False)
        self._gradients.pair = pair
        return self._gradients


@dataclass
class _Signal:
    """What an estimator made of its costs, seen from outside its `surrogate`."""

    estimator: Estimator
    costs: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)

    def start(self) -> None:
        original = self.estimator.surrogate

        def surrogate(draw: ScoredDraw, cost: Tensor) -> Surrogate:
            divisor = self._rescaling()  # read before it is updated
            out = original(draw, cost)
            loss = torch.as_tensor(out.loss)
            if draw.log_q is not None and draw.log_q.requires_grad and loss.requires_grad:
                (weight,) = torch.autograd.grad(loss.sum(), draw.log_q, retain_graph=True, allow_unused=True)
                if weight is not None:
                    self.costs.append(cost[0].detach().flatten())
                    self.residuals.append((weight.detach() * divisor).flatten())
            return out

        self.estimator.surrogate = surrogate  # type: ignore[method-assign]

    def stop(self) -> None:
        del self.estimator.surrogate

    def _rescaling(self) -> float:
        """What NVIL divides its signal by."""
        if not getattr(self.estimator, "variance_normalisation", False):
            return 1.0
        return float(self.estimator.moments.deviation.clamp(min=1.0))  # type: ignore[union-attr, operator]

    def fit(self) -> float:
        """R² of the control variate."""
        if not self.costs:
            return math.nan
        costs, residuals = torch.cat(self.costs).double(), torch.cat(self.residuals).double()
        variance = costs.var(correction=0) if len(costs) > 1 else costs.new_zeros(())
        return float(1 - residuals.square().mean() / variance) if variance > 0 else math.nan


def _watch(elbo: DiscreteELBO) -> dict[str, _Signal]:
    """Site -> what its estimator will have made of its costs."""
    signals = {name: _Signal(estimator) for name, estimator in elbo.estimators.items()}
    for signal in signals.values():
        signal.start()
    return signals


def _noise(found: list[dict[str, Tensor]]) -> dict[str, float]:
    """Variance, norm and signal-to-noise of the draws of a gradient."""
    names = sorted(set[str]().union(*found))
    if not names:
        return dict.fromkeys(IN_ALL, 0.0)
    like = {name: next(g[name] for g in found if name in g) for name in names}
    flat = [torch.cat([g.get(n, torch.zeros_like(like[n])).double().flatten() for n in names]) for g in found]
    variance = float(torch.stack(flat).var(0).sum())
    squared = max(float(torch.stack(flat).mean(0).square().sum()) - variance / len(flat), 0.0)
    ratio = math.sqrt(squared / variance) if variance > 0 else math.inf
    return {"gradient_variance": variance, "gradient_norm": math.sqrt(squared), "signal_to_noise": ratio}


def _by_number(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts z_2 before z_10.

    >>> sorted(["z_10", "z_2", "a"], key=_by_number)
    ['a', 'z_2', 'z_10']
    """
    parts = re.split(r"(\d+)", name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _shown(number: float) -> str:
    return f"{number:.3g}" if math.isfinite(number) else "-"


def _temperature(estimator: Estimator, step: Tensor) -> float:
    """A constant's, a schedule's at this step, or a learned one's value; NaN if it has none."""
    learned = getattr(estimator, "log_temperature", None)
    if learned is not None:
        return float(learned.detach().exp())
    given = getattr(estimator, "schedule", None) or getattr(estimator, "temperature", None)
    if given is None:
        return math.nan
    now = temperature_at(given, step)
    return float(now.detach() if torch.is_tensor(now) else now)


def _posterior(msg: Any) -> dict[str, float]:
    """Entropy a latent variable, and how many of the latent variables are dead."""
    fn, base = msg["fn"], base_distribution(msg["fn"])
    copies = fn.event_dim - len(base.event_shape)
    entropy = _entropy(base)
    if isinstance(base, Structure):  # one latent variable, of many probabilities
        mean = marginals_of(base).probs.flatten(len(base.batch_shape))
    else:
        mean = getattr(base, "probs", None) if hasattr(base, "logits") else base.mean
    if mean is None:
        return {"entropy": entropy, "dead_latents": math.nan, "latents": math.nan}
    categories = 0 if mean.dim() <= len(fn.batch_shape) + copies else 1
    over = mean.reshape(-1, math.prod(fn.event_shape[:copies]), *mean.shape[mean.dim() - categories :])
    latents = over.shape[1]
    if len(over) < 2:
        return {"entropy": entropy, "dead_latents": math.nan, "latents": float(latents)}
    spread = over.var(0)
    dead = float(((spread.amax(-1) if categories else spread) < ACTIVE).sum())
    return {"entropy": entropy, "dead_latents": dead, "latents": float(latents)}


def _entropy(base: Any) -> float:
    """The mean over elements; of a structure without a closed form by all of its values, while these are few."""
    try:
        return float(base.entropy().mean())
    except NotImplementedError:
        pass
    if not isinstance(base, Structure) or base.cardinality > MOST_VALUES:
        return math.nan
    return float(torch.special.entr(base.log_prob(base.enumerate_support(expand=False)).exp()).sum(0).mean())


MOST_NAMES = 12
"""Of sites, beside a panel."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinct for colour-blind readers."""


def picture(history: xr.Dataset, path: str | Path | None = None) -> Figure:
    """Gradient noise, and by site baseline fit, entropy, dead latents, temperature, where there are any."""
    by_site = {
        "baseline_fit": "baseline fit, R²\n(1: nothing left to predict)",
        "entropy": "entropy of the guide\n(nats a latent variable)",
        "dead_latents": "dead latent variables",
        "temperature": "temperature",
    }
    shown = [key for key in by_site if bool(np.isfinite(history[key]).any())]
    from matplotlib.figure import Figure  # of the extra "plots"

    figure = Figure(figsize=(9, 1.0 + 2.0 * (1 + len(shown))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1 + len(shown), 1, sharex=True))
    steps = history["step"].values
    _draw_noise(panels[0], steps, history)
    many = history.sizes["site"] > len(COLOURS)  # more sites than colours that can be told apart
    for axes, key in zip(panels[1:], shown, strict=True):
        (_draw_map if many else _draw_lines)(axes, steps, history, key)
        axes.set_ylabel(f"{by_site[key]}\nby site" if many else by_site[key], fontsize=9)
    panels[-1].set_xlabel("training step")
    panels[-1].set_xlim(0, 1.03 * steps.max())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    if shown and not many and history.sizes["site"] > 1:
        panels[1].legend(title="site", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_lines(axes: Any, steps: np.ndarray, history: xr.Dataset, key: str) -> None:
    """A line for each site."""
    for number, site in enumerate(history["site"].values):
        values = history[key].sel(site=site).values
        if np.isfinite(values).any():
            axes.plot(steps, values, "o-", markersize=3, color=COLOURS[number % len(COLOURS)], label=str(site))
    axes.grid(alpha=0.25)
    if key == "dead_latents":
        total = int(np.nanmax(history["latents"].values))
        axes.set_ylim(-0.03 * total, 1.03 * total)
    if key == "baseline_fit":
        axes.set_ylim(max(-1.0, float(np.nanmin(history[key].values)) - 0.05), 1.05)


def _draw_map(axes: Any, steps: np.ndarray, history: xr.Dataset, key: str) -> None:
    """A row of colours for each site, in the order of their names, from the top."""
    values = history[key].transpose("site", "step").values
    low, high = {"dead_latents": (0.0, float(np.nanmax(history["latents"].values)))}.get(key, (None, None))
    if key == "baseline_fit":
        low, high = max(-1.0, float(np.nanmin(values))), 1.0
    between = (steps[1:] + steps[:-1]) / 2
    first, last = (steps[0] - (steps[1] - steps[0]) / 2, steps[-1]) if len(steps) > 1 else (0, steps[0])
    edges = np.concatenate([[max(0.0, first)], between, [last]])
    shown = axes.pcolormesh(edges, np.arange(len(values) + 1) - 0.5, values, cmap="viridis", vmin=low, vmax=high)
    axes.figure.colorbar(shown, ax=axes, pad=0.01)
    names = [str(site) for site in history["site"].values]
    each = -(-len(names) // MOST_NAMES)
    axes.set_yticks(range(0, len(names), each), names[::each], fontsize=7)
    axes.invert_yaxis()


def _draw_noise(axes: Any, steps: np.ndarray, history: xr.Dataset) -> None:
    variance, norm = np.sqrt(history["gradient_variance"].values), history["gradient_norm"].values
    noise = "noise: standard deviation" if variance.any() else "noise: none (an exact gradient)"
    axes.plot(steps, np.where(variance > 0, variance, np.nan), "o-", markersize=3, color=COLOURS[1], label=noise)
    axes.plot(
        steps, np.where(norm > 0, norm, np.nan), "o-", markersize=3, color=COLOURS[0], label="signal: norm of the mean"
    )
    axes.set_yscale("log")
    axes.set_ylabel("gradient on one batch", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
