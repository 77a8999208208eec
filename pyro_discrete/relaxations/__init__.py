"""Soft values in a program: the `relax` handler, the relaxed distribution, soft indices; with draws and schedules."""

from pyro_discrete.draws.gumbel import (
    GumbelTopK,
    conditional_gumbel,
    gumbel_max,
    gumbel_top_k,
    log_prob_ordered,
    log_prob_unordered,
    truncated_gumbel,
)
from pyro_discrete.draws.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearnedTemperature,
    LinearDecay,
    PiecewiseConstant,
    PiecewiseLinear,
    Schedule,
    StepDecay,
)
from pyro_discrete.draws.softening import entmax, relaxed_bernoulli, relaxed_one_hot, sparsemax
from pyro_discrete.relaxations import soft_lookup
from pyro_discrete.relaxations import soft_operations as soft_arithmetic
from pyro_discrete.relaxations import soft_operations as soft_shapes
from pyro_discrete.relaxations.handler import relax
from pyro_discrete.relaxations.relaxed_distribution import Relaxed
from pyro_discrete.relaxations.soft_index import SoftIndex

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
