"""A run under way, from what it has written so far: how far it is, when it will end, and its curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from models.errors import ConfigError
from models.runs.recording import Metrics

__all__ = ["Progress", "curve_text"]

CURVES = {
    "smoothed": "training objective (running mean)",
    "test_elbo": "test ELBO",
    "signal_to_noise": "gradient, signal over noise",
    "dead_latents": "dead latents",
}
"""What is drawn of a run's records, if they have it, with its caption."""
LATEST = 50
"""Records that the speed is taken from."""
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Progress:
    """What a run's folder says of it. `config`: its settings. `ended`: whether it has written its summary."""

    config: dict[str, Any]
    metrics: Metrics
    ended: bool

    @classmethod
    def of(cls, folder: Path) -> Progress:
        """Read the folder, which is left as it is. Raises `ConfigError` if no run has begun there."""
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder} holds no run (config.json): name the --out of `python -m models train`."
            ) from error
        metrics = Metrics(None)
        path = folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                metrics.records.append(json.loads(line))
            except ValueError:
                break  # a line that is just being written
        return cls(config, metrics, (folder / "summary.json").exists())

    @property
    def step(self) -> int:
        """Steps made by the last record."""
        return self.metrics.records[-1]["step"] if self.metrics.records else 0

    @property
    def steps_per_second(self) -> float:
        """By the last records; zero before there is one."""
        times = self.metrics.curve("ms_per_step")[1][-LATEST:]
        return 1000 / statistics.median(times) if times else 0.0

    @property
    def line(self) -> str:
        """How far the run is, in a line."""
        steps, speed = self.config["steps"], self.steps_per_second
        parts = [f"{self.config['program']} {self.config['estimator']}: step {self.step} of {steps}"]
        if speed:
            parts.append(f"{speed:.1f} steps a second")
            parts.append("ended" if self.ended else f"{timedelta(seconds=round((steps - self.step) / speed))} left")
        return ", ".join(parts)

    def drawn(self, width: int) -> Group:
        """The line, and below it each curve with its last value, for a terminal of so many columns."""
        table = Table.grid(padding=(0, 1))
        for name, caption in CURVES.items():
            steps, values = self.metrics.curve(name)
            if values:
                table.add_row(caption, curve_text(steps, values, max(10, width - 55)), f"{values[-1]:.5g}")
        return Group(Text(self.line), table)

    def picture(self, path: Path) -> None:
        """Write the curves into a picture."""
        there = [name for name in CURVES if self.metrics.curve(name)[1]]
        figure = Figure(figsize=(8, 1 + 2 * max(1, len(there))), layout="constrained")
        panels = figure.subplots(max(1, len(there)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, there, strict=False):
            axes.plot(*self.metrics.curve(name), color="#0072B2", linewidth=1.2)
            axes.set_ylabel(CURVES[name], fontsize=8)
            axes.grid(alpha=0.25)
        panels[-1].set_xlabel("training step")
        figure.suptitle(self.line, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def curve_text(steps: Sequence[int], values: Sequence[float], width: int) -> str:
    """A curve in one line of so many characters: means over equal stretches of steps, from the least to the largest.

    >>> curve_text([1, 2, 3, 4], [0.0, 1.0, 2.0, 3.0], 4)
    '▁▃▆█'
    """
    first, last = steps[0], steps[-1]
    width = min(width, len(values))
    stretches: list[list[float]] = [[] for _ in range(width)]
    for step, value in zip(steps, values, strict=True):
        place = (step - first) * width // (last - first + 1)
        stretches[place].append(value)
    means = [statistics.fmean(stretch) if stretch else None for stretch in stretches]
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if mean is None else BLOCKS[round((mean - low) * scale)] for mean in means)
