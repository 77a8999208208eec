"""What a comparison of estimators shows: the numbers as a dataset, a table, a plot, and one line of advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_discrete.tables.html_table import html_table

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = ["EstimatorComparison"]

SEEN = 10.0
"""A `bias_z` beyond it is called seen. In one dim that is a |z| of 3.9 (odds of 1 in 10,000)."""
ROUNDING = 1e-12
"""A variance of so many squared gradient norms is the rounding of an exact sum."""
COLOURS = {"unbiased": "#0072B2", "biased": "#D55E00"}
"""Of Okabe and Ito's palette, distinct for colour-blind readers."""


@dataclass(frozen=True)
class EstimatorComparison:
    """Bias, variance and cost of estimators at one point; `comparison["variance"]` reads the dataset.

    `dataset` has the dims `estimator` and `parameter` (names of the pair's parameters), and the variables

    - `variance`: of one estimate, summed over a parameter's elements, (objective / parameter)².
    - `bias`: norm of the mean estimate less the reference; `bias_error`: the size that noise alone would give it;
      `bias_z`: the excess of the square of the former over that of the latter, in its standard deviations.
    - `gradient_norm`: of the reference; `signal_to_noise`: that over the root of the variance.
    - `seconds`: of a step with its backward pass, the least of several; `evaluations`: of the model, rows x particles.
    - `variance_x_time`, `variance_x_evaluations`: variance over all parameters times these; averaging n steps divides
      the variance by n, so the one with the least variance x time learns most in a second.
    - `unbiased`: declared so; `draws`: estimates made.

    `left_out`: label -> why it does not serve the pair. `code`: label -> the line that makes the ELBO.
    """

    dataset: xr.Dataset
    left_out: Mapping[str, str]
    code: Mapping[str, str]

    def __getitem__(self, name: str) -> xr.DataArray:
        return self.dataset[name]

    @property
    def reference(self) -> str:
        """What the bias was measured against: "exact", or a long run of the estimator that it names."""
        return self.dataset.attrs["reference"]

    @property
    def bias_seen(self) -> xr.DataArray:
        """Whether some parameter's bias is more than noise explains (`bias_z` beyond 10); dim `estimator`."""
        return (self.dataset["bias_z"] > SEEN).any("parameter")

    @property
    def best(self) -> str:
        """The label with the least variance x time among those declared unbiased in which no bias was seen."""
        eligible = self.dataset["unbiased"] & ~self.bias_seen
        candidates = self.dataset if not bool(eligible.any()) else self.dataset.sel(estimator=eligible)
        ranked = candidates.sortby(["variance_x_time", "seconds"])
        return str(ranked["estimator"].values[0])

    @property
    def recommendation(self) -> str:
        """One line of code: the ELBO that this comparison speaks for."""
        return self.code[self.best]

    def table(self, per: int = 1, unit: str = "objective") -> Table:
        """The comparison as a rich table, least variance x time first.

        - `per`: a number that the objective is divided by first, such as that of the data. `unit`: what it then is in,
          such as "nats per image".
        """
        from rich import box  # here, as it is slow to import
        from rich.table import Table

        heads, rows, (title, caption) = self._cells(per, unit)
        table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
        table.add_column(heads[0], overflow="fold")
        for heading in heads[1:]:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == self.best else None)
        return table

    def _cells(self, per: int, unit: str) -> tuple[Sequence[str], list[list[str]], tuple[str, str]]:
        """Headings, rows, and what stands above and below a table."""
        heads = (
            *("estimator", "draws", "evaluations", "ms a\nstep", "variance", "signal /\nnoise", "bias /\ngradient"),
            *("noise\nalone", "variance\nx ms"),
        )
        seen, rows = self.bias_seen, []
        for label in self.dataset.sortby("variance_x_time")["estimator"].values:
            one = self.dataset.sel(estimator=label)
            norm = float((one["gradient_norm"] ** 2).sum()) ** 0.5 / per
            variance = float(one["variance"].sum()) / per**2
            bias = float((one["bias"] ** 2).sum()) ** 0.5 / per
            noise = float((one["bias_error"] ** 2).sum()) ** 0.5 / per
            cells = [
                str(label),
                str(int(one["draws"])),
                str(int(one["evaluations"])),
                f"{1000 * float(one['seconds']):.2f}",
                _short(variance),
                "exact" if variance <= ROUNDING * norm**2 else f"{norm / variance**0.5:.2g}",
                f"{bias / (norm or 1):.2g}{' (seen)' if bool(seen.sel(estimator=label)) else ''}",
                f"{noise / (norm or 1):.2g}",
                _short(1000 * float(one["variance_x_time"]) / per**2),
            ]
            rows.append(cells)
        title = f"Gradient estimators on this pair; reference: {self.reference}"
        caption = f"Variance summed over all parameters, ({unit})². Recommended: {self.recommendation}"
        return heads, rows, (title, caption)

    @property
    def _absent(self) -> list[str]:
        return [f"left out (`left_out` says why): {', '.join(self.left_out)}"] if self.left_out else []

    def __str__(self) -> str:
        from rich.console import Console

        out = StringIO()
        console = Console(file=out, width=120, force_jupyter=False, force_terminal=False)
        console.print(self.table())
        for line in self._absent:
            console.print(line, highlight=False, markup=False)
        return out.getvalue()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads, rows, (title, caption) = self._cells(1, "objective")
        bold = [row[0] == self.best for row in rows]
        return html_table(heads, rows, title=title, notes=[caption, *self._absent], bold=bold)

    def plot(self, path: str | Path | None = None, per: int = 1, unit: str = "objective") -> Figure:
        """Variance x time of every estimator, and its bias; written to `path` if given (extra `plots`).

        `per` and `unit` as in `table`.
        """
        from matplotlib.figure import Figure

        ordered = self.dataset.sortby("variance_x_time", ascending=False)
        labels = [str(label) for label in ordered["estimator"].values]
        seen = self.bias_seen.sel(estimator=labels).values
        hollow = ~seen & ~ordered["unbiased"].values
        colours = [COLOURS["biased" if biased else "unbiased"] for biased in seen]
        figure = Figure(figsize=(10, 2.0 + 0.34 * len(labels)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        cost = 1000 * ordered["variance_x_time"].values / per**2
        norm = float((ordered["gradient_norm"] ** 2).sum()) ** 0.5 or 1.0
        _dots(left, cost, colours, hollow, exact=ordered["variance"].sum("parameter").values <= ROUNDING * norm**2)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel(f"gradient variance x milliseconds a step,\n({unit})² x ms (left is better)", fontsize=9)
        bias = ((ordered["bias"] ** 2).sum("parameter") ** 0.5).values / norm
        noise = ((ordered["bias_error"] ** 2).sum("parameter") ** 0.5).values / norm
        _dots(right, bias, colours, hollow, exact=bias <= 1e-6)
        right.scatter(noise, range(len(labels)), marker="|", s=80, color="#666666")
        right.set_xlabel(
            "distance of the mean from the reference\n/ gradient's norm (grey bar: what noise alone gives)", fontsize=9
        )
        right.plot([], [], "o", color=COLOURS["unbiased"], label="no bias seen")
        right.plot(
            [], [], "o", color=COLOURS["unbiased"], markerfacecolor="white", label="none seen, but declared biased"
        )
        right.plot([], [], "o", color=COLOURS["biased"], label="bias seen")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"Gradient estimators on one pair; reference: {self.reference}", fontsize=11)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def _dots(axes: Any, values: Any, colours: list[str], hollow: Any, exact: Any) -> None:
    """A dot for each value on a log axis; one that is zero stands at the left end, and says so."""
    positive = [float(v) for v, zero in zip(values, exact, strict=True) if not zero] or [1.0]
    floor = min(positive) / 10
    for height, (value, zero) in enumerate(zip(values, exact, strict=True)):
        face = "white" if hollow[height] else colours[height]
        axes.plot(floor if zero else value, height, "o", color=colours[height], markerfacecolor=face)
        if zero:
            axes.annotate("0", (floor, height), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.grid(axis="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
