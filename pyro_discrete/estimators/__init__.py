"""The estimators, one file each."""

from pyro_discrete.estimators.arm import ARM
from pyro_discrete.estimators.arms import ARMS
from pyro_discrete.estimators.base import Draw, Estimator, Family, SiteView, Surrogate
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
    "OptimalControlVariate",
    "ReinMax",
    "Reinforce",
    "ReweightedWakeSleep",
    "SiteView",
    "SparseGumbelSoftmax",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "SumAndSample",
    "Surrogate",
    "UnorderedSet",
]
