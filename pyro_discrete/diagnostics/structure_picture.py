"""A structure's marginals as a picture: a ranking's places by items, a tree's edges, a subset's items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.distributions.trees import Arborescence, SpanningTree
from pyro_discrete.errors import SettingError
from pyro_discrete.posterior.mixtures import marginals_of
from pyro_discrete.programs.sites import base_distribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["picture_structure"]


def picture_structure(structure: Any, *, names: Sequence[str] | None = None, path: str | Path | None = None) -> Figure:
    """The marginals of one structure: what is at each place, which edges there are, which items are chosen.

    A ranking is a heat map of places by items, a matching of rows by columns, a chain of links by states, a tree of
    parents by nodes (an undirected one: of its edges), each with its probability; a subset a bar for each item.

    - `structure`: a structure without batch dims, as it is or below `.mask`; of `DiscretePosterior.marginals()`, what
      it has for the site.
    - `names`: of the items, columns, states or nodes. `path`: where the picture is saved, too.

    Needs matplotlib (the extra "plots"). Raises `SettingError` for what is no structure, for batch dims, and for
    another number of names.

    >>> from pyro_discrete.distributions import PlackettLuce
    >>> figure = picture_structure(PlackettLuce(torch.tensor([0.0, 1.0, 2.0])), names=["rye", "oat", "pie"])
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('item', 'place')
    """
    from matplotlib.figure import Figure  # of the extra "plots"

    base = base_distribution(structure)
    kind = base if isinstance(base, Structure) else getattr(base, "structure", None)
    if kind is None:
        raise SettingError(f"picture_structure: {type(base).__name__} given, a structure or its marginals expected.")
    table = (marginals_of(base) if base is kind else base).probs.detach()
    if kind.batch_shape:
        raise SettingError(
            f"picture_structure: {type(kind).__name__} of batch shape {tuple(kind.batch_shape)} given, a single one "
            "expected: pick one."
        )
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    if kind.soft_value == "weights":
        _draw_bars(axes, kind, table, names)
    else:
        _draw_map(figure, axes, kind, table, names)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _draw_bars(axes: Any, kind: Structure, table: Tensor, names: Sequence[str] | None) -> None:
    (label,) = kind.value_dims
    numbers = np.arange(len(table))
    axes.bar(numbers, table.numpy(), color="#0072B2")
    axes.set(xlabel=label, ylabel="probability", ylim=(0, 1))
    axes.set_xticks(numbers, _labels(names, len(table)))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_map(figure: Any, axes: Any, kind: Structure, table: Tensor, names: Sequence[str] | None) -> None:
    """Rows by numbers `[rows, numbers]`; of a tree `[parent, node]`, the root's column with nothing in it."""
    (y_label,), x_label = kind.value_dims, kind.number_name
    if isinstance(kind, Arborescence):
        table = torch.cat([table.new_zeros(1, table.shape[1]), table]).mT
        x_label, y_label = y_label, x_label
    if isinstance(kind, SpanningTree):
        table, x_label, y_label = table + table.mT, "node", "node"
    columns = _labels(names, table.shape[1])
    image = axes.imshow(table.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xticks(np.arange(table.shape[1]), columns)
    rows = columns if isinstance(kind, Arborescence) else [str(i) for i in range(len(table))]
    axes.set_yticks(np.arange(len(table)), rows)
    if table.numel() <= 144:
        for row, column in np.ndindex(*table.shape):
            number = float(table[row, column])
            colour = "white" if number > 0.6 else "black"
            axes.text(column, row, f"{number:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="probability")


def _labels(names: Sequence[str] | None, number: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(number)]
    if len(names) != number:
        raise SettingError(f"picture_structure: {len(names)} names given, {number} expected.")
    return list(names)
