"""What runs are judged beside: other ways to the same end, of one line of literature each."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, quadratic_assignment
from torch import Tensor

from models.data.connectomes import Connectomes
from models.data.rankings import ABSENT
from models.data.sequences import BASES
from models.data.tables import Tables

__all__ = [
    "LinearFit",
    "MotifFit",
    "best_assignment",
    "lasso_fit",
    "match_by_assignment",
    "match_by_faq",
    "motif_by_em",
    "plackett_luce_by_mm",
    "spectral_groups",
    "topics_by_gibbs",
    "topics_by_variation",
]

MM_ITERATIONS = 200
GIBBS_ITERATIONS = 2000
"""The package lda's own default."""
EM_STARTS, EM_ITERATIONS, EM_TOLERANCE = 100, 200, 1e-5
EM_FLOOR = 1e-3
"""A count that every base has at each place of a motif: no probability becomes zero."""


def plackett_luce_by_mm(places: Tensor, iterations: int = MM_ITERATIONS) -> Tensor:
    r"""Each season's strengths by maximum likelihood, `[n, candidates]`, summing to one: one group, no latent order.

    .. math:: \gamma_i \leftarrow w_i \Big/ \sum_{\text{stages with } i} \Big(\sum_{j \text{ left}} \gamma_j\Big)^{-1}

    - `places` `[n, challenges, candidates]`, `ABSENT` for who takes no part. The last place of a challenge is no stage;
      w counts the challenges in which a candidate is placed above the last. Who never is has strength zero.

    Source: Hunter (2004), MM algorithms for generalized Bradley-Terry models, section 5.

    >>> plackett_luce_by_mm(torch.tensor([[[0, 1], [0, 1], [1, 0]]]))
    tensor([[0.6667, 0.3333]], dtype=torch.float64)
    """
    n = places.shape[-1]
    there = places != ABSENT
    last = there.sum(-1, keepdim=True) - 1
    order = torch.where(there, places, n).argsort(-1)  # candidates by place, the absent ones last
    stage = torch.arange(n) < last
    wins = (there & (places < last)).sum(1).double()
    strengths = there.any(1).double()
    for _ in range(iterations):
        by_place = torch.where(there, strengths.unsqueeze(1), 0.0).gather(-1, order)
        left = by_place.flip(-1).cumsum(-1).flip(-1)
        rates = torch.where(stage, 1 / left.clamp(min=torch.finfo(left.dtype).tiny), 0.0).cumsum(-1)
        rates = torch.where(there, rates.gather(-1, places.clamp(min=0)), 0.0).sum(1)
        strengths = torch.where(wins > 0, wins / rates.clamp(min=torch.finfo(rates.dtype).tiny), 0.0)
        strengths = strengths / strengths.sum(-1, keepdim=True)
    return strengths


class LinearFit:
    """A regression (or logistic regression, of classes) without a penalty on some of a table's features.

    - `chosen`: the features' numbers. `score`: R squared of the test rows, or their share of right classes.
    """

    def __init__(self, data: Tables, chosen: NDArray[np.int64]) -> None:
        from sklearn.linear_model import LinearRegression, LogisticRegression

        self.chosen = chosen
        (y, x), (test_y, test_x) = ((t[0, :, 0].numpy(), t[0, :, 1:].numpy()) for t in (data.train, data.test))
        fit: Any = LogisticRegression(C=UNPENALISED, max_iter=5000) if data.classes else LinearRegression()
        self.score = float(fit.fit(x[:, chosen], y).score(test_x[:, chosen], test_y))


UNPENALISED = 1e4


def lasso_fit(data: Tables, k: int) -> LinearFit:
    """The features of the lasso's path where it has most of them, k at most, with their weights fitted anew.

    Classes enter the path as the numbers 0 and 1.

    Source: Tibshirani (1996), Regression shrinkage and selection via the lasso; weights anew: Meinshausen (2007),
    Relaxed lasso.
    """
    from sklearn.linear_model import lasso_path

    y, x = data.train[0, :, 0].double().numpy(), data.train[0, :, 1:].double().numpy()
    x, y = x - x.mean(0), y - y.mean()
    first = np.abs(x.T @ y).max() / len(y)  # above it no feature has a weight
    found: Any = lasso_path(x, y, alphas=np.geomspace(first, 1e-3 * first, 400))
    supports = [np.flatnonzero(weights) for weights in found[1].T]
    return LinearFit(data, max((s for s in supports if len(s) <= k), key=len))


FAQ_STARTS, FAQ_ITERATIONS = 20, 100


def best_assignment(scores: Tensor) -> Tensor:
    """The column of each row `[n]` such that all columns differ and the sum of `scores` `[n, n]` is largest.

    >>> best_assignment(torch.tensor([[3.0, 2.0], [2.0, 0.0]]))
    tensor([1, 0])
    """
    return torch.as_tensor(linear_sum_assignment(scores.double().numpy(), maximize=True)[1])


def match_by_assignment(data: Connectomes) -> Tensor:
    """Neurons by contacts alone, `[n - known]` of the first animal's: those of alike contacts with known neurons.

    The smallest sum of squared differences of log(1 + contacts); where no neuron is known, of these summed over all.

    Source: Kuhn (1955), The Hungarian method for the assignment problem; by SciPy's `linear_sum_assignment`.
    """
    first, second = (_profiles(animal, data.known) for animal in data.test[0].double().log1p())
    return best_assignment(-torch.cdist(second, first).square())


def _profiles(contacts: Tensor, known: int) -> Tensor:
    """`[n - known, features]`, of contacts `[kinds, n, n]`."""
    if known:
        to, by = contacts[:, known:, :known], contacts[:, :known, known:].mT
    else:
        to, by = contacts.sum(-1, keepdim=True), contacts.sum(-2).unsqueeze(-1)
    return torch.cat([*to, *by], -1)


def match_by_faq(data: Connectomes) -> Tensor:
    """Neurons by the matching that aligns log(1 + contacts) best, `[n - known]`: the best of 20 runs, by that sum.

    The first run starts in the middle, the others at random; kinds of contacts are added up.

    Source: Vogelstein et al. (2015), Fast approximate quadratic programming for graph matching, with known neurons as
    in Fishkind et al. (2019); by SciPy's `quadratic_assignment`.
    """
    first, second = data.test[0].double().log1p().sum(1).numpy()
    options: dict[str, Any] = {"maximize": True, "maxiter": FAQ_ITERATIONS}
    if data.known:
        options["partial_match"] = np.repeat(np.arange(data.known), 2).reshape(-1, 2)
    generator = np.random.default_rng(0)
    starts = ["barycenter", *["randomized"] * (FAQ_STARTS - 1)]
    runs = [quadratic_assignment(second, first, options={**options, "P0": start, "rng": generator}) for start in starts]
    best: Any = max(runs, key=lambda run: run.fun)
    return torch.as_tensor(best.col_ind[data.known :] - data.known)


@dataclass(frozen=True)
class MotifFit:
    """A profile `[width, bases]` and background `[bases]`, probabilities."""

    profile: NDArray[np.float64]
    background: NDArray[np.float64]

    def log_ratios(self, x: NDArray[np.int64]) -> NDArray[np.float64]:
        """How much more probable a motif at each place makes each row of `x` `[n, length]`: `[n, places]`."""
        width, length = len(self.profile), x.shape[1]
        columns = np.log(self.profile / self.background)
        return sum(columns[j][x[:, j : length - width + 1 + j]] for j in range(width))  # type: ignore[return-value]

    def log_likelihood(self, x: NDArray[np.int64]) -> float:
        """Mean over the rows of `x`, in nats."""
        ratios = self.log_ratios(x)
        return float((np.logaddexp.reduce(ratios, 1) - np.log(ratios.shape[1])).mean() + self._around(x))

    def _around(self, x: NDArray[np.int64]) -> float:
        return float(np.log(self.background)[x].sum(1).mean())


def motif_by_em(x: NDArray[np.int64], width: int, seed: int = 0, starts: int = EM_STARTS) -> MotifFit:
    """One motif in each row of bases `x` `[n, length]` by EM, from windows of the data; the best of several runs.

    Source: Lawrence and Reilly (1990), An expectation maximization algorithm for the identification and
    characterization of common sites in unaligned biopolymer sequences.
    """
    generator = np.random.default_rng(seed)
    n, length = x.shape
    counts = np.bincount(x.ravel(), minlength=len(BASES)).astype(float)
    fits = []
    for _ in range(starts):
        row, place = generator.integers(n), generator.integers(length - width + 1)
        window = np.eye(len(BASES))[x[row, place : place + width]]
        fit, last = MotifFit(0.5 * window + 0.5 * counts / counts.sum(), counts / counts.sum()), -np.inf
        for _ in range(EM_ITERATIONS):
            ratios = fit.log_ratios(x)
            chances = np.exp(ratios - np.logaddexp.reduce(ratios, 1)[:, None])
            profile = np.full((width, len(BASES)), EM_FLOOR)
            for j in range(width):
                profile[j] += np.bincount(
                    x[:, j : length - width + 1 + j].ravel(), weights=chances.ravel(), minlength=len(BASES)
                )
            around = counts - profile.sum(0) + width * EM_FLOOR
            fit = MotifFit(profile / profile.sum(1, keepdims=True), around / around.sum())
            now = fit.log_likelihood(x)
            if now - last < EM_TOLERANCE:
                break
            last = now
        fits.append(fit)
    return max(fits, key=lambda fit: fit.log_likelihood(x))


def spectral_groups(edges: Tensor, number: int, seed: int = 0) -> NDArray[np.int64]:
    """Groups of the nodes of a graph `[nodes, nodes]` by scikit-learn's spectral clustering, edges without direction.

    Source: von Luxburg (2007), A tutorial on spectral clustering.
    """
    from sklearn.cluster import SpectralClustering

    joined = ((edges + edges.mT) > 0).double().numpy()
    found: Any = SpectralClustering(number, affinity="precomputed", random_state=seed).fit(joined)
    return found.labels_


@dataclass(frozen=True)
class TopicFit:
    """Topics `[topics, words]` and the shares of documents that were half seen, `[m, topics]`, probabilities."""

    topics: NDArray[np.float64]
    shares: NDArray[np.float64]


def topics_by_gibbs(
    train: NDArray[np.int64], seen: NDArray[np.int64], number: int, iterations: int = GIBBS_ITERATIONS, seed: int = 0
) -> TopicFit | None:
    """Latent Dirichlet allocation by collapsed Gibbs sampling, of the package lda with its priors; None without it.

    - `train` `[n, words]`, `seen` `[m, words]`: counts.

    Source: Griffiths and Steyvers (2004), Finding scientific topics.
    """
    if find_spec("lda") is None:
        return None
    lda: Any = import_module("lda")
    logging.getLogger("lda").setLevel(logging.ERROR)
    fit = lda.LDA(number, n_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(train)
        return TopicFit(fit.topic_word_, fit.transform(seen))


def topics_by_variation(
    train: NDArray[np.int64], seen: NDArray[np.int64], number: int, iterations: int = 50, seed: int = 0
) -> TopicFit:
    """The same by variational Bayes, of scikit-learn with its priors.

    Source: Blei, Ng and Jordan (2003), Latent Dirichlet allocation.
    """
    from sklearn.decomposition import LatentDirichletAllocation

    fit: Any = LatentDirichletAllocation(number, max_iter=iterations, random_state=seed).fit(train)
    return TopicFit(fit.components_ / fit.components_.sum(1, keepdims=True), fit.transform(seen))
