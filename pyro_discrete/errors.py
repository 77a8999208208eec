"""What can go wrong, one type a cause: the site, what was given, what is expected, what to do."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

__all__ = [
    "LIBRARIES",
    "CheckpointError",
    "DiscreteInferenceError",
    "EmptyBatchError",
    "EnumerationError",
    "MissingDataError",
    "NonFiniteError",
    "ParticleError",
    "RanksError",
    "RelaxationError",
    "SettingError",
    "SharedTermsError",
    "SiteMatchError",
    "SiteShapeError",
    "UnknownEstimatorError",
    "UnknownSiteError",
    "UnsupportedObjectiveError",
    "UnsupportedSiteError",
    "WriteError",
    "first_line",
    "in_a_line",
    "innermost_line",
    "is_number",
    "is_whole",
    "near_matches",
    "refuses_unknown_keywords",
    "shown",
    "why_not_at_once",
]

P = ParamSpec("P")
R = TypeVar("R")


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


class WriteError(CheckpointError):
    """A file of a run cannot be written: the disk is full, or the folder is absent or read-only."""


class SiteMatchError(DiscreteInferenceError):
    """The guide and the model do not have the same latent sites."""


class SiteShapeError(DiscreteInferenceError):
    """A site has a batch dim that no plate declares, or a shape that does not go with what it is used with."""


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


class RanksError(DiscreteInferenceError):
    """Processes that train together differ in what they train, or one of them failed or is gone."""


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a setting is a whole number, of at least so much.

    >>> is_whole(3), is_whole(3.0), is_whole("3"), is_whole(True), is_whole(1, least=2)
    (True, False, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object, *, above: float = -math.inf, least: float = -math.inf) -> bool:
    """Whether a setting is a finite number, greater than `above` and of at least `least`.

    >>> is_number(0.5), is_number(1, above=1), is_number(0, least=0), is_number(math.nan), is_number("1")
    (True, False, True, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    number = float(value)
    return math.isfinite(number) and number > above and number >= least


def shown(value: object, most: int = 80) -> str:
    """What was given, for a message: data by their kind and shape, anything else as Python writes it, cut short.

    >>> shown(2.5), shown("nvill"), shown([0] * 1000)[:9], len(shown([0] * 1000)) <= 80
    ('2.5', "'nvill'", '[0, 0, 0,', True)
    """
    kind, shape = type(value), getattr(value, "shape", None)
    if shape is not None and not isinstance(value, type):
        name = {"Tensor": "a tensor", "Parameter": "a tensor", "ndarray": "a NumPy array"}.get(kind.__name__)
        try:
            return f"{name or 'a ' + kind.__name__} of shape {tuple(shape)}"
        except TypeError:
            return f"a {kind.__name__}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # what was given may be anything
        text = f"a {kind.__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


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


def refuses_unknown_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The function, or a class's `__init__`, with a `SettingError` for arguments that it does not have, or lacks.

    >>> @refuses_unknown_keywords
    ... def train(data, *, steps=1): ...
    >>> train([], step=3)
    Traceback (most recent call last):
    ...
    pyro_discrete.errors.SettingError: train has no argument 'step'. Did you mean 'steps'?
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            name = function.__name__ if function.__name__ != "__init__" else type(args[0]).__name__
            raise SettingError(_misfit(name, signature, kwargs, error)) from None
        return function(*args, **kwargs)

    return checked


def _misfit(name: str, signature: inspect.Signature, kwargs: dict[str, Any], error: TypeError) -> str:
    """Why the arguments of a call do not fit the signature."""
    known = [p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    known = [each for each in known if each != "self"]
    unknown = [each for each in kwargs if each not in known]
    if unknown:
        return (
            f"{name} has no argument {unknown[0]!r}. {near_matches(unknown[0], known) if known else 'It takes none.'}"
        )
    places = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in known]
    return f"{name}: {error}; by place it takes {', '.join(places)}, and all else by name."


def _folder(library: str) -> str:
    """Where a library stands, found without loading it."""
    spec = find_spec(library)
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else library


LIBRARIES: tuple[str, ...] = (_folder("torch"), _folder("pyro"), str(Path(__file__).parent))
"""Where code stands that is not the user's: folders of torch, Pyro and this package."""


ONE_VALUE = (
    "converted to Scalar",
    "Boolean value of Tensor with more than one value",
    "only one element tensors can be converted",
    "only integer tensors of a single element",
    "only length-1 arrays",
    "only 0-dimensional arrays",
)
"""What torch and NumPy say where Python wants one value and there are several."""


def why_not_at_once(error: BaseException) -> str:
    """What it means that a run over several values beside each other failed so."""
    frames = traceback.extract_tb(error.__traceback__)
    if error.__cause__ is not None:  # Pyro adds the sites' shapes
        frames += traceback.extract_tb(error.__cause__.__traceback__)
    place = innermost_line(frames)
    if any(said in str(error) for said in ONE_VALUE):
        return f"Python takes a draw for one value{place}, by .item(), if or an index"
    return in_a_line(error) + place


def innermost_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """Where that is in the user's own code, as " at FILE:LINE"; empty if it is in none."""
    for frame in reversed(list(frames)):
        if not frame.filename.startswith(LIBRARIES) and not frame.filename.startswith("<"):
            return f" at {Path(frame.filename).name}:{frame.lineno}"
    return ""
