"""What an estimator, or a trained pair, is worth: exact answers, comparisons, and the way into ArviZ."""

from pyro_discrete.diagnostics.comparison import compare_estimators
from pyro_discrete.diagnostics.comparison_report import EstimatorComparison
from pyro_discrete.diagnostics.event_files import TensorBoard
from pyro_discrete.diagnostics.exact import Exact, Oracle, exact_gradient, exact_loss
from pyro_discrete.diagnostics.monitoring import Monitor
from pyro_discrete.diagnostics.structure_picture import picture_structure
from pyro_discrete.posterior.inference_data import pareto_k, to_inference_data
from pyro_discrete.posterior.marginals_picture import picture_draws

__all__ = [
    "EstimatorComparison",
    "Exact",
    "Monitor",
    "Oracle",
    "TensorBoard",
    "compare_estimators",
    "exact_gradient",
    "exact_loss",
    "pareto_k",
    "picture_draws",
    "picture_structure",
    "to_inference_data",
]
