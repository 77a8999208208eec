"""The shape of a tail of importance weights."""

from __future__ import annotations

import numpy as np

__all__ = [
    "k_hat",
]


LEAST_DRAWS = 5
"""The largest weight is a bound that the weights reach, and no tail, if so many draws at least have it."""

EVEN = 3.0
"""Weights of which the largest is at most so many times their mean have no tail that could matter."""


def k_hat(log_weights: np.ndarray) -> np.ndarray:
    """The Pareto k-hat along the last axis, `[...]`; 0 where weights have no tail for a Pareto distribution to fit.

    That is where the largest weight is drawn again and again (a guide that is the posterior itself, or whose few
    discrete values make few weights), or is at most three times the mean. What a fit says there is rounding.
    """
    fitted = _fitted(log_weights)
    largest = log_weights.max(-1, keepdims=True)
    rounding = 1e-4 + 1e-6 * np.abs(largest)
    reached = (log_weights > largest - rounding).sum(-1) >= LEAST_DRAWS
    even = np.exp(log_weights - largest).mean(-1) >= 1 / EVEN
    return np.where((reached | even) & ~(fitted < 0.7), 0.0, fitted)


def _fitted(log_weights: np.ndarray) -> np.ndarray:
    """K-hat along the last axis, by whichever ArviZ is installed; infinity where a tail cannot be fitted."""
    import arviz as az

    if hasattr(az, "psislw"):
        return np.asarray(az.psislw(log_weights)[1])
    # version 1, where the function takes log-likelihoods, which leave-one-out inverts
    from arviz_stats.base import array_stats  # pyright: ignore[reportMissingImports]

    def fitted(weights: np.ndarray) -> float:
        try:
            found = float(array_stats.psislw(-weights)[1])
        except ValueError:  # all values of the tail are the same
            return np.inf
        return np.inf if np.isnan(found) else found

    return np.apply_along_axis(fitted, -1, log_weights)
