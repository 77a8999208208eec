"""Control variates: what is subtracted from a learning signal without changing the gradient's mean."""

from pyro_discrete.control_variates.baseline import LearnedBaseline, SelfTrainedBaseline, baseline_network
from pyro_discrete.control_variates.leave_one_out import leave_one_out
from pyro_discrete.control_variates.moments import RunningMoments
from pyro_discrete.control_variates.optimal_coefficient import OptimalCoefficient, least_variance

__all__ = [
    "LearnedBaseline",
    "OptimalCoefficient",
    "RunningMoments",
    "SelfTrainedBaseline",
    "baseline_network",
    "least_variance",
    "leave_one_out",
]
