"""What a run has found, in numbers: how it agrees with what is known, and with other ways to find it."""

from __future__ import annotations

import math

import torch
from pyro import poutine
from torch import Tensor

from models.data.connectomes import Connectomes
from models.data.dataset import Dataset
from models.data.rankings import Rankings
from models.data.tables import Tables, Variables
from models.programs.matching import MatchedNeurons
from models.programs.program import LatentClasses, Program
from models.programs.rankings import ConsensusRanking
from models.programs.structure import DirectedGraph
from models.programs.subset import SubsetRegression
from models.runs.evaluation import EVALUATION_SEED, isolated, log_likelihood
from models.runs.graphs import (
    SMALL,
    area_under_curve,
    draw_graphs,
    exact_posterior,
    guide_posterior,
    hamming_distance,
    held_out,
)
from models.runs.posterior import agreement
from models.runs.rivals import best_assignment, lasso_fit, match_by_assignment, match_by_faq, plackett_luce_by_mm
from pyro_discrete import DiscretePosterior

__all__ = ["exact_inclusion", "findings", "matching_chances", "pairs_in_order"]

MOST_VALUES = 5040
"""Of a latent structure that is summed over for an exact figure."""
DRAWS = 1000
"""Of the guide, over which predictions are averaged."""


def findings(program: Program, data: Dataset, test: Tensor) -> dict[str, float]:
    """The figures of a program's kind, of the test elements `test` `[m, ...]`; none of a program that seeks nothing."""
    with torch.no_grad():
        if isinstance(program, LatentClasses):
            return {"test_log_likelihood": log_likelihood(program, test), **agreement(program, data)}
        if isinstance(program, ConsensusRanking) and isinstance(data, Rankings):
            return _of_rankings(program, data, test)
        if isinstance(program, SubsetRegression) and isinstance(data, Tables):
            return _of_a_subset(program, data)
        if isinstance(program, MatchedNeurons) and isinstance(data, Connectomes):
            return _of_a_matching(program, data)
        if isinstance(program, DirectedGraph) and isinstance(data, Variables):
            return _of_a_graph(program, data)
    return {}


def pairs_in_order(scores: Tensor, standing: Tensor) -> float:
    """The share of pairs in the order of their standing, a tie of scores as one half; NaN if that orders no pair.

    - `scores` `[n, candidates]`: the larger, the better. `standing`: the lower, the better, -1 for unknown.

    >>> pairs_in_order(torch.tensor([[3.0, 2.0, 2.5, 9.0]]), torch.tensor([[0, 1, 2, -1]]))
    0.6666666666666666
    """
    above = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    known = (standing >= 0).unsqueeze(-1) & (standing >= 0).unsqueeze(-2)
    before = known & (standing.unsqueeze(-1) < standing.unsqueeze(-2))
    return float(((above.sign() + 1) / 2)[before].double().mean())


def exact_inclusion(program: SubsetRegression, data: Tables) -> Tensor | None:
    """How probable each feature is given the training table, `[features]`; None if there are too many subsets."""
    if program.chosen.cardinality > MOST_VALUES:
        return None
    with isolated(EVALUATION_SEED), torch.no_grad():
        device = program.weights.device
        return DiscretePosterior(program.model).marginals(data.train.to(device))["z"].mean.reshape(-1).cpu()


def matching_chances(program: MatchedNeurons) -> Tensor:
    """How probable the guide holds each match, `[neuron of the second animal, neuron of the first]`, by draws."""
    with isolated(EVALUATION_SEED), torch.no_grad():
        law = program.matching
        return law.vertex(law.sample((DRAWS,))).mean(0).cpu()


def _of_rankings(program: ConsensusRanking, data: Rankings, test: Tensor) -> dict[str, float]:
    values = math.factorial(data.test.shape[-1])
    found = {"test_log_likelihood": log_likelihood(program, test, values)} if values <= MOST_VALUES else {}
    if data.standing is not None:
        found["pairs_in_order"] = pairs_in_order(program.logits(test.to(program.strength.device)).cpu(), data.standing)
        found["mm_pairs_in_order"] = pairs_in_order(plackett_luce_by_mm(data.test), data.standing)
    return found


def _of_a_subset(program: SubsetRegression, data: Tables) -> dict[str, float]:
    score = "accuracy" if data.classes else "r_squared"
    with isolated(EVALUATION_SEED):
        y, x = data.test[0, :, 0], data.test[0, :, 1:]
        linear = program.linear(x.to(program.weights.device), program.chosen.sample((DRAWS,))).cpu()
    if data.classes:
        own = float(((linear.sigmoid().mean(0) > 0.5) == (y == 1)).double().mean())
    else:
        own = 1 - float((linear.mean(0) - y).square().sum() / (y - y.mean()).square().sum())
    rival = lasso_fit(data, program.k)
    found = {f"test_{score}": own, f"lasso_{score}": rival.score}
    if data.truth:
        best = set(program.chosen.mode.nonzero().flatten().tolist())
        found["right_features"] = len(best & set(data.truth)) / len(data.truth)
        found["lasso_right_features"] = len(set(rival.chosen.tolist()) & set(data.truth)) / len(data.truth)
    exact = exact_inclusion(program, data)
    if exact is not None:
        found["inclusion_error"] = float((program.chosen.marginals().detach().cpu() - exact).abs().max())
    return found


def _of_a_matching(program: MatchedNeurons, data: Connectomes) -> dict[str, float]:
    """Shares of neurons that are matched rightly, and what the bound would be if the guide knew the truth."""
    truth = data.truth
    if truth is None:
        return {}
    found = best_assignment(matching_chances(program))
    shares = {"test_matched": found == truth}
    if data.names:
        shares["test_matched_or_twin"] = (found == truth) | (found == data.twin(truth))
    shares["assignment_matched"] = match_by_assignment(data) == truth
    shares["faq_matched"] = match_by_faq(data) == truth
    device = program.slope.device
    with isolated(EVALUATION_SEED):
        given = poutine.condition(program.model, {"z": truth.to(device).unsqueeze(0)})
        known = float(poutine.trace(given).get_trace(data.test.to(device)).log_prob_sum())
    return {**{name: float(right.double().mean()) for name, right in shares.items()}, "elbo_of_truth": known}


def _of_a_graph(program: DirectedGraph, data: Variables) -> dict[str, float]:
    graphs, chances = draw_graphs(program, data)
    found = {"test_row_log_likelihood": held_out(program, data, graphs), "edges": float(chances.sum())}
    if data.edges:
        found["auroc"] = area_under_curve(chances, data.graph)
        found["undirected_auroc"] = area_under_curve(chances, data.graph, directed=False)
        found["hamming_distance"] = hamming_distance(chances, data.graph)
    if program.variables <= SMALL:
        table = data.train[0].to(program.edge_logit.device)
        apart = guide_posterior(program, table) - exact_posterior(program, table)
        found["total_variation"] = float(apart.abs().sum() / 2)
    return found
