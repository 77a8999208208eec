"""The estimators, one file each, in folders by kind; they know torch, and nothing of Pyro."""

from pyro_discrete.estimators.base import Draw, Estimator, ScoredDraw, SiteView, Surrogate
from pyro_discrete.estimators.coupled.arm import ARM
from pyro_discrete.estimators.coupled.arms import ARMS
from pyro_discrete.estimators.coupled.bitflip1 import BitFlip1
from pyro_discrete.estimators.coupled.carms import CARMS
from pyro_discrete.estimators.coupled.coupled import Coupled
from pyro_discrete.estimators.coupled.disarm import DisARM
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
from pyro_discrete.families import Family, Need

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
    "BitFlip1",
    "ControlVariate",
    "Coupled",
    "DecoupledStraightThrough",
    "DisARM",
    "DoubleCV",
    "Draw",
    "Enumerate",
    "Estimator",
    "Family",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "IndeCateR",
    "MuProp",
    "Need",
    "OptimalControlVariate",
    "ReinMax",
    "Reinforce",
    "ReweightedWakeSleep",
    "ScoredDraw",
    "SiteView",
    "SparseGumbelSoftmax",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "SumAndSample",
    "Surrogate",
    "UnorderedSet",
]
