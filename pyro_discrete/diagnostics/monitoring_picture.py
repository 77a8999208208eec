"""The history of a monitored training run as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

__all__ = ["picture"]

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
    figure = Figure(figsize=(9, 1.0 + 2.0 * (1 + len(shown))), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1 + len(shown), 1, sharex=True))
    steps = history["step"].values
    _draw_noise(panels[0], steps, history)
    for axes, key in zip(panels[1:], shown, strict=True):
        for number, site in enumerate(history["site"].values):
            values = history[key].sel(site=site).values
            if np.isfinite(values).any():
                axes.plot(steps, values, "o-", markersize=3, color=COLOURS[number % len(COLOURS)], label=str(site))
        axes.set_ylabel(by_site[key])
        if key == "dead_latents":
            total = int(np.nanmax(history["latents"].values))
            axes.set_ylim(-0.03 * total, 1.03 * total)
        if key == "baseline_fit":
            axes.set_ylim(max(-1.0, float(np.nanmin(history[key].values)) - 0.05), 1.05)
    panels[-1].set_xlabel("training step")
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if shown and history.sizes["site"] > 1:
        panels[1].legend(title="site", frameon=False)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_noise(axes: Any, steps: np.ndarray, history: xr.Dataset) -> None:
    variance, norm = np.sqrt(history["gradient_variance"].values), history["gradient_norm"].values
    axes.plot(steps, variance, "o-", markersize=3, color=COLOURS[1], label="noise: standard deviation")
    axes.plot(
        steps, np.where(norm > 0, norm, np.nan), "o-", markersize=3, color=COLOURS[0], label="signal: norm of the mean"
    )
    axes.set_yscale("log")
    axes.set_ylabel("gradient on one batch")
    axes.legend(frameon=False)
