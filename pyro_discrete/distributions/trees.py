"""Trees that point away from a root, and undirected ones, by determinants; at peaked logits by elimination."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.distributions.structure import GibbsStructure, Structure, first_element, float_or_inf
from pyro_discrete.distributions.supports import Parents, check_square
from pyro_discrete.draws.gumbel import gumbel_max
from pyro_discrete.draws.log_space import Reduce, log_sum_exp, masked_log
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError
from pyro_discrete.recording import is_recorded

__all__ = ["Arborescence", "SpanningTree", "sum_by_elimination"]


EXACT = {torch.float64: 1e-9}
"""The error of a marginal up to which determinants are taken, by dtype; `COARSE` for the others."""


COARSE = 1e-6


class Arborescence(GibbsStructure):
    r"""Trees that point away from node 0: :math:`p(t) \propto \exp \sum_{v \ge 1} l_{\mathrm{parent}(v), v}`.

    - `logits` `[*batch, n, n]`, `logits[parent, node]`; the diagonal and column 0 are not read.
    - A value: the parents of nodes 1 to n - 1, integers `[*batch, n - 1]`. Its vertex: edges `[*batch, parent, node]`.

    log Z is the determinant of a Laplacian (in double precision), marginals come from its inverse, and a draw goes
    node after node, by what is left of the trees: n^3. Where logits are so peaked that these lose digits, which what
    the inverse misses the identity by shows, nodes are eliminated one by one without a subtraction: some ten times the
    cost, and n^4 for a draw. A step that is traced into a graph, which cannot choose, always goes that way. There is
    no noise given a tree, as the logits of each parent depend on those before.

    Raises `SettingError` for logits that are not square or of a single node and, under validation, where no tree has
    mass.

    Source: Tutte (1948), the matrix-tree theorem; Koo et al. (2007), Structured prediction models via the matrix-tree
    theorem; draws: Colbourn, Myrvold and Neufeld (1996), Two algorithms for unranking arborescences; elimination:
    Grassmann, Taksar and Heyman (1985), Regenerative analysis and steady state distributions for Markov chains.

    >>> d = Arborescence(torch.tensor([[0.0, 50.0, 0.0], [0.0, 0.0, 50.0], [0.0, 0.0, 0.0]]))
    >>> d.sample(), d.mode, d.cardinality
    (tensor([0, 1]), tensor([0, 1]), 3.0)
    """

    param_dim = 2
    value_dims: tuple[str, ...] = ("node",)
    number_name: str = "parent"

    def _check_shape(self, logits: Tensor) -> None:
        super()._check_shape(logits)
        check_square(logits, type(self).__name__)
        if logits.shape[-1] < 2:
            raise SettingError(f"{type(self).__name__}: logits {list(logits.shape)} given, two nodes or more expected.")

    def _no_mass(self) -> str:
        alone = (self._weights(self.logits)[..., 1:].amax(-2) == -math.inf).nonzero()
        if len(alone):
            return f"all logits into node {alone[0, -1].item() + 1} are -inf."
        return "some nodes cannot be reached from node 0."

    @property
    def n(self) -> int:
        """The number of nodes."""
        return self.logits.shape[-1]

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        return torch.Size((logits.shape[-1] - 1,))

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Parents:
        return Parents(self.n)

    @property
    def cardinality(self) -> float:
        n = int(self.n)  # a traced program's sizes are tensors of 64 bits
        return float_or_inf((n - 2) * math.log(n), lambda: n ** (n - 2))

    def _support_list(self) -> Tensor:
        """By Prüfer's code: leaf after leaf, the one of the largest number first, hangs on what the code says."""
        n = self.n
        digits = torch.arange(n ** (n - 2)).unsqueeze(-1) // n ** torch.arange(n - 2) % n
        degree = 1 + one_hot_vector(digits, torch.zeros(n, dtype=torch.long)).sum(-2)
        parents = torch.zeros(len(digits), n, dtype=torch.long)
        number = torch.arange(1, n + 1)
        for i in range(n - 2):
            leaf = torch.where(degree == 1, number, 0).argmax(-1, keepdim=True)
            parents = parents.scatter(-1, leaf, digits[:, i : i + 1])
            degree = degree.scatter(-1, leaf, 0).scatter_add(-1, digits[:, i : i + 1], torch.full_like(leaf, -1))
        return parents[:, 1:]  # the last leaf hangs on node 0

    @property
    def possible(self) -> Tensor:
        return self._weights(self.logits) > -math.inf

    # ----------------------------------------------------------------------------------------------------------- sums

    @property
    def numbers(self) -> int:
        return self.n

    @property
    def work(self) -> int:
        return self.n**3

    def weighted(self, weights: Tensor) -> tuple[Arborescence, Tensor]:
        """An `Arborescence`: edges have a direction then, as the parent of a node is another one than its child's."""
        logits = self.logits + F.pad(weights.mT, (1, 0))
        return Arborescence(logits, validate_args=False), logits.new_zeros(logits.shape[:-2])

    def _weights(self, logits: Tensor) -> Tensor:
        """The logits, -inf where no edge can be: onto itself and into the root."""
        node = torch.arange(logits.shape[-1], device=logits.device)
        return torch.where((node.unsqueeze(-1) == node) | (node == 0), -math.inf, logits)

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        """log Z; and by determinants marginals `[*batch, n, n - 1]`, weights like them, and the Laplacian's inverse."""
        if not is_recorded():  # a graph cannot choose by values
            weights, scale = self._scaled(logits)
            laplacian = _laplacian(weights)
            inverse = torch.linalg.inv_ex(laplacian).inverse
            if bool((self._error(weights, laplacian, inverse) < EXACT.get(logits.dtype, COARSE)).all()):
                own = inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
                marginals = weights * (own - F.pad(inverse.mT, (0, 0, 1, 0)))
                total = torch.linalg.slogdet(laplacian).logabsdet + scale
                return total.to(logits.dtype), marginals.to(logits.dtype), weights, inverse
        return (sum_by_elimination(self._weights(logits), log_sum_exp),)

    def _error(self, weights: Tensor, laplacian: Tensor, inverse: Tensor) -> Tensor:
        """How far the inverse may be off, `[*batch]`.

        Infinite where an edge is too light beside the others into its node to be a number: it may yet be in the only
        heavy tree.
        """
        lost = (weights < torch.finfo(weights.dtype).tiny) & self.possible[..., 1:]
        identity = torch.eye(self.n - 1, dtype=inverse.dtype, device=inverse.device)
        missed = _missed(inverse.detach(), laplacian.detach(), identity)
        return torch.where(lost.flatten(-2).any(-1), math.inf, missed)

    def _scaled(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights into nodes 1 to n - 1, `[*batch, n, n - 1]`, each column over its largest, and the logs of these.

        Every node has one parent, so that columns may be scaled.
        """
        weights = self._weights(logits.double())[..., 1:]
        top = weights.detach().amax(-2, keepdim=True).clamp(min=torch.finfo(weights.dtype).min)
        return (weights - top).exp(), top.squeeze(-2).sum(-1)

    def marginals(self) -> Tensor:
        tables = self.tables
        return F.pad(tables[1], (1, 0)) if len(tables) > 1 else super().marginals()

    def vertex(self, value: Tensor) -> Tensor:
        return F.pad(one_hot_vector(value, self.logits).mT, (1, 0))

    def value_of(self, vertex: Tensor) -> Tensor:
        return self.index_weights(vertex).argmax(-1)

    def index_weights(self, vertex: Tensor) -> Tensor:
        return vertex[..., 1:].mT

    # ----------------------------------------------------------------------------------------------------------- draws

    def _draw(self, shape: torch.Size) -> Tensor:
        tables = self.tables
        if len(tables) > 1:
            parents, error = _chained(*(table.expand(shape + table.shape[-2:]) for table in tables[2:]))
            if bool((error < COARSE).all()):
                return parents
        return self._draw_by_elimination(shape)

    def _draw_by_elimination(self, shape: torch.Size) -> Tensor:
        """Parents of 1, 2, ..., each by the marginals into it given those before."""
        weights = self._weights(self.logits.double()).expand(shape + self.vertex_shape)
        parents = []
        for v in range(1, self.n):
            with torch.enable_grad():
                column = weights[..., v].detach().requires_grad_()
                given = torch.cat([weights[..., :v], column.unsqueeze(-1), weights[..., v + 1 :]], -1)
                (into,) = torch.autograd.grad(sum_by_elimination(given, log_sum_exp).sum(), column)
            parent = gumbel_max(masked_log(into))
            parents.append(parent)
            chosen = torch.where(one_hot_vector(parent, column) > 0, column.detach(), -math.inf)
            weights = torch.cat([weights[..., :v], chosen.unsqueeze(-1), weights[..., v + 1 :]], -1)
        return torch.stack(parents, -1)

    # ------------------------------------------------------------------------------------------------------------ best

    def argmax(self, scores: Tensor) -> Tensor:
        """By elimination with maxima for sums, whose slope is the best tree; ties to one part in 10^9 go either way."""
        scores = scores.detach().double()
        size = torch.where(scores.isfinite(), scores, 0.0).abs().amax((-2, -1), keepdim=True).clamp(min=1.0)
        scores = scores + 1e-9 * size * _apart(self.n, scores.device)
        with torch.enable_grad():
            scores = scores.requires_grad_()
            best = sum_by_elimination(self._weights(scores), lambda table, dim: table.amax(dim))
            (edges,) = torch.autograd.grad(best.sum(), scores)
        return self.value_of(edges)

    @classmethod
    def small(cls) -> list[Structure]:
        rows = [[0.0, -0.9, 1.1, 0.2], [-0.4, 0.0, 0.1, -1.2], [0.5, 0.7, 0.0, -0.3], [1.3, -0.6, 0.4, 0.0]]
        logits = torch.tensor(rows, dtype=torch.float64)
        masked = logits.clone()
        masked[0, 1] = masked[3, 2] = -math.inf
        return [cls(logits), cls(masked), cls(torch.stack([logits[:3, :3], 2 * logits[1:, 1:]])), cls(logits[:2, :2])]


class SpanningTree(Arborescence):
    r"""Undirected trees over n nodes: :math:`p(t) \propto \exp \sum_{\{u, v\} \in t} l_{uv}`.

    - `logits` `[*batch, n, n]`, symmetric; the diagonal is not read. `SpanningTree.from_edges` takes the vector of
      Pyro's class of this name, and `edges_of` gives its values.
    - A value: each tree as it points away from node 0, the parents of nodes 1 to n - 1, integers `[*batch, n - 1]`.

    Raises `SettingError` as `Arborescence` does and, under validation, for logits that are not symmetric.

    >>> d = SpanningTree.from_edges(torch.tensor([50.0, 0.0, 50.0]))
    >>> d.edges_of(d.sample()).tolist()
    [[0, 1], [1, 2]]
    """

    def _check_shape(self, logits: Tensor) -> None:
        if logits.dim() == 1:
            raise SettingError(
                f"SpanningTree: logits {list(logits.shape)} given, symmetric ones [.., n, n] expected. "
                "SpanningTree.from_edges takes a vector of edges."
            )
        super()._check_shape(logits)

    def _check_logits(self) -> None:
        weights = self._weights(self.logits)[..., 1:, 1:]
        gap = torch.where(weights == weights.mT, 0.0, (weights - weights.mT).abs())
        root = self.logits[..., 0, 1:], self.logits[..., 1:, 0]
        at_root = torch.where(root[0] == root[1], 0.0, (root[0] - root[1]).abs())
        uneven = torch.cat([gap.flatten(-2), at_root], -1).amax(-1) > 1e-5
        if bool(uneven.any()):
            raise SettingError(
                f"SpanningTree: logits{first_element(uneven)} are not symmetric. Give (logits + logits.mT) / 2, or "
                "take Arborescence for trees whose edges have a direction."
            )
        super()._check_logits()

    def of_free(self, logits: Tensor) -> SpanningTree:
        return self.like((logits + logits.mT) / 2)

    @classmethod
    def from_edges(cls, edge_logits: Tensor, *, validate_args: bool | None = None) -> SpanningTree:
        """Of the logits `[*batch, n (n - 1) / 2]` of edges (0, 1), (0, 2), (1, 2), (0, 3), ..., as in Pyro's class.

        Raises `SettingError` for another number of them.
        """
        edges = edge_logits.shape[-1] if edge_logits.dim() else 0
        n = (1 + math.isqrt(1 + 8 * edges)) // 2
        if not edges or n * (n - 1) // 2 != edges:
            raise SettingError(
                f"SpanningTree: edge_logits {list(edge_logits.shape)} given, n (n - 1) / 2 for n nodes expected."
            )
        node = torch.arange(n, device=edge_logits.device)
        high, low = torch.maximum(node.unsqueeze(-1), node), torch.minimum(node.unsqueeze(-1), node)
        place = torch.where(high == low, edges, low + high * (high - 1) // 2)
        return cls(F.pad(edge_logits, (0, 1))[..., place], validate_args=validate_args)

    def edges_of(self, value: Tensor) -> Tensor:
        """A tree's edges, `[..., n - 1, 2]`, as Pyro's class has them: the smaller node first, by the larger node."""
        node = torch.arange(1, self.n, device=value.device).expand(value.shape)
        low, high = torch.minimum(node, value), torch.maximum(node, value)
        order = (high * self.n + low).argsort(-1)
        return torch.stack([low.gather(-1, order), high.gather(-1, order)], -1)

    @property
    def edge_mean(self) -> Tensor:
        """How probable each edge is, in either direction: `[*batch, n, n]`, symmetric."""
        marginals = self.marginals()
        return marginals + marginals.mT

    @classmethod
    def small(cls) -> list[Structure]:
        edges = torch.tensor([0.3, -0.9, 1.1, 0.2, -0.4, 0.8], dtype=torch.float64)
        masked = edges.index_fill(0, torch.tensor([1]), -math.inf)
        return [cls.from_edges(edges), cls.from_edges(masked), cls.from_edges(torch.stack([edges[:3], edges[3:]]))]


def _laplacian(weights: Tensor) -> Tensor:
    """Of weights into nodes 1 to n - 1 `[..., n, n - 1]`, the root's row and column left out."""
    return torch.diag_embed(weights.sum(-2)) - weights[..., 1:, :]


def _chained(weights: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Parents of 1, 2, ... given those before; the inverse is mended in rank one. And how far its rows may be off."""
    laplacian = _laplacian(weights)
    identity = torch.eye(laplacian.shape[-1], dtype=weights.dtype, device=weights.device)
    parents, errors = [], []
    for v in range(laplacian.shape[-1]):
        row = inverse[..., v, :]
        errors.append(_missed(row.unsqueeze(-2), laplacian, identity[v]))
        chances = weights[..., v] * (row[..., v : v + 1] - F.pad(row, (1, 0)))
        parent = gumbel_max(masked_log(chances))
        parents.append(parent)
        column = identity[v] - one_hot_vector(parent - 1, row)  # the root has no row
        moved = (inverse @ (column - laplacian[..., v]).unsqueeze(-1)).squeeze(-1)
        inverse = inverse - moved.unsqueeze(-1) * (row / (1 + moved[..., v : v + 1])).unsqueeze(-2)
        laplacian[..., v] = column
    return torch.stack(parents, -1), torch.stack(errors, -1)


def _missed(inverse: Tensor, laplacian: Tensor, identity: Tensor) -> Tensor:
    """How far the worst of these rows of an inverse may be off, `[...]`: what they miss the identity by, in sum.

    With the rounding of that product itself.
    """
    rounding = torch.finfo(inverse.dtype).eps * laplacian.shape[-1] * (inverse.abs() @ laplacian.abs())
    return ((inverse @ laplacian - identity).abs() + rounding).sum(-1).amax(-1)


def sum_by_elimination(weights: Tensor, reduce: Reduce) -> Tensor:
    """log Z of weights `[..., n, n]`, by taking out node after node: what leads through one is added to what does not.

    No subtraction, so no digit is lost; with maxima for sums it is the weight of the best tree.
    """
    total = weights.new_zeros(weights.shape[:-2])
    for v in range(weights.shape[-1] - 1, 0, -1):
        into, out = weights[..., :v, v], weights[..., v, :v]
        arriving = reduce(into, -1)
        total = total + arriving
        share = into - torch.where(arriving > -math.inf, arriving, 0.0).unsqueeze(-1)
        through = share.unsqueeze(-1) + out.unsqueeze(-2)
        weights = reduce(torch.stack([weights[..., :v, :v], through]), 0)
        own = torch.eye(v, dtype=torch.bool, device=weights.device)
        weights = torch.where(own, -math.inf, weights)
    return total


def _apart(n: int, device: torch.device) -> Tensor:
    """Numbers in (0, 1), `[n, n]`, always the same, of which no two sums are alike: they break ties."""
    place = torch.arange(1, n * n + 1, dtype=torch.float64, device=device).reshape(n, n)
    return (place.sqrt() * (1 + 5**0.5) / 2).frac()
