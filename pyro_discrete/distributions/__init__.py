"""Structured discrete distributions: rankings, subsets, matchings, chains and trees, and what their estimators need."""

from pyro_discrete.distributions.decision_graph import DecisionGraph, DecisionLayer
from pyro_discrete.distributions.gibbs_matching import GibbsMatching
from pyro_discrete.distributions.k_subset import KSubset
from pyro_discrete.distributions.linear_chain import LinearChain
from pyro_discrete.distributions.permutations import inverse, k_hot, precedence
from pyro_discrete.distributions.plackett_luce import PlackettLuce
from pyro_discrete.distributions.sequential_matching import SequentialMatching
from pyro_discrete.distributions.structure import GibbsStructure, Structure
from pyro_discrete.distributions.trees import Arborescence, SpanningTree

__all__ = [
    "Arborescence",
    "DecisionGraph",
    "DecisionLayer",
    "GibbsMatching",
    "GibbsStructure",
    "KSubset",
    "LinearChain",
    "PlackettLuce",
    "SequentialMatching",
    "SpanningTree",
    "Structure",
    "inverse",
    "k_hot",
    "precedence",
]
