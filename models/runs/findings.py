"""What a run has found, in numbers: how it agrees with what is known, and with other ways to find it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.data.connectomes import Connectomes
from models.data.dataset import Dataset
from models.data.documents import NO_WORD, Documents
from models.data.graphs import Graphs
from models.data.rankings import Rankings
from models.data.sequences import PlantedMotifs
from models.data.tables import Tables, Variables
from models.programs.blocks import BlockModel
from models.programs.motif import MotifPlaces
from models.programs.program import LatentClasses, Program
from models.programs.structured.matching import MatchedNeurons
from models.programs.structured.rankings import ConsensusRanking
from models.programs.structured.structure import DirectedGraph
from models.programs.structured.subset import SubsetRegression
from models.programs.topics import CONCENTRATION, TopicModel
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
from models.runs.posterior import agreement, most_probable
from models.runs.rivals import (
    MotifFit,
    best_assignment,
    lasso_fit,
    match_by_assignment,
    match_by_faq,
    motif_by_em,
    plackett_luce_by_mm,
    spectral_groups,
    topics_by_gibbs,
    topics_by_variation,
)
from pyro_discrete import DiscretePosterior

__all__ = [
    "completed_shares",
    "exact_inclusion",
    "findings",
    "matching_chances",
    "pairs_in_order",
    "perplexity",
    "split_off",
]

MOST_VALUES = 5040
"""Of a latent structure that is summed over for an exact figure."""
DRAWS = 1000
"""Of the guide, over which predictions are averaged."""


def findings(program: Program, data: Dataset, test: Tensor) -> dict[str, float]:
    """The figures of a program's kind, of the test elements `test` `[m, ...]`; none of a program that seeks nothing."""
    with torch.no_grad():
        if isinstance(program, MotifPlaces) and isinstance(data, PlantedMotifs):
            return _of_a_motif(program, data, test)
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
        if isinstance(program, BlockModel) and isinstance(data, Graphs):
            return _of_blocks(program, data)
        if isinstance(program, TopicModel) and isinstance(data, Documents):
            return _of_topics(program, data)
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


def _of_a_motif(program: MotifPlaces, data: PlantedMotifs, test: Tensor) -> dict[str, float]:
    """Places up to one base, of those sequences where the sites' own frequencies find them; profiles by total variation
    from these, a mean over the motif's columns."""
    x, known, places = test.numpy(), data.profile.double().numpy(), data.labels.numpy()
    one_more = (known * len(test) + 1) / (len(test) + len(known[0]))
    possible = _near(MotifFit(one_more, program.background.softmax(-1).cpu().double().numpy()).log_ratios(x), places)
    found = np.abs(most_probable(program, test).cpu().numpy() - places) <= 1
    rival = motif_by_em(data.train.numpy(), data.width)
    by_em = _near(rival.log_ratios(x), places)
    return {
        "test_log_likelihood": log_likelihood(program, test),
        "em_log_likelihood": rival.log_likelihood(x),
        "possible_places": float(possible.mean()),
        "places_found": float(found[possible].mean()),
        "em_places_found": float(by_em[possible].mean()),
        "profile_distance": _columns_apart(program.profile.softmax(-1).cpu().double().numpy(), known),
        "em_profile_distance": _columns_apart(rival.profile, known),
    }


def _near(scores: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the best of the places is at most one base away."""
    return np.abs(scores.argmax(1) - places) <= 1


def _columns_apart(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Total variation, a mean over columns."""
    return float(np.abs(first - second).sum(1).mean() / 2)


def _of_blocks(program: BlockModel, data: Graphs) -> dict[str, float]:
    """Groups beside those that are known, and beside as many of spectral clustering."""
    groups = program.groups.cpu().numpy()
    found = {"groups_used": float(len(np.unique(groups)))}
    if data.labels is None:
        return found
    labels = data.labels[0].numpy()
    by_spectrum = spectral_groups(data.train[0], len(program.shares))
    for name, one in (("", groups), ("spectral_", by_spectrum)):
        found[f"{name}adjusted_rand_index"] = float(adjusted_rand_score(labels, one))
        found[f"{name}split_off"] = float(split_off(labels, one))
    return found


def split_off(labels: NDArray[np.int64], found: NDArray[np.int64]) -> int:
    """How many elements are not where they belong, if groups are matched to labels one to one, as well as can be.

    >>> split_off(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 3]))
    1
    """
    counts = (np.unique(labels)[:, None, None] == labels) & (np.unique(found)[:, None] == found)
    matched = counts.sum(-1)
    return len(labels) - int(matched[linear_sum_assignment(matched, maximize=True)].sum())


def _of_topics(program: TopicModel, data: Documents) -> dict[str, float]:
    """Perplexity of the second halves of test documents, whose shares are found from the first."""
    words = len(data.vocabulary)
    train, seen, rest = (_counted(split, words) for split in (data.train, *data.halves))
    topics = program.log_topics.exp().cpu().double().numpy()
    guided = program.concentrations(data.halves[0].to(program.words.device)).cpu().double().numpy()
    found = {
        "perplexity": perplexity(completed_shares(seen, topics), topics, rest),
        "guide_perplexity": perplexity(guided / guided.sum(1, keepdims=True), topics, rest),
    }
    rivals = {"lda": topics_by_gibbs, "scikit_learn": topics_by_variation}
    for name, fit in ((name, fit(train, seen, len(topics))) for name, fit in rivals.items()):
        if fit is not None:
            found[f"{name}_perplexity"] = perplexity(fit.shares, fit.topics, rest)
    return found


def completed_shares(seen: NDArray[np.int64], topics: NDArray[np.float64], iterations: int = 50) -> NDArray[np.float64]:
    """Shares `[m, topics]` of documents with the counts `seen` `[m, words]`, by a fixed point of expected counts.

    Source: Buntine (2009), Estimating likelihoods for topic models, section 4; the package lda completes in this way.
    """
    shares = np.full((len(seen), len(topics)), 1 / len(topics))
    for _ in range(iterations):
        counts = CONCENTRATION + shares * ((seen / (shares @ topics)) @ topics.T)
        shares = counts / counts.sum(1, keepdims=True)
    return shares


def perplexity(shares: NDArray[np.float64], topics: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Exponential of minus the mean log-probability of the words counted `[m, words]`."""
    return float(np.exp(-(counts * np.log(shares @ topics)).sum() / counts.sum()))


def _counted(documents: Tensor, words: int) -> NDArray[np.int64]:
    """How often each word stands in each document, `[n, words]`."""
    there = documents != NO_WORD
    counts = torch.zeros(len(documents), words, dtype=torch.long)
    return counts.scatter_add_(1, documents.clamp(min=0), there.long()).numpy()
