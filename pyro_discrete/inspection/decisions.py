"""What a program decides by, and which branch it takes: what a trial has shown holds for the branches that it took.

Where Python sees nothing of a tensor, there is no other branch to take by it; where its own state is the same, none by
that. Where either may differ, a run shows which operations the program makes now.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_discrete.inspection.dependencies import MarkDraws
from pyro_discrete.inspection.provenance import ARGUMENTS, FLOATS, HELD, Provenance, read_by_the_program
from pyro_discrete.inspection.wiring import without_floats
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair
from pyro_discrete.programs.python_state import PythonState, SameObject, UnknownStateError, described

__all__ = ["BranchOfCall", "contents", "decided_by", "decisions", "draws_among"]

UNFOLLOWED = "a run that could not be followed"
"""What stands for all draws where the run that was to show what Python sees has failed."""

READ = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__))
"""Ways of a tensor into Python that pass the dispatcher by."""


def decided_by(pair: Pair, given: Collection[str] = ()) -> frozenset[str]:
    """The latent sites whose draws Python sees in a run of the pair; `ARGUMENTS` if it sees a value of theirs (`FLOATS`
    where these are no tensors), and `HELD` if the program's own code sees one of other tensors (parameters, buffers, data that it closes over).

    A draw that is made given an argument counts as both. `given`: sites that handlers give values, which count as well.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Bernoulli(0.4))
    ...     pyro.sample("x", dist.Normal(1.0 if z.item() else 0.0, 1.0), obs=x)
    >>> sorted(decided_by(Pair(model, lambda x: None, (torch.tensor(0.3),), {})))
    ['z']
    """
    lifted, numbers = without_floats(pair)
    seen = _seen(lifted, numbers, given)
    if not numbers or UNFOLLOWED not in seen:
        return seen
    return _seen(pair, (), given) | {FLOATS}  # it does not run with tensors in their place


def _seen(pair: Pair, numbers: Collection[Tensor], given: Collection[str]) -> frozenset[str]:
    provenance = Provenance()
    unchanged, mark = kept_state(pair.model, pair.guide), MarkDraws(provenance, given)
    try:
        with on_trial(), unchanged, pyro.validation_enabled(False), provenance, mark:
            for value in tree_leaves((pair.args, dict(pair.kwargs))):
                if isinstance(value, Tensor):
                    provenance.mark(value, [FLOATS if any(value is n for n in numbers) else ARGUMENTS])
            trace_pair(pair, KeepSubsamples())
    except Exception:
        return frozenset((*provenance.seen_by_python, ARGUMENTS, FLOATS, HELD, UNFOLLOWED))
    return frozenset(provenance.seen_by_python)


def draws_among(seen: Collection[str]) -> frozenset[str]:
    """The draws among what Python sees."""
    return frozenset(seen) - {ARGUMENTS, FLOATS, HELD}


def decisions(pair: Pair) -> str:
    """A digest of what one run of the pair does: two runs of the same one take one branch.

    It is of the operations in their order, with the whole numbers, flags and words among their arguments, and which of
    the others are 0 or 1; and of the whole numbers and flags that the program's own code reads from tensors. What a
    distribution does to draw is left out: a rejection sampler goes on for as long as its numbers want it.
    """
    run = _Run()
    with on_trial(), kept_state(pair.model, pair.guide), pyro.validation_enabled(False), torch.no_grad():
        try:
            with _Ways(run), _Operations(run), _Draws(run):
                trace_pair(pair, KeepSubsamples())
        except Exception as error:
            run.note(type(error).__name__)
    return run.digest.hexdigest()


class _Run:
    """What is noted of a run."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.drawing = False

    def note(self, *what: Any) -> None:
        if not self.drawing:
            self.digest.update(repr(what).encode())


class _Draws(Messenger):
    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def _pyro_sample(self, msg: Any) -> None:
        self.run.drawing = True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.run.drawing = False


class _Operations(TorchDispatchMode):
    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.run.note(func.name(), *_constants(args), *_constants((kwargs or {}).values()))
        if torch.Tag.data_dependent_output in func.tags and isinstance(result, int) and read_by_the_program():
            self.run.note(result)
        return result


class _Ways(TorchFunctionMode):
    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READ and not args[0].is_floating_point() and read_by_the_program():
            self.run.note(contents(args[0].detach()))
        return func(*args, **(kwargs or {}))


def _constants(arguments: Iterable[Any]) -> Iterator[Any]:
    """The numbers and words among an operation's arguments; of numbers that are not whole, which are 0 or 1."""
    for value in arguments:
        if isinstance(value, bool | int | str):
            yield value
        elif isinstance(value, float):
            yield _class_of(value)
        elif isinstance(value, list | tuple):
            yield from _constants(value)


def _class_of(number: float) -> str:
    return str(number) if number in (0.0, 1.0) or not math.isfinite(number) else "another number"


def contents(*values: Any) -> str:
    """A digest of the tensors in these."""
    digest = hashlib.blake2b(digest_size=16)
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout is torch.strided:
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            plain = value.detach().resolve_conj().cpu().contiguous()
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def _hashable(description: Any) -> Any:
    """What `described` says, to be remembered. Raises `UnknownStateError` for what would be kept alive by that."""
    if isinstance(description, list | tuple):
        return tuple(map(_hashable, description))
    if isinstance(description, SameObject) and not callable(description.value):
        raise UnknownStateError(f"an argument is of type {type(description.value).__name__}, which cannot be watched")
    return description


MOST_STATES, MOST_CONTENTS = 64, 4096
"""So many states of a program are told apart; of so many contents it is remembered which branch they lead to."""


class BranchOfCall:
    """Which branch each call of a program takes.

    What may decide is looked at in every call: the contents of tensors among the arguments, if Python sees any; numbers,
    flags, words and objects among them (of floats that Python only computes with, whether they are 0 or 1); and whatever else the program's code can see in Python
    (`PythonState`). What has been met is known. What is new is run once, without gradients: the operations of that run
    are the branch (`decisions`). It is so in every call, for a `reason`, where the program's own code reads tensors that
    it holds, or where it cannot be told whether its state has changed.

    Where Python sees draws, each run takes a branch of its own, and is looked at by itself: then flags and words alone
    count here. `programs`: what the pair is made of, in the place of its model and guide.
    """

    def __init__(self, seen: Collection[str], programs: Iterable[Any] = ()) -> None:
        self.seen, self.reason = frozenset(seen), ""
        self._programs = [*programs]
        self._states: list[PythonState] = []
        self._of: OrderedDict[Any, str] = OrderedDict()
        self.in_draws = bool(draws_among(seen))
        if HELD in self.seen and not self.in_draws:
            self.reason = "Python reads tensors that it holds"

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks anew."""
        return {**self.__dict__, "_states": [], "_of": OrderedDict()}

    def of(self, pair: Pair) -> Any:
        """The branch that a call takes: equal for calls that take the same one."""
        given = pair.args, dict(pair.kwargs)
        if self.in_draws:
            return tuple(v for v in tree_leaves(given) if isinstance(v, bool | str))
        known = None if self.reason else self._met(pair, given)
        if known is None:
            return decisions(pair)
        if known not in self._of:
            self._of[known] = decisions(pair)
            if len(self._of) > MOST_CONTENTS:
                self._of.popitem(last=False)
        return self._of[known]

    def _met(self, pair: Pair, given: Any) -> Any:
        """All that may decide in this call; None where that cannot be told."""
        try:
            floats = tree_map(lambda v: v if FLOATS in self.seen or type(v) is not float else _class_of(v), given)
            arguments = _hashable(described(floats, measured=False))
        except UnknownStateError as error:
            self.reason = str(error)
            return None
        tensors = contents(given) if ARGUMENTS in self.seen else ""
        for place, state in enumerate(self._states):
            if state.holds():
                return arguments, tensors, place
        state = PythonState(self._programs or (pair.model, pair.guide), tree_leaves(given))
        if state.unknown or len(self._states) >= MOST_STATES:
            self.reason = state.unknown or f"what it can see has changed more than {MOST_STATES} times"
            return None
        self._states.append(state)
        return arguments, tensors, len(self._states) - 1
