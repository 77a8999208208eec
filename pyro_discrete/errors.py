"""What can go wrong, one type a cause: the site, what was given, what is expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "DiscreteInferenceError",
    "EmptyBatchError",
    "EnumerationError",
    "MissingDataError",
    "NonFiniteError",
    "ParticleError",
    "RelaxationError",
    "SettingError",
    "SharedTermsError",
    "SiteMatchError",
    "SiteShapeError",
    "UnknownEstimatorError",
    "UnknownSiteError",
    "UnsupportedObjectiveError",
    "UnsupportedSiteError",
    "first_line",
    "in_a_line",
    "is_whole",
    "near_matches",
]


class DiscreteInferenceError(ValueError):
    """Base of every error that this package raises about a program, its data or its settings."""


class UnknownEstimatorError(DiscreteInferenceError):
    """An estimator was asked for by a name that no estimator has."""


class UnknownSiteError(DiscreteInferenceError):
    """A site name or glob of an estimator dict matches no latent site of the guide."""


class UnsupportedSiteError(DiscreteInferenceError):
    """An estimator (or the `relax` handler) was asked to serve a kind of site that it does not serve."""


class RelaxationError(DiscreteInferenceError):
    """A program does something to a relaxed value that only a hard one allows."""


class UnsupportedObjectiveError(DiscreteInferenceError):
    """An estimator was asked for under an objective on which its gradient would be another's."""


class ParticleError(DiscreteInferenceError):
    """An estimator needs more particles than `num_particles` gives it."""


class SettingError(DiscreteInferenceError):
    """A setting has a value outside its range, such as a temperature of zero."""


class CheckpointError(DiscreteInferenceError):
    """A checkpoint is absent, damaged, or belongs to another run than the one that is to go on with it."""


class SiteMatchError(DiscreteInferenceError):
    """The guide and the model do not have the same latent sites."""


class SiteShapeError(DiscreteInferenceError):
    """A site has a batch dim that no plate declares, or mixes rows (or particles) into another dim."""


class EnumerationError(DiscreteInferenceError):
    """A site cannot be enumerated: its support is infinite or its joint table is too large."""


class SharedTermsError(EnumerationError):
    """An estimator that judges the elements of a plate one by one met terms that they share."""


class EmptyBatchError(DiscreteInferenceError):
    """The program was given a batch without a single datum."""


class MissingDataError(DiscreteInferenceError):
    """An observed value contains NaN."""


class NonFiniteError(DiscreteInferenceError):
    """The loss or a gradient is NaN or infinite."""


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a setting is a whole number, of at least so much.

    >>> is_whole(3), is_whole(3.0), is_whole("3"), is_whole(True), is_whole(1, least=2)
    (True, False, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def near_matches(name: str, known: Iterable[str]) -> str:
    """A sentence that names what `name` may have been meant to be, or all that is known.

    >>> near_matches("reinforc", ["reinforce", "rloo"])
    "Did you mean 'reinforce'?"
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "Known: " + ", ".join(known) + "."


def first_line(error: BaseException) -> str:
    """The first line of what an error says; empty if it says nothing."""
    return next(iter(str(error).splitlines()), "")


def in_a_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}"
