"""Which variable acts on which? A latent directed acyclic graph: an order, and edges that go forward in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Normal, OneHotCategorical, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from models.data.dataset import Dataset
from models.data.tables import Variables
from models.errors import ConfigError
from models.programs.program import Program, Settings
from pyro_discrete.distributions import PlackettLuce, precedence

__all__ = ["DirectedGraph", "LinearGaussian", "NodeNetworks"]

T = 1.0
"""Of the prior of weights and noise, for variables of deviation one."""
FARTHEST = 8.0
"""An edge's logit by what the edge gains, at most."""


class LinearGaussian(TorchDistribution):
    r"""Columns of a table, each linear in its parents' plus Gaussian noise, weights and noise integrated out.

    .. math:: y_j = \sum_i g_{ji} w_{ji} x_i + \epsilon, \quad w \sim N(0, \sigma_j^2 / t), \quad
        \sigma_j^2 \sim \text{InvGamma}(\nu_j / 2, t / 2), \quad \nu_j = 3 + \sum_i g_{ji}, \quad t = 1

    for rows of mean zero. These are the conditionals of a joint Gaussian whose covariance is inverse Wishart with
    variables + 2 degrees of freedom and mean one, so that graphs of one Markov equivalence class are equally probable.

    - `table` `[*batch, rows, variables]`. `parents` `[*batch, variables, variables]`: whether (or, between zero and
      one, how much) variable j reads variable i, at `[j, i]`.
    - A value: the columns that are explained, `[*batch, variables, rows]`.

    Sums are in float64, which nearly collinear parents need.

    Source: Geiger and Heckerman (2002), Parameter priors for directed acyclic graphical models; Kuipers, Moffa and
    Heckerman (2014), Addendum on the scoring of Gaussian directed acyclic graphical models.

    >>> table = torch.tensor([[1.0, 0.9], [-1.0, -1.1], [0.1, 0.2]])
    >>> edge = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    >>> graphs = torch.stack([torch.zeros(2, 2), edge, edge.mT])  # none, and an edge in either direction
    >>> LinearGaussian(table, graphs).log_prob(table.mT).sum(-1)
    tensor([-8.4674, -7.1423, -7.1423])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, table: Tensor, parents: Tensor, validate_args: bool | None = None) -> None:
        self.table, self.parents = table, parents
        batch = torch.broadcast_shapes(table.shape[:-2], parents.shape[:-2]) + parents.shape[-1:]
        super().__init__(batch, table.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def expand(self, batch_shape: Sequence[int], _instance: TorchDistribution | None = None) -> LinearGaussian:
        shape = torch.Size(batch_shape)[:-1]
        parents = self.parents.expand(shape + self.parents.shape[-2:])
        return type(self)(self.table, parents, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        degrees = 3.0 + self.parents.sum(-1)
        factor, halves = self._solved(value)
        rest = T + value.double().square().sum(-1) - halves.square().sum(-1)
        rows, columns = self.table.shape[-2:]
        log_prob = (
            torch.lgamma((degrees + rows) / 2)
            - torch.lgamma(degrees / 2)
            - 0.5 * rows * math.log(math.pi)
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            + 0.5 * (degrees + columns) * math.log(T)
            - 0.5 * (degrees + rows) * rest.log()
        )
        return log_prob.to(self.table.dtype)

    def gains(self, value: Tensor) -> Tensor:
        """How much each parent adds to a column's log-probability beside all others: `[*batch, j, i]`.

        What stands where there is no parent is of no meaning.
        """
        degrees, rows = 3.0 + self.parents.sum(-1, keepdim=True), self.table.shape[-2]
        factor, halves = self._solved(value)
        rest = (T + value.double().square().sum(-1) - halves.square().sum(-1)).unsqueeze(-1)
        inverse = torch.cholesky_inverse(factor)
        weights = torch.linalg.solve_triangular(factor.mT, halves.unsqueeze(-1), upper=True).squeeze(-1)
        own = inverse.diagonal(dim1=-2, dim2=-1)
        without = rest + weights.square() / own
        with_it = torch.lgamma((degrees + rows) / 2) - torch.lgamma(degrees / 2) - 0.5 * (degrees + rows) * rest.log()
        fewer = degrees - 1
        less = torch.lgamma((fewer + rows) / 2) - torch.lgamma(fewer / 2) - 0.5 * (fewer + rows) * without.log()
        return (with_it - less + 0.5 * own.log() + math.log(T)).to(self.table.dtype)

    def _solved(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of each column's parents' products plus T, and the products with the column over it."""
        parents, table, value = (tensor.to(torch.float64) for tensor in (self.parents, self.table, value))
        gram = (table.mT @ table).unsqueeze(-3)  # [*batch, 1, i, i']
        cross = parents * (value @ table)  # [*batch, j, i]
        joint = parents.unsqueeze(-1) * gram * parents.unsqueeze(-2)
        factor = torch.linalg.cholesky(joint + T * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))
        return factor, torch.linalg.solve_triangular(factor, cross.unsqueeze(-1), upper=False).squeeze(-1)


class NodeNetworks(nn.Module):
    """A network of one hidden layer for each variable, which reads the variable's parents: means and noise of each.

    `hidden`: units of each hidden layer.
    """

    def __init__(self, variables: int, hidden: int) -> None:
        super().__init__()
        self.below = nn.Parameter(torch.randn(variables, variables, hidden) / math.sqrt(variables))
        self.bias = nn.Parameter(torch.zeros(variables, hidden))
        self.above = nn.Parameter(torch.randn(variables, hidden) / math.sqrt(hidden))
        self.shift = nn.Parameter(torch.zeros(variables))
        self.log_scale = nn.Parameter(torch.zeros(variables))

    def forward(self, table: Tensor, parents: Tensor) -> Normal:
        """The law of the columns `[*batch, variables, rows]`; arguments as of `LinearGaussian`."""
        weights = parents.unsqueeze(-1) * self.below  # [*batch, j, i, hidden]
        units = torch.tanh(table.unsqueeze(-3) @ weights + self.bias.unsqueeze(-2))  # [*batch, j, rows, hidden]
        means = (units @ self.above.unsqueeze(-1)).squeeze(-1) + self.shift.unsqueeze(-1)
        return Normal(means, self.log_scale.exp().unsqueeze(-1))


class DirectedGraph(Program):
    r"""Sites "order": the variables by place; "edges": for each variable, whether it reads each of the others; "x".

    An edge counts where it goes forward in the order, `edges * precedence(order)`: no cycle can come of that, and a
    graph is as probable beforehand as it has topological orders. Each column of the table is explained by its parents:
    linearly, with weights and noise integrated out (`LinearGaussian`), or by networks whose weights are parameters.

    The guide is a mixture of `categories` orders, and for each variable one of as many patterns of parents, whose
    shares depend on who comes before it. Edges start where each has what it gains in a linear model beside all others
    that may be there, so that a new order brings its edges with it. Which part of a mixture a draw is from are sites as
    well, "mode" and "pattern"; the model has them given the order and the edges with just the probability that they
    have under the guide, by Bayes's rule, so that the bound is that of the mixture. Edges that go backward have their
    prior in both, and are not felt.

    - `variables`: how many. `categories`: parts of each mixture. `hidden`: units of the networks' hidden layer; none
      for linear. `learned_prior`: whether the probability of an edge is trained; a half if not.

    Source: Friedman and Koller (2003), Being Bayesian about network structure (a prior by orders); Agakov and Barber
    (2004), An auxiliary variational method (mixtures).
    """

    summary = "structure learning: a directed acyclic graph over variables"
    reads = Variables
    data = "erdos-renyi-10"
    size = "a graph of the variables"
    finds = True
    plates_inside = 1
    edge_logit: Tensor
    defaults: ClassVar = {
        "categories": 4,
        "hidden_layers": 0,
        "hidden_units": 16,
        "prior": "learned",
        "batch_size": 1,
        "lr": 0.02,
    }

    def __init__(
        self, variables: int, categories: int = 4, hidden: Sequence[int] = (), learned_prior: bool = False
    ) -> None:
        super().__init__()
        if len(hidden) > 1:
            raise ConfigError(f"--hidden-layers is {len(hidden)}; expected 0 (linear) or 1.")
        n, k = variables, categories
        self.variables = n
        self.networks = NodeNetworks(n, hidden[0]) if hidden else None
        if learned_prior:
            self.edge_logit = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("edge_logit", torch.zeros(()))
        self.encoder = nn.ParameterDict(
            {
                "mode": nn.Parameter(torch.zeros(k)),
                "order": nn.Parameter(torch.randn(k, n)),
                "pattern": nn.Parameter(torch.zeros(n, k)),
                "pattern_given": nn.Parameter(torch.zeros(n, k, n)),
                "edges": nn.Parameter(0.5 * torch.randn(n, k, n)),
            }
        )

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> DirectedGraph:
        return cls(data.train.shape[-1], config.categories, config.hidden, config.prior == "learned")

    def model(self, x: Tensor) -> None:
        pyro.module("directed_graph", self)
        with pyro.plate("data", len(x), dim=-2):
            order = pyro.sample("order", PlackettLuce(torch.zeros(self.variables, device=x.device)))
            before = precedence(order)  # [tables, 1, i, j]
            pyro.sample("mode", OneHotCategorical(logits=self.mode_given(before)))
            before = before.mT.squeeze(-3)  # [tables, j, i]
            with pyro.plate("variables", self.variables, dim=-1):
                edges = pyro.sample("edges", Bernoulli(logits=self.edge_logit.expand(self.variables)).to_event(1))
                pyro.sample("pattern", OneHotCategorical(logits=self.pattern_given(edges, before, x)))
                pyro.sample("x", self.likelihood(x, edges * before), obs=x.mT)

    def guide(self, x: Tensor) -> None:
        pyro.module("directed_graph", self)
        own = self.encoder
        with pyro.plate("data", len(x), dim=-2):
            mode = pyro.sample("mode", OneHotCategorical(logits=own["mode"]))
            order = pyro.sample("order", PlackettLuce(mode @ own["order"]))
            before = precedence(order).mT.squeeze(-3)  # [tables, j, i]
            with pyro.plate("variables", self.variables, dim=-1):
                pattern = pyro.sample("pattern", OneHotCategorical(logits=self.pattern_logits(before)))
                logits = (pattern.unsqueeze(-2) @ own["edges"]).squeeze(-2) + self.expected(before, x)
                logits = self.edge_logit + before * (logits - self.edge_logit)
                pyro.sample("edges", Bernoulli(logits=logits).to_event(1))

    def likelihood(self, table: Tensor, parents: Tensor) -> TorchDistribution:
        """The law of the columns of `table` `[*batch, rows, variables]`, given `parents` `[*batch, j, i]`."""
        if self.networks is None:
            return LinearGaussian(table, parents)
        return self.networks(table, parents).to_event(1)

    def pattern_logits(self, before: Tensor) -> Tensor:
        """`[*batch, j, patterns]`, given who comes before each variable, `[*batch, j, i]`."""
        own = self.encoder
        return own["pattern"] + (own["pattern_given"] @ before.unsqueeze(-1)).squeeze(-1)

    def mode_given(self, before: Tensor) -> Tensor:
        """The guide's log-probability of an order under each of its modes and of the mode, `[*batch, modes]`.

        `before` `[*batch, i, j]`: the order's `precedence`. Each variable is taken from itself and those after it.
        """
        own = self.encoder
        left = (before + torch.eye(self.variables, device=before.device)).clamp(min=torch.finfo(before.dtype).tiny)
        among = (own["order"].unsqueeze(-2) + left.log().unsqueeze(-3)).logsumexp(-1)  # [*batch, modes, i]
        return own["mode"].log_softmax(-1) + (own["order"] - among).sum(-1)

    def expected(self, before: Tensor, table: Tensor) -> Tensor:
        """Logits of edges from who comes before, each by its gain beside all others (linear): `[*batch, j, i]`."""
        gains = LinearGaussian(table, before).gains(table.mT) + self.edge_logit
        return FARTHEST * (gains / FARTHEST).tanh()

    def pattern_given(self, edges: Tensor, before: Tensor, table: Tensor) -> Tensor:
        """The guide's log-probability of a variable's edges under each pattern and of that: `[*batch, j, patterns]`.

        `edges`, `before` `[*batch, j, i]`. Edges that go backward are left out.
        """
        logits = self.encoder["edges"] + self.expected(before, table).unsqueeze(-2)
        each = edges.unsqueeze(-2) * logits - nn.functional.softplus(logits)  # [*batch, j, patterns, i]
        return self.pattern_logits(before).log_softmax(-1) + (before.unsqueeze(-2) * each).sum(-1)

    def values(self, x: Tensor) -> int:
        size = self.variables**2 * (self.variables + 4)
        return size if self.networks is None else size + x[0].numel() * self.networks.bias.numel()

    def draw(self, table: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Graphs of the guide given `table` `[rows, variables]`, `[number, i, j]`: whether i acts on j.

        And the probabilities of their edges given the rest of each draw, whose mean is less noisy than the graphs'.
        """
        sites: Any = poutine.trace(self.guide).get_trace(table.expand(number, *table.shape)).nodes
        forward, edges = precedence(sites["order"]["value"]).squeeze(-3), sites["edges"]
        return edges["value"].mT * forward, edges["fn"].base_dist.probs.mT * forward
