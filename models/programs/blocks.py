"""A stochastic block model: the nodes of a graph fall into groups, and groups say how many edges to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Categorical, Normal, Poisson
from sklearn.cluster import KMeans
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.graphs import Graphs
from models.errors import ConfigError
from models.programs.program import Program, Settings

__all__ = ["BlockModel"]

SURE = 0.9
"""How probable the groups that k-means finds are at the start."""
LEAST_RATE = 1e-6
"""Of edges: nodes without any have none to bring."""


class BlockModel(Program):
    """Site "z": the group of each node; "affinity": log-rates of edges from group to group; "x": the graph's edges.

    The rate of an edge is what would be expected without groups, times the exponential of the affinity of the two
    nodes' groups, which is standard normal before, so that the bound says how many groups a graph bears. Without
    direction, the affinity of two groups is the mean of both entries.

    - `edges` `[nodes, nodes]`: the graph. `groups`: `[nodes]`, where to start; `number`: how many groups.
    - `directed`: whether the edge from i to j is another than that from j to i; if not, a pair is counted once.
    - `degrees`: "corrected", where nodes bring their own numbers of edges, or "equal".

    The guide has free logits for each node, and a normal distribution for each affinity.

    Source: Karrer and Newman (2011), Stochastic blockmodels and community structure in networks.
    """

    summary = "stochastic block model: groups of a graph's nodes, degree-corrected or not"
    reads = Graphs
    data = "simulated-blocks"
    size = "{categories} groups"
    finds = True
    defaults: ClassVar = {"categories": 3, "degrees": "corrected", "batch_size": 1, "lr": 0.05}
    DEGREES: ClassVar[Mapping[str, str]] = {
        "corrected": "nodes bring their own numbers of edges",
        "equal": "all nodes of a group are alike",
    }
    pairs: Tensor
    expected: Tensor

    def __init__(
        self, edges: Tensor, groups: Tensor, number: int, directed: bool = False, degrees: str = "corrected"
    ) -> None:
        super().__init__()
        if degrees not in self.DEGREES:
            raise ConfigError(f"Unknown degrees {degrees!r}; expected {' or '.join(self.DEGREES)}.")
        self.directed = directed
        leave, reach = edges.sum(1), edges.sum(0)
        if degrees == "equal":
            leave, reach = leave.mean().expand(len(edges)), reach.mean().expand(len(edges))
        pairs = torch.ones_like(edges, dtype=torch.bool)
        self.register_buffer("pairs", pairs.fill_diagonal_(False) if directed else pairs.triu(1), persistent=False)
        expected = leave.unsqueeze(-1) * reach / edges.sum().clamp(min=1)
        self.register_buffer("expected", expected.clamp(min=LEAST_RATE), persistent=False)
        self.shares = nn.Parameter(torch.zeros(number))
        member = nn.functional.one_hot(groups, number).to(edges.dtype)
        counted, awaited = (member.mT @ table.fill_diagonal_(0) @ member for table in (edges.clone(), expected.clone()))
        self.encoder = nn.ParameterDict(
            {
                "logits": nn.Parameter(math.log(SURE * (number - 1) / (1 - SURE)) * member),
                "affinity": nn.Parameter(((counted + 1) / (awaited + 1)).log()),
                "log_scale": nn.Parameter(-0.5 * (1 + counted).log()),
            }
        )

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> BlockModel:
        """Start from k-means of whom each node is joined to; of degree-corrected models, in its direction alone."""
        assert isinstance(data, Graphs)
        edges = data.train[0]
        if config.categories > len(edges):
            raise ConfigError(f"--categories is {config.categories}; expected 2 to {len(edges)}, the nodes there are.")
        joined = torch.cat([edges, edges.mT], 1)
        if config.degrees == "corrected":
            joined = nn.functional.normalize(joined, dim=1)
        starts: Any = 10  # scikit-learn's stub knows its default alone
        clusters: Any = KMeans(config.categories, n_init=starts, random_state=config.seed).fit(joined.numpy())
        groups = torch.as_tensor(clusters.labels_).long()
        return cls(edges, groups, config.categories, data.directed, config.degrees)

    def model(self, x: Tensor) -> None:
        pyro.module("block_model", self)
        with pyro.plate("data", len(x)):
            affinity = pyro.sample("affinity", Normal(torch.zeros_like(self.encoder["affinity"]), 1.0).to_event(2))
            z = pyro.sample("z", Categorical(logits=self.shares.expand(len(self.pairs), -1)).to_event(1))
            if not self.directed:
                affinity = (affinity + affinity.mT) / 2
            member = nn.functional.one_hot(z, len(self.shares)).to(affinity.dtype)
            rates = self.expected * (member @ affinity.exp() @ member.mT)
            pyro.sample("x", Poisson(rates).mask(self.pairs).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("block_model", self)
        affinity = Normal(self.encoder["affinity"], self.encoder["log_scale"].exp())
        with pyro.plate("data", len(x)):
            pyro.sample("affinity", affinity.to_event(2))
            pyro.sample("z", Categorical(logits=self.encoder["logits"]).to_event(1))

    @property
    def groups(self) -> Tensor:
        """The group of each node that is the most probable by the guide: `[nodes]`."""
        return self.encoder["logits"].argmax(-1)
