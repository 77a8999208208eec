"""Continuous relaxations: the draws, soft indices, the extended log-mass, and the `relax` handler."""

from pyro_discrete.relaxations import soft_arithmetic, soft_lookup, soft_shapes  # what soft indices can do
from pyro_discrete.relaxations.concrete import relaxed_bernoulli, relaxed_one_hot
from pyro_discrete.relaxations.extension import Relaxed
from pyro_discrete.relaxations.gumbel import conditional_gumbel, gumbel_max, truncated_gumbel
from pyro_discrete.relaxations.relax import relax
from pyro_discrete.relaxations.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearnedTemperature,
    LinearDecay,
    PiecewiseConstant,
    PiecewiseLinear,
    Schedule,
    StepDecay,
)
from pyro_discrete.relaxations.soft_index import SoftIndex
from pyro_discrete.relaxations.sparse import entmax, sparsemax
from pyro_discrete.relaxations.without_replacement import (
    GumbelTopK,
    gumbel_top_k,
    log_prob_ordered,
    log_prob_unordered,
)

__all__ = [
    "CosineDecay",
    "ExponentialDecay",
    "GumbelTopK",
    "LearnedTemperature",
    "LinearDecay",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Relaxed",
    "Schedule",
    "SoftIndex",
    "StepDecay",
    "conditional_gumbel",
    "entmax",
    "gumbel_max",
    "gumbel_top_k",
    "log_prob_ordered",
    "log_prob_unordered",
    "relax",
    "relaxed_bernoulli",
    "relaxed_one_hot",
    "soft_arithmetic",
    "soft_lookup",
    "soft_shapes",
    "sparsemax",
    "truncated_gumbel",
]
