"""Gradient estimators for Pyro programs with discrete latent variables, chosen by an argument of the ELBO."""

from pyro_discrete import diagnostics, distributions, estimators
from pyro_discrete.distributions import *  # noqa: F403
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
from pyro_discrete.elbos.collapse import collapse
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.expectation import TraceExpectation
from pyro_discrete.elbos.iwelbo import TraceIWELBO
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.estimators import *  # noqa: F403
from pyro_discrete.estimators.registry import EstimatorInfo, available_estimators
from pyro_discrete.guides.auto_discrete import AutoDiscreteMeanField
from pyro_discrete.posterior.discrete_posterior import DiscretePosterior
from pyro_discrete.posterior.inference_data import to_inference_data
from pyro_discrete.posterior.label_switching import relabel
from pyro_discrete.relaxations.handler import relax
from pyro_discrete.relaxations.soft_index import SoftIndex
from pyro_discrete.training.fit import FitResult, fit
from pyro_discrete.training.loop import FitState

__all__ = [
    "AutoDiscreteMeanField",
    "CosineDecay",
    "DiscreteInferenceError",
    "DiscretePosterior",
    "EstimatorInfo",
    "ExponentialDecay",
    "FitResult",
    "FitState",
    "GumbelTopK",
    "LearnedTemperature",
    "LinearDecay",
    "PiecewiseConstant",
    "PiecewiseLinear",
    "Schedule",
    "SoftIndex",
    "StepDecay",
    "TraceELBO",
    "TraceExpectation",
    "TraceIWELBO",
    "available_estimators",
    "collapse",
    "diagnostics",
    "distributions",
    "fit",
    "gumbel_max",
    "gumbel_top_k",
    "log_prob_ordered",
    "log_prob_unordered",
    "relabel",
    "relax",
    "to_inference_data",
    "truncated_gumbel",
]
__all__ += distributions.__all__
__all__ += estimators.__all__
__version__ = "0.2.0"
