"""What a program decides by, and which branch it takes: what a trial has shown holds for the branches that it took.

Where Python sees nothing of a tensor, there is no other branch to take by it; where its own state is the same, none by
that. Where either may differ, a run shows which operations the program makes now.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pyro_discrete.inspection.dependencies import MarkDraws
from pyro_discrete.inspection.provenance import ARGUMENTS, FLOATS, HELD, DispatchMode, Provenance, Reads
from pyro_discrete.inspection.trial import Run, Trial, trial_of
from pyro_discrete.inspection.wiring import without_floats
from pyro_discrete.operations import kind_of
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import Around, KeepSubsamples, Pair, SiteMessenger, on_trial, trace_pair
from pyro_discrete.programs.python_state import PythonState, SameObject, UnknownStateError, described

__all__ = [
    "FirstLook",
    "WhatDecides",
    "contents",
    "decided_at_once",
    "decided_by",
    "decisions",
    "draws_among",
    "first_look",
    "noted",
]

UNFOLLOWED = "a run that could not be followed"
"""What stands for all draws where the run that was to show what Python sees has failed."""


def decided_by(pair: Pair, given: Collection[str] = ()) -> frozenset[str]:
    """The latent sites whose draws Python sees in a run of the pair; `ARGUMENTS` if it sees a value of theirs (`FLOATS`
    where these are no tensors), and `HELD` if the program's own code sees one of other tensors (parameters, buffers,
    data that it closes over).

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


def decided_at_once(pair: Pair, values: Around, sites: Collection[str], given: Collection[str] = ()) -> frozenset[str]:
    """The draws alone, in a run in which `sites` of the model have all of their values at once, by `values` around it.

    These are the same in every run, so that reading them decides nothing: `table[z]` reads a single z, whose law may
    hang on a draw, and none where there are many. Where there is no such run, it is as `decided_by` has it.
    """
    seen = _seen(replace(pair, model=values(pair.model)), (), given)
    return draws_among(decided_by(pair, given) if UNFOLLOWED in seen else seen) - frozenset(sites)


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


class FirstLook(NamedTuple):
    """What Python sees in a run of a pair (`decided_by`); what the run does (`decisions`), if the same one shows it;
    and the run itself, if it may stand for one that nobody looks at."""

    seen: frozenset[str]
    done: tuple[Any, ...] | None
    trial: Trial | None


def first_look(pair: Pair, around: Callable[[Pair], Pair] = lambda pair: pair) -> FirstLook:
    """A first run of a pair, `around` which the handlers of its steps are.

    Where Python reads nothing at all, as in most programs, nothing is followed to see that. Where all that is drawn is
    drawn by distributions of torch's and Pyro's, the run itself is not looked at either, but one further of the same
    draws, which the plan wants anyhow: at numbers of no special value, where a program that reads none does the same.
    Floats among the arguments are tensors in a run that is looked at, so that other operations are made than in the
    runs to come; and of a run that leaves modules otherwise than they were, nothing is taken but what it did.
    """
    lifted, numbers = without_floats(pair)
    try:
        found = None if numbers or pair.guide_runs_model else _looked_at_again(pair, around)
    except Exception:
        return FirstLook(decided_by(pair), None, None)
    if found is not None:
        return found
    reads, parts = Reads(), list[Any]()
    try:
        trial, undisturbed = _note(lifted, parts, reads, around)
    except Exception:
        return FirstLook(decided_by(pair), None, None)
    kept = trial if undisturbed and not numbers else None
    if reads.any:
        return FirstLook(decided_by(pair), None, kept)
    return FirstLook(frozenset(), None if numbers else tuple(parts), kept)


def _looked_at_again(pair: Pair, around: Callable[[Pair], Pair]) -> FirstLook | None:
    """What a further run of the draws of one that nothing looks at shows, at numbers of no special value where the pair
    has any; None where it does not run there, or is another one, or where they do not leave all modules as they were,
    or draw what only a look would tell about. Raises what the first one does."""
    subsamples, reads, parts = KeepSubsamples(), Reads(), list[Any]()
    with on_trial() as once_more, torch.enable_grad():
        with kept_state(pair.model, pair.guide) as state:
            trial = trial_of(*trace_pair(around(pair), subsamples), subsamples)
        if state.changed or not all(_drawn_by_a_library(msg["fn"]) for msg in trial.latent.values()):
            return None
        once_more()
        try:
            generic = next(iter(trial.generic_numbers(pair, ())), None)
            with kept_state(pair.model, pair.guide) as state, generic or nullcontext(), reads:
                traces = trace_pair(around(noted(pair, parts.append, reads)), subsamples, trial.values)
        except Exception:
            return None
    if reads.any:
        return FirstLook(decided_by(pair), None, trial)
    own = trial.guide_trace, trial.model_trace
    if state.changed or any(a.nodes.keys() != b.nodes.keys() for a, b in zip(own, traces, strict=True)):
        return None
    kept = trial if generic is None else replace(trial, generic=(generic, Run(*traces)))
    return FirstLook(frozenset(), tuple(parts), kept)


_LIBRARIES = ("torch.distributions.", "pyro.distributions.", "pyro_discrete.")


def _drawn_by_a_library(fn: Any) -> bool:
    """Whether a distribution, with all that it is made of, is one of torch's, Pyro's or this package's: these read
    numbers to draw by them, and for nothing else."""
    held = vars(fn)
    if not type(fn).__module__.startswith(_LIBRARIES) or "sample" in held or isinstance(fn, torch.nn.Module):
        return False
    inside = (*held.values(), *held.get("transforms", ()))
    return all(_drawn_by_a_library(part) for part in inside if isinstance(part, _DRAWING))


_DRAWING = (torch.distributions.Distribution, torch.distributions.Transform)


def decisions(pair: Pair) -> tuple[Any, ...]:
    """Digests of what one run of the pair does: two runs of the same ones take one branch (`Noted`)."""
    parts: list[Any] = []
    try:
        _note(pair, parts)
    except Exception as error:
        parts.append(type(error).__name__)
    return tuple(parts)


def _note(
    pair: Pair,
    parts: list[Any],
    reads: Reads | None = None,
    around: Callable[[Pair], Pair] = lambda pair: pair,
) -> tuple[Trial, bool]:
    """A run as in training, and whether it left all modules as they were."""
    subsamples = KeepSubsamples()
    with kept_state(pair.model, pair.guide) as state, on_trial(), torch.enable_grad(), reads or nullcontext():
        traces = trace_pair(around(noted(pair, parts.append, reads)), subsamples)
    return trial_of(*traces, subsamples), not state.changed


def noted(pair: Pair, told: Callable[[int], None], reads: Reads | None = None) -> Pair:
    """The pair, each run of whose programs tells a digest of what it does, and `reads` of its operations."""
    return replace(pair, guide=Noted(told, reads)(pair.guide), model=Noted(told, reads)(pair.model))


class Noted(SiteMessenger):
    """Around a program, tells a digest of what each run of it does.

    It is of the operations in their order, with the whole numbers, flags and words among their arguments but for sizes,
    which of the others are 0 or 1, and the whole numbers that Python makes tensors of. What is done to draw is left
    out, as a rejection sampler goes on for as long as its numbers want it; and so is what is done to make a parameter,
    as only the first run does that.
    """

    def __init__(self, told: Callable[[int], None], reads: Reads | None = None) -> None:
        super().__init__()
        self.told = told
        self.reads = reads
        self._done: list[Any] = []
        self.drawing: bool = False
        self._mode = _Operations(self)

    def note(self, *what: Any) -> None:
        """Something that the program does."""
        if not self.drawing:
            self._done.append(what)

    def __enter__(self) -> Messenger:
        self._done, self.drawing = [], False
        entered = super().__enter__()
        self._mode.__enter__()
        return entered

    def __exit__(self, *error: Any) -> Any:
        self._mode.__exit__(*error)
        left = super().__exit__(*error)
        if error[0] is None:
            self.told(hash(tuple(self._done)))
        return left

    def _process_message(self, msg: Any) -> None:
        self.drawing = msg["type"] in ("sample", "param")

    def _postprocess_message(self, msg: Any) -> None:
        self.drawing = False


class _Operations(DispatchMode):
    def __init__(self, run: Noted) -> None:
        super().__init__()
        self.run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run, facts = self.run, _facts(func)
        if run.reads is not None and facts.looks:
            run.reads.saw(func, args)
        result = func(*args, **kwargs) if kwargs else func(*args)
        if facts.detaches:  # with gradients alone, by what saves its result
            return result
        if not run.drawing:
            plain = []
            for name, value in zip(facts.names, args, strict=False):
                if value is not None and type(value) is not Tensor:
                    plain += _constants(name, value)
            for name, value in kwargs.items() if kwargs else ():
                plain += _constants(name, value)
            run.note(facts.told, *plain)
        if facts.lifts and not result.is_floating_point():
            run.note(contents(result))  # an index that Python made
        return result


class _Facts(NamedTuple):
    """Of an operation: its hash, the names of its arguments, and whether a value may be looked at by it."""

    told: int
    names: tuple[str, ...]
    looks: bool
    detaches: bool
    lifts: bool


_FACTS: dict[int, tuple[Any, _Facts]] = {}


def _facts(func: Any) -> _Facts:
    known = _FACTS.get(id(func))
    if known is None:
        kind, packet, names = kind_of(func), func.overloadpacket, tuple(a.name for a in func._schema.arguments)
        lifts = packet is torch.ops.aten.lift_fresh
        facts = _Facts(hash(func), names, kind.reads or kind.shapes, packet is torch.ops.aten.detach, lifts)
        known = _FACTS[id(func)] = func, facts
    return known[1]


SIZES = frozenset(("size", "end", "length", "split_size", "split_sizes", "index"))
"""Arguments of operations that say how many elements there are, or which one is read: another number for another batch,
or at another step of a schedule."""


def _constants(name: str, value: Any) -> list[Any]:
    """The numbers and words in an operation's argument: of sizes how many there are, of numbers that are not whole
    which are 0 or 1."""
    if isinstance(value, int) and name in SIZES and value >= 0:
        return ["a size"]
    if isinstance(value, bool | int | str):
        return [value]
    if isinstance(value, float):
        return [_class_of(value)]
    if isinstance(value, list | tuple):
        return [constant for each in value for constant in _constants(name, each)]
    return []


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


MOST_STATES = 64
"""So many states of a program are told apart."""


class WhatDecides:
    """What may decide which branch a call of a program takes, to be compared with that of other calls.

    That is the contents of tensors among the arguments, if Python sees any; numbers, flags, words and objects among
    them (of floats that Python only computes with, whether they are 0 or 1); and whatever else the program's code can
    see in Python (`PythonState`). Where the program's own code reads tensors that it holds, or where it cannot be told
    whether its state has changed, nothing can be said, for a `reason`: then what the runs do has to be looked at
    (`Noted`).

    Where Python sees draws, each run takes a branch of its own, and is looked at by itself: then flags and words alone
    count here. `seen`: what Python sees (`decided_by`). `programs`: what the pair is made of, in the place of its model
    and guide.
    """

    def __init__(self, pair: Pair, seen: Collection[str], programs: Iterable[Any] = ()) -> None:
        self.seen: frozenset[str] = frozenset(seen)
        self.reason: str = ""
        self._programs = [*programs]
        self._states: list[PythonState] = []
        if HELD in self.seen and not self.in_draws:
            self.reason = "Python reads tensors that it holds"
        self.of(pair)
        if self.reason and decisions(pair) != decisions(pair):  # it decides by random numbers of its own
            self.seen |= {UNFOLLOWED}

    def holds(self) -> bool:
        """Whether all that the programs can see is known, and as it was when it was last looked at."""
        return not self.reason and bool(self._states) and self._states[-1].holds()

    @property
    def in_draws(self) -> bool:
        """Whether draws decide, or may do so."""
        return bool(draws_among(self.seen))

    def of(self, pair: Pair) -> Any:
        """All that may decide in this call; None where that cannot be told."""
        if self.in_draws:
            return tuple(v for v in tree_leaves((pair.args, dict(pair.kwargs))) if isinstance(v, bool | str))
        if self.reason:
            return None
        try:
            arguments = self._arguments(pair)
        except UnknownStateError as error:
            self.reason = str(error)
            return None
        tensors = contents(pair.args, dict(pair.kwargs)) if ARGUMENTS in self.seen else ""
        for place, state in enumerate(self._states):
            if state.holds():
                return arguments, tensors, place
        state = PythonState(self._programs or (pair.model, pair.guide), tree_leaves((pair.args, dict(pair.kwargs))))
        if state.unknown or len(self._states) >= MOST_STATES:
            self.reason = state.unknown or f"what it can see has changed more than {MOST_STATES} times"
            return None
        self._states.append(state)
        return arguments, tensors, len(self._states) - 1

    def _arguments(self, pair: Pair) -> Any:
        """What the arguments are but for the values of tensors, and of floats that Python only computes with."""
        if all(type(v) is Tensor and not vars(v) for v in (*pair.args, *pair.kwargs.values())):
            return len(pair.args), *pair.kwargs  # the same, said faster
        given = pair.args, dict(pair.kwargs)
        if FLOATS not in self.seen:
            given = tree_map(lambda v: _class_of(v) if type(v) is float else v, given)
        return _hashable(described(given, measured=False))
