"""Where a program jumps as a relaxed value moves, or uses it without its slope: seen as its operations run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from pyro_discrete.errors import RelaxationError
from pyro_discrete.programs.pair import SiteMessenger
from pyro_discrete.programs.sites import sample_sites
from pyro_discrete.relaxations.soft_index import SoftBit, SoftIndex, is_soft

__all__ = ["JumpsSeen", "WatchJumps", "refuse_jump", "warn_of_jump"]


Report = Callable[[str, str], None]
"""What is done about a jump: called with the site's name and the operation, with its place in the program."""


def _names(names: str) -> frozenset[str]:
    """These operations, as functions, in place, and as operators of either side."""
    return frozenset(form for n in names.split() for form in (n, f"{n}_", f"__{n}__", f"__r{n}__", f"__i{n}__"))


_READS = _names("item tolist bool int float complex index contains numpy array dlpack equal allclose is_nonzero")
"""What leaves torch with a number."""

_FLAT = _names(
    "round floor ceil trunc fix frac sign sgn floor_divide floordiv remainder mod fmod heaviside copysign hardshrink "
    "threshold mode bernoulli poisson normal binomial fake_quantize_per_tensor_affine"
)
"""What jumps, or draws, and has a slope of zero (or one) all the same."""

_COMPARES = _names(
    "eq ne not_equal lt le gt ge less less_equal greater greater_equal isclose isin logical_and logical_or logical_xor "
    "logical_not and or xor invert any all argmax argmin argsort nonzero argwhere count_nonzero searchsorted bucketize "
    "signbit histc bincount unique unique_consecutive multinomial long int short char byte bool"
)
"""What jumps and has no slope at all."""

_WITHOUT_VALUES = _names(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full "
    "isnan isinf isfinite isneginf isposinf grad format repr str"
)
"""What tells no finite values apart, or shows them to a reader."""

_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, pyro)) + (
    str(Path(__file__).parents[1]),
)

_DISTRIBUTIONS = tuple(f"{library}/distributions/" for library in _LIBRARIES[:2])


class JumpsSeen:
    """Which runs of a program have been watched, and of which sites it was said that it jumps there.

    A program that is known to do the same in every call while its state is the same is watched once in each state, and
    once more in every `AGAIN` runs; any other one in every run.
    """

    AGAIN: ClassVar[int] = 64

    def __init__(self) -> None:
        self.told: set[str] = set()
        self._runs: dict[Hashable, tuple[object, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches anew: runs are known by objects of this process."""
        return {**self.__dict__, "_runs": {}}

    def due(self, state: object | None, run: Hashable = ()) -> bool:
        """Whether a run is to be watched: `state` stands for the program's, None if it is not known; `run` for which of
        its runs it is."""
        known = None if state is None else self._runs.get((id(state), run))
        if known is None:
            return True
        self._runs[id(state), run] = (state, known[1] + 1)
        return known[1] % self.AGAIN == 0

    def saw(self, state: object | None, run: Hashable = ()) -> None:
        """Such a run was watched."""
        if state is not None:
            if len(self._runs) > 4096:
                self._runs.clear()
            self._runs.setdefault((id(state), run), (state, 1))  # held, so that its address stays its own


class WatchJumps(SiteMessenger):
    """Follows the relaxed values of a run, while the program's own code runs, and reports the first jump of each.

    To go around guide and model first of all handlers. A jump is an operation after which the result does not move as
    a relaxed value does, though it is computed from it: a comparison, a conversion to integers, `floor`, `round`,
    `sign`, the indices of `max`, `topk` and `sort`, a number that Python reads, a draw past `pyro.sample`. With
    `slopes`, so is what keeps the value and drops its slope: `detach`, `no_grad`. Kinks (`relu`, `abs`, `clamp`, the
    values of `max`) are none, nor is what a soft index or bit makes soft (`z == 1`, `table[z.long()]`).

    Which values are relaxed is said by `watched(name)`: what to do about a jump of that site, or None. Whether another
    tensor is computed from one is read off the graph of its gradient, and only where an operation could be a jump.

    Source of what is exempt: argument and support validation (it compares, and only raises), and what the forward of a
    custom autograd function does smoothly, as it brings its slope along.
    """

    def __init__(self, watched: Callable[[str], Report | None], slopes: bool = True) -> None:
        super().__init__()
        self.watched: Callable[[str], Report | None] = watched
        self.slopes: bool = slopes
        self._reports: dict[str, Report] = {}
        self._roots: dict[Any, str] = {}
        self._values: list[Tensor] = []
        self._clear: set[Any] = set()
        self._indices: dict[int, tuple[Tensor, str, str]] = {}
        self._mode = _Operations(self)
        self._running = False
        self._inside = 0

    def __enter__(self) -> WatchJumps:
        super().__enter__()
        self._inside = 0
        self._start()
        return self

    def __exit__(self, *error: Any) -> Any:
        self._stop()
        return super().__exit__(*error)

    def _pyro_sample(self, msg: Any) -> None:
        self._inside += 1
        self._stop()

    def _pyro_post_sample(self, msg: Any) -> None:
        self._inside -= 1
        report = self.watched(msg["name"]) if not msg["is_observed"] and torch.is_tensor(msg["value"]) else None
        if report is not None and msg["name"] not in self._reports:
            self.mark(msg["name"], msg["value"], report)
        self._start()

    @property
    def followed(self) -> bool:
        """Whether there were relaxed values to follow."""
        return bool(self._roots)

    def mark(self, name: str, value: Tensor, report: Report) -> None:
        """From here on, what is computed from this value of the site is followed."""
        root = _origin(value)
        if root is not None:
            self._reports[name], self._roots[root] = report, name
            self._values.append(value)
            self._clear.clear()

    @contextmanager
    def scoring(self, *traces: Trace) -> Iterator[None]:
        """Watch the terms of these runs too, where a distribution may jump: the user's own, and those with edges."""
        if not self._roots or not any(_may_jump(m["fn"]) for t in traces for m in sample_sites(t).values()):
            yield
            return
        self._start()
        try:
            yield
        finally:
            self._stop()

    def _start(self) -> None:
        if self._inside or not self._roots:
            return
        if not self._running:
            self._mode.__enter__()
            self._running = True
        self._mode.paused = False

    def _stop(self) -> None:
        if not self._running:
            return
        self._mode.paused = True
        if _get_current_function_mode() is self._mode:  # else it is under one of the program's own, such as a device
            self._mode.__exit__(None, None, None)
            self._running = False

    def judge(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Report an operation that is a jump; to be called where its result has no slope, or may have a wrong one."""
        several = isinstance(result, tuple | list)
        if type(result) is torch.Size:
            return
        if self._indices:
            self.judge_indices(args, kwargs)
        name = _name(func)
        if name in _WITHOUT_VALUES:
            return
        inputs = [value for value in _tensors((*args, *kwargs.values())) if _moves(value)]
        if not inputs or _is_exempt():
            return
        jumps = name in _READS or name in _FLAT or name in _COMPARES or _rounds(kwargs)
        if several and not jumps:
            self._keep_indices(name, inputs, result)
            return
        jumps = jumps or not (isinstance(result, Tensor) and result.is_floating_point())
        if not jumps and (not self.slopes or _in_custom_function()):
            return
        site = self._site(inputs)
        if site is not None:
            self._report(
                site, f"{_shown(name, func)} of it" if jumps else f"it without its slope ({_shown(name, func)})"
            )

    @property
    def has_indices(self) -> bool:
        """Whether there are any whose use would be a jump."""
        return bool(self._indices)

    def judge_indices(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Report an operation on the indices of relaxed values that were sorted."""
        for value in _tensors((*args, *kwargs.values())):
            if id(value) in self._indices:
                _, site, made_by = self._indices[id(value)]
                self._report(site, f"the indices of {made_by}()")

    def _keep_indices(self, name: str, inputs: list[Tensor], result: Any) -> None:
        """`topk`, `sort`, `max` and the like: their values have a kink, their indices jump, if they are used."""
        indices = [v for v in result if isinstance(v, Tensor) and not v.is_floating_point() and not is_soft(v)]
        site = self._site(inputs) if indices else None
        if site is not None:
            self._indices.update({id(v): (v, site, name) for v in indices})

    def _report(self, site: str, what: str) -> None:
        self._reports[site](site, what + _place())

    def _site(self, tensors: list[Tensor]) -> str | None:
        """The nearest watched site that one of these tensors is computed from."""
        seen, queue = set(), [node for node in map(_origin, tensors) if node is not None]
        while queue:
            node = queue.pop(0)
            if node in seen or node in self._clear:
                continue
            if node in self._roots:
                return self._roots[node]
            seen.add(node)
            if not isinstance(node, Tensor):
                queue += [_leaf(each) for each, _ in node.next_functions if each is not None]
        self._clear |= seen
        return None


class _Operations(TorchFunctionMode):
    """Lets by at once what has a slope."""

    def __init__(self, watch: WatchJumps) -> None:
        super().__init__()
        self.watch, self.paused = watch, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if self.paused:
            return result
        if isinstance(result, Tensor):
            if type(result) is not Tensor and is_soft(result):
                fine = _moves(result)
            else:
                fine = result.requires_grad and func.__name__ not in _FLAT and not (kwargs and _rounds(kwargs))
            if fine:
                if self.watch.has_indices:
                    self.watch.judge_indices(args, kwargs or {})
                return result
        elif not isinstance(result, tuple | list) and func.__name__ not in _READS:
            return result
        self.watch.judge(func, args, kwargs or {}, result)
        return result


def refuse_jump(estimator: str) -> Report:
    """For an estimator that is unbiased only where there are no jumps."""

    def report(site: str, what: str) -> None:
        raise RelaxationError(
            f"Estimator {estimator!r} moves the relaxed value of site {site!r}, and is unbiased only if the program is "
            f"a continuous function of it, whose slope autograd has; but the program uses {what}. Kinks (relu, abs, "
            "clamp, the values of max) do no harm, and z == 1, z.bool() and z.long() of a Bernoulli site are soft. "
            "Write it in such terms, or choose an estimator of hard draws for the site ('disarm' for bits, 'rloo', "
            "'nvil', RELAX(black_box=True))."
        )

    return report


def warn_of_jump(estimator: str, told: set[str]) -> Report:
    """For a relaxation, which claims nothing: one warning for each site; `told` keeps of which there was one."""

    def report(site: str, what: str) -> None:
        if site not in told:
            told.add(site)
            warnings.warn(
                f"Estimator {estimator!r} gives site {site!r} a relaxed value, and the program uses {what}: no "
                "gradient passes there, and what was computed before is trained by the other terms alone. z == 1, "
                "z.bool() and z.long() of a Bernoulli site are soft; or choose an estimator of hard draws for the site "
                "('rloo', 'nvil').",
                stacklevel=2,
            )

    return report


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def _shown(name: str, func: Any) -> str:
    bare = name.strip("_") if name.startswith("__") else name
    return f".{bare}" if getattr(func, "__name__", "") == "__get__" else f"{bare}()"


def _rounds(kwargs: Mapping[str, Any]) -> bool:
    """What jumps by its settings."""
    return kwargs.get("rounding_mode") is not None or kwargs.get("hard") is True or kwargs.get("mode") == "nearest"


def _plain(value: Tensor) -> Tensor:
    """What carries the slope of a soft value, or of one that is mapped over."""
    if isinstance(value, SoftIndex):
        value = value._mean if isinstance(value, SoftBit) else value.weights
    while _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value


def _moves(value: Tensor) -> bool:
    return _plain(value).requires_grad


def _origin(value: Tensor) -> Any:
    """The node of the graph that made a value; a leaf is its own; None without slope."""
    value = _plain(value)
    return value.grad_fn if value.grad_fn is not None else value if value.requires_grad else None


def _leaf(node: Any) -> Any:
    return getattr(node, "variable", node)


def _may_jump(fn: Any) -> bool:
    """Whether a distribution's log-probability may jump as its parameters move."""
    while fn is not None:
        kind = type(fn)
        if kind.__module__.partition(".")[0] not in ("torch", "pyro", "pyro_discrete") or "Uniform" in kind.__name__:
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _frames() -> Iterator[FrameType]:
    """The calls around, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_exempt() -> bool:
    """Whether it is a distribution that validates, in a constraint or before it is made, or a line of this package."""
    distribution = False
    for frame in _frames():
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file == __file__:
            continue
        if file.startswith(_DISTRIBUTIONS):
            distribution = True
            if name in ("__init__", "_validate_sample") or file.endswith("constraints.py"):
                return True
        elif file.startswith(_LIBRARIES[2]):
            return not distribution
        elif not file.startswith(_LIBRARIES):
            return False
    return False


def _in_custom_function() -> bool:
    for frame in _frames():
        if frame.f_code.co_name == "forward" and any(isinstance(v, FunctionCtx) for v in frame.f_locals.values()):
            return True
    return False


def _place() -> str:
    for frame in _frames():
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return f" at {Path(file).name}:{frame.f_lineno}"
    return ""
