"""Gradient estimators for Pyro programs with discrete latent variables, chosen by an argument of the ELBO."""

from pyro_discrete import diagnostics
from pyro_discrete.diagnostics.inference_data import to_inference_data
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
from pyro_discrete.elbo import TraceELBO
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.estimators.arm import ARM
from pyro_discrete.estimators.arms import ARMS
from pyro_discrete.estimators.base import Draw, Estimator, Family, Surrogate
from pyro_discrete.estimators.bitflip1 import BitFlip1
from pyro_discrete.estimators.carms import CARMS
from pyro_discrete.estimators.coupled import Coupled
from pyro_discrete.estimators.decoupled_straight_through import DecoupledStraightThrough
from pyro_discrete.estimators.disarm import DisARM
from pyro_discrete.estimators.double_cv import DoubleCV
from pyro_discrete.estimators.enumerate import Enumerate
from pyro_discrete.estimators.gapped_straight_through import GappedStraightThrough
from pyro_discrete.estimators.gumbel_rao import GumbelRao
from pyro_discrete.estimators.gumbel_softmax import GumbelSoftmax
from pyro_discrete.estimators.indecater import IndeCateR
from pyro_discrete.estimators.muprop import MuProp
from pyro_discrete.estimators.nvil import NVIL
from pyro_discrete.estimators.optimal_control_variate import ControlVariate, OptimalControlVariate
from pyro_discrete.estimators.rebar import REBAR
from pyro_discrete.estimators.reinforce import Reinforce
from pyro_discrete.estimators.reinmax import ReinMax
from pyro_discrete.estimators.relax_estimator import RELAX
from pyro_discrete.estimators.reweighted_wake_sleep import ReweightedWakeSleep
from pyro_discrete.estimators.rloo import RLOO
from pyro_discrete.estimators.rodeo import RODEO
from pyro_discrete.estimators.sparse_gumbel_softmax import SparseGumbelSoftmax
from pyro_discrete.estimators.straight_through import StraightThrough
from pyro_discrete.estimators.straight_through_gumbel_softmax import StraightThroughGumbelSoftmax
from pyro_discrete.estimators.sum_and_sample import SumAndSample
from pyro_discrete.estimators.unordered_set import UnorderedSet
from pyro_discrete.estimators.vimco import VIMCO
from pyro_discrete.expectation import TraceExpectation
from pyro_discrete.guides.auto_discrete import AutoDiscreteMeanField
from pyro_discrete.iwelbo import TraceIWELBO
from pyro_discrete.posterior import DiscretePosterior
from pyro_discrete.relaxations.relax import relax
from pyro_discrete.relaxations.soft_index import SoftIndex
from pyro_discrete.select import EstimatorInfo, available_estimators
from pyro_discrete.training import FitResult, fit
from pyro_discrete.training_loop import FitState

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
