"""Pictures of what a program of a structured latent has found: an order, features, a matching, a graph's edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from models.data.connectomes import Connectomes
from models.data.rankings import ABSENT, Rankings
from models.data.tables import Tables, Variables
from models.programs.structured.matching import MatchedNeurons
from models.programs.structured.rankings import ConsensusRanking
from models.programs.structured.subset import SubsetRegression
from models.runs.evaluation import EVALUATION_SEED, isolated
from models.runs.findings import exact_inclusion, matching_chances
from models.runs.rivals import best_assignment, lasso_fit, match_by_faq, plackett_luce_by_mm
from pyro_discrete.distributions import PlackettLuce

__all__ = ["draw_graph", "draw_matching", "draw_season", "draw_subset"]

DRAWS = 2000


def draw_season(axes: Axes, program: ConsensusRanking, data: Rankings) -> None:
    """How probable each place is for the candidates of the last test season, the best on top, beside MM's order."""
    season = data.test[-1:]
    there = (season[0] != ABSENT).any(0)
    logits = program.logits(season.to(program.strength.device))[0].cpu()
    with isolated(EVALUATION_SEED):
        orders = PlackettLuce(logits).sample((DRAWS,))
    best = [i for i in logits.argsort(descending=True).tolist() if there[i]]
    chances = torch.nn.functional.one_hot(orders, len(logits)).double().mean(0)[: len(best), best].T
    by_mm = plackett_luce_by_mm(season)[0]
    names = data.candidates[-1] if data.candidates else [f"{i}" for i in range(len(logits))]
    mm_places = {i: 1 + int((by_mm[best] > by_mm[i]).sum()) for i in best}
    axes.imshow(chances.numpy(), cmap="Blues", vmin=0, aspect="auto")
    for (row, column), chance in np.ndenumerate(chances.numpy()):
        ink = "white" if chance > 0.6 * float(chances.max()) else "black"
        axes.text(column, row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(best)), [str(place + 1) for place in range(len(best))], fontsize=8)
    axes.set_yticks(range(len(best)), [f"{names[i]} (MM: {mm_places[i]})" for i in best], fontsize=8)
    axes.set_xlabel("place in the latent order", fontsize=9)
    axes.set_title(
        "the guide's belief on the last season, in percent;\nin brackets the place by Hunter's MM fit", fontsize=9
    )


def draw_subset(axes: Axes, program: SubsetRegression, data: Tables, colours: Sequence[str]) -> None:
    """How probable it is that each feature is read, by the guide and (if small) exactly, beside the lasso's choice."""
    chances = program.chosen.marginals().detach().cpu()
    order = chances.argsort(descending=True).tolist()
    rows = np.arange(len(order))
    axes.barh(rows, chances[order].numpy(), color=colours[0], height=0.6, label="guide")
    exact = exact_inclusion(program, data)
    if exact is not None:
        axes.plot(exact[order].numpy(), rows, "o", color=colours[1], markersize=6, label="exact, at these weights")
    chosen = [row for row, feature in enumerate(order) if feature in set(lasso_fit(data, program.k).chosen.tolist())]
    axes.plot(np.full(len(chosen), 1.05), chosen, "*", color=colours[2], markersize=8, label="the lasso's choice")
    axes.set_yticks(rows, [f"{data.features[j]}{' (true)' * (j in data.truth)}" for j in order], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("probability that the feature is read", fontsize=9)
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"which {program.k} of {len(order)} features", fontsize=9)


def draw_matching(axes: Axes, program: MatchedNeurons, data: Connectomes) -> None:
    """How probable each match is by the guide, the true ones (if known) on the diagonal, beside other ways' shares."""
    chances = matching_chances(program)
    others = len(chances)
    names = list(data.names[data.known :]) or [str(i) for i in range(others)]
    title = "the guide's belief: which neuron is which"
    if data.truth is not None:
        truth = data.truth
        chances = chances[truth.argsort()]
        ways = {"guide": best_assignment(matching_chances(program)), "FAQ": match_by_faq(data)}
        shares = ", ".join(f"{name} {float((found == truth).double().mean()):.0%}" for name, found in ways.items())
        title += f"\n(right ones are on the diagonal: {shares})"
    picture = axes.imshow(chances.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.046)
    bar.set_label("probability", fontsize=8)
    size = min(8.0, 200 / others)
    axes.set_xticks(range(others), names, fontsize=size, rotation=90)
    rows = names if data.truth is not None else [str(i) for i in range(others)]
    axes.set_yticks(range(others), rows, fontsize=size)
    axes.set_xlabel("neuron of the first animal", fontsize=9)
    axes.set_ylabel("neuron of the second animal" + ", by its true name" * (data.truth is not None), fontsize=9)
    axes.set_title(title, fontsize=9)


def draw_graph(axes: Axes, chances: Tensor, data: Variables, colour: str) -> None:
    """How probable it is that the variable of a row acts on that of a column, in percent; known edges in frames.

    `chances` `[variables, variables]`: of i acting on j.
    """
    n, shown = len(chances), chances.numpy()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    for (row, column), chance in np.ndenumerate(shown):
        if row != column and chance >= 0.005:
            ink = "white" if chance > 0.6 else "black"
            size = 7 if n <= 12 else 5
            axes.text(column, row, f"{100 * chance:.0f}", ha="center", va="center", fontsize=size, color=ink)
    for cause, effect in data.edges:
        frame = Rectangle((effect - 0.46, cause - 0.46), 0.92, 0.92, fill=False, edgecolor=colour, linewidth=1.5)
        axes.add_patch(frame)
    axes.set_xticks(range(n), data.names, fontsize=7, rotation=90)
    axes.set_yticks(range(n), data.names, fontsize=7)
    axes.set_xlabel("effect", fontsize=9)
    axes.set_ylabel("cause", fontsize=9)
    known = ";\nframed: the edges that are known" if data.edges else ""
    axes.set_title(f"probability of an edge from row to column, in percent{known}", fontsize=9)
