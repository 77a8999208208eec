"""What a graph that was found is worth: its edges against known ones, a small one's exact posterior, held-out rows."""

from __future__ import annotations

import itertools
import math

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.data.tables import Variables
from models.programs.structured.structure import DirectedGraph
from models.runs.evaluation import EVALUATION_SEED, isolated
from pyro_discrete.distributions import precedence

__all__ = [
    "SMALL",
    "area_under_curve",
    "draw_graphs",
    "exact_posterior",
    "guide_posterior",
    "hamming_distance",
    "held_out",
    "small_graphs",
]

SMALL = 4
"""Variables up to which all graphs (543 of 4) are gone through."""
DRAWS, AT_ONCE = 1000, 100


def draw_graphs(program: DirectedGraph, data: Variables, draws: int = DRAWS) -> tuple[Tensor, Tensor]:
    """Graphs of the guide given the training table, `[draws, variables, variables]`: whether i acts on j, at `[i, j]`.

    And how probable each edge is, `[variables, variables]`.
    """
    table = data.train[0].to(program.edge_logit.device)
    with isolated(EVALUATION_SEED), torch.no_grad():
        parts = [program.draw(table, min(AT_ONCE, draws - done)) for done in range(0, draws, AT_ONCE)]
    graphs, chances = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return graphs, chances.mean(0)


def area_under_curve(chances: Tensor, graph: Tensor, directed: bool = True) -> float:
    """The chance that an edge scores above a pair that is none, a tie a half (AUROC); NaN if there is only one kind.

    - `chances` `[variables, variables]`: scores of i acting on j. `graph`: the truth, bool.
    - `directed`: over all ordered pairs; if not, over unordered ones, whose scores are both directions' together.

    >>> area_under_curve(torch.tensor([[0.0, 0.2], [0.8, 0.0]]), torch.tensor([[False, True], [False, False]]))
    0.0
    """
    n = len(graph)
    if directed:
        pairs = ~torch.eye(n, dtype=torch.bool)
        scores, labels = chances[pairs], graph[pairs]
    else:
        pairs = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores, labels = (chances + chances.mT)[pairs], (graph | graph.mT)[pairs]
    if bool(labels.all()) or not bool(labels.any()):
        return math.nan
    return float(roc_auc_score(labels.numpy(), scores.double().numpy()))


def hamming_distance(chances: Tensor, graph: Tensor) -> float:
    """The structural one: pairs of variables that are missed, too many, or the wrong way round, each once.

    A pair counts as found if its directions' chances together are above a half, in the direction with the larger one;
    in neither, and half wrong, if both are the same.

    >>> hamming_distance(torch.tensor([[0.0, 0.2], [0.8, 0.0]]), torch.tensor([[False, True], [False, False]]))
    1.0
    """
    n = len(graph)
    pairs = torch.ones(n, n, dtype=torch.bool).triu(1)
    found, truth = ((chances + chances.mT) > 0.5)[pairs], (graph | graph.mT)[pairs]
    lean, true_lean = (chances - chances.mT).sign()[pairs], (graph.int() - graph.mT.int())[pairs]
    turned = (lean - true_lean).abs() / 2  # a half where one of them has no direction
    return float(torch.where(found & truth, turned, (found != truth).float()).sum())


def held_out(program: DirectedGraph, data: Variables, graphs: Tensor) -> float:
    """Log-likelihood of a test row given the training table, in nats, a mean of densities over `graphs` `[.., i, j]`.

    What the linear likelihood integrates out is integrated over its posterior given the training table; the networks
    are as they were trained.
    """
    device = program.edge_logit.device
    parents = graphs.mT.to(device)
    both, train = torch.cat([data.train, data.test], 1)[0].to(device), data.train[0].to(device)
    with torch.no_grad():
        if program.networks is None:
            whole, part = (_log_likelihood(program, table, parents) for table in (both, train))
            each = whole - part
        else:
            each = _log_likelihood(program, data.test[0].to(device), parents)
    return float(each.logsumexp(0) - math.log(len(graphs))) / data.test.shape[1]


def _log_likelihood(program: DirectedGraph, table: Tensor, parents: Tensor) -> Tensor:
    """`[graphs]`, in float64, of whole tables under graphs `[graphs, j, i]`; some at a time, as memory bears."""
    at_once = max(1, 2**22 // program.values(table.unsqueeze(0)))
    return torch.cat(
        [program.likelihood(table, some).log_prob(table.mT).double().sum(-1) for some in parents.split(at_once)]
    )


def small_graphs(variables: int) -> tuple[Tensor, Tensor]:
    """All acyclic graphs `[graphs, i, j]`, and of how many orders each is one: `[graphs]`, float64.

    >>> graphs, orders = small_graphs(3)
    >>> len(graphs), int(orders.max())
    (25, 6)
    """
    pairs = [(i, j) for i in range(variables) for j in range(variables) if i != j]
    graphs, numbers = [], []
    forward = [precedence(torch.tensor(order)) for order in itertools.permutations(range(variables))]
    for chosen in itertools.product((0.0, 1.0), repeat=len(pairs)):
        graph = torch.zeros(variables, variables)
        for (i, j), there in zip(pairs, chosen, strict=True):
            graph[i, j] = there
        orders = sum(bool((graph <= before).all()) for before in forward)
        if orders:
            graphs.append(graph)
            numbers.append(float(orders))
    return torch.stack(graphs), torch.tensor(numbers, dtype=torch.float64)


def exact_posterior(program: DirectedGraph, table: Tensor) -> Tensor:
    """Of each of `small_graphs`, given `table` `[rows, variables]` and the program's parameters: `[graphs]`, float64.

    The prior is the one that order and edges induce: a graph counts once for each of its topological orders.
    """
    graphs, orders = small_graphs(program.variables)
    with torch.no_grad():
        logit, number = program.edge_logit.double(), graphs.sum((-1, -2))
        pairs = program.variables * (program.variables - 1) / 2
        log_prior = orders.log() + number * logsigmoid(logit) + (pairs - number) * logsigmoid(-logit)
        log_joint = log_prior + _log_likelihood(program, table, graphs.mT)
    return log_joint.softmax(0)


def guide_posterior(program: DirectedGraph, table: Tensor) -> Tensor:
    """The guide's of each of `small_graphs`, a sum over all orders and parts of its mixtures: `[graphs]`, float64."""
    graphs, _ = small_graphs(program.variables)
    orders = torch.tensor(list(itertools.permutations(range(program.variables))))
    with torch.no_grad():
        before = precedence(orders)  # [orders, i, j]
        by_order = program.mode_given(before).logsumexp(-1)
        each = program.pattern_given(graphs.mT.unsqueeze(1), before.mT, table).logsumexp(-1).sum(-1)  # [graphs, orders]
        forward = (graphs.unsqueeze(1) <= before).all(-1).all(-1)
        return torch.where(forward, by_order + each, -torch.inf).double().exp().sum(1)
