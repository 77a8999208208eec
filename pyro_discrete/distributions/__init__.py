"""Structured discrete distributions: rankings, subsets, matchings, chains and trees, and what their estimators need."""

from pyro_discrete.distributions.k_subset import KSubset
from pyro_discrete.distributions.plackett_luce import PlackettLuce
from pyro_discrete.distributions.structure import GibbsStructure, Structure

__all__ = ["GibbsStructure", "KSubset", "PlackettLuce", "Structure"]
