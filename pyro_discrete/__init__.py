"""Gradient estimators for Pyro programs with discrete latent variables, chosen by an argument of the ELBO."""

from pyro_discrete import diagnostics
from pyro_discrete.draws.gumbel import (
    GumbelTopK,
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
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.expectation import TraceExpectation
from pyro_discrete.elbos.iwelbo import TraceIWELBO
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate
from pyro_discrete.estimators.coupled.arm import ARM
from pyro_discrete.estimators.coupled.arms import ARMS
from pyro_discrete.estimators.coupled.bitflip1 import BitFlip1
from pyro_discrete.estimators.coupled.carms import CARMS
from pyro_discrete.estimators.coupled.coupled import Coupled
from pyro_discrete.estimators.coupled.disarm import DisARM
from pyro_discrete.estimators.registry import EstimatorInfo, available_estimators
from pyro_discrete.estimators.relaxed.decoupled_straight_through import DecoupledStraightThrough
from pyro_discrete.estimators.relaxed.gapped_straight_through import GappedStraightThrough
from pyro_discrete.estimators.relaxed.gumbel_rao import GumbelRao
from pyro_discrete.estimators.relaxed.gumbel_softmax import GumbelSoftmax
from pyro_discrete.estimators.relaxed.reinmax import ReinMax
from pyro_discrete.estimators.relaxed.sparse_gumbel_softmax import SparseGumbelSoftmax
from pyro_discrete.estimators.relaxed.straight_through import StraightThrough
from pyro_discrete.estimators.relaxed.straight_through_gumbel_softmax import StraightThroughGumbelSoftmax
from pyro_discrete.estimators.score.nvil import NVIL
from pyro_discrete.estimators.score.optimal_control_variate import ControlVariate, OptimalControlVariate
from pyro_discrete.estimators.score.reinforce import Reinforce
from pyro_discrete.estimators.score.reweighted_wake_sleep import ReweightedWakeSleep
from pyro_discrete.estimators.score.rloo import RLOO
from pyro_discrete.estimators.score.vimco import VIMCO
from pyro_discrete.estimators.slopes.double_cv import DoubleCV
from pyro_discrete.estimators.slopes.muprop import MuProp
from pyro_discrete.estimators.slopes.rebar import REBAR
from pyro_discrete.estimators.slopes.relax import RELAX
from pyro_discrete.estimators.slopes.rodeo import RODEO
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.estimators.support_sums.indecater import IndeCateR
from pyro_discrete.estimators.support_sums.sum_and_sample import SumAndSample
from pyro_discrete.estimators.support_sums.unordered_set import UnorderedSet
from pyro_discrete.families import Family
from pyro_discrete.guides.auto_discrete import AutoDiscreteMeanField
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.posterior.inference_data import to_inference_data
from pyro_discrete.relaxations.handler import relax
from pyro_discrete.relaxations.soft_index import SoftIndex
from pyro_discrete.training.fit import FitResult, fit
from pyro_discrete.training.loop import FitState

__all__ = [
    "ARM",
    "ARMS",
    "CARMS",
    "NVIL",
    "REBAR",
    "RELAX",
    "RLOO",
    "RODEO",
    "VIMCO",
    "AutoDiscreteMeanField",
    "BitFlip1",
    "ControlVariate",
    "CosineDecay",
    "Coupled",
    "DecoupledStraightThrough",
    "DisARM",
    "DiscreteInferenceError",
    "DiscretePosterior",
    "DoubleCV",
    "Draw",
    "Enumerate",
    "Estimator",
    "EstimatorInfo",
    "ExponentialDecay",
    "Family",
    "FitResult",
    "FitState",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "GumbelTopK",
    "IndeCateR",
    "LearnedTemperature",
    "LinearDecay",
    "MuProp",
    "OptimalControlVariate",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "ReinMax",
    "Reinforce",
    "ReweightedWakeSleep",
    "Schedule",
    "SoftIndex",
    "SparseGumbelSoftmax",
    "StepDecay",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "SumAndSample",
    "Surrogate",
    "TraceELBO",
    "TraceExpectation",
    "TraceIWELBO",
    "UnorderedSet",
    "available_estimators",
    "diagnostics",
    "fit",
    "gumbel_max",
    "gumbel_top_k",
    "log_prob_ordered",
    "log_prob_unordered",
    "relax",
    "to_inference_data",
    "truncated_gumbel",
]
__version__ = "0.1.0"
