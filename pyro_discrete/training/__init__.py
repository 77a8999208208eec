"""Training a pair: one loop with one optimiser, which can stop at any step and go on bit for bit."""

from pyro_discrete.training.fit import FitResult, fit
from pyro_discrete.training.loop import FitState

__all__ = ["FitResult", "FitState", "fit"]
