"""How sites are enumerated: their joint support, score without mask and table, and the dims their values stand in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import torch
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.enum_messenger import enumerate_site
from pyro.poutine.markov_messenger import MarkovMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.distributions import Multinomial, constraints

from pyro_discrete.distributions.structure import LARGEST_SUPPORT, GibbsStructure
from pyro_discrete.errors import EnumerationError, SiteMatchError, SiteShapeError
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.places import Places
from pyro_discrete.programs.pair import SiteMessenger
from pyro_discrete.programs.sites import (
    base_distribution,
    cardinality,
    family_of,
    is_latent,
    joint_support,
    listable,
    summed_by_parts,
    weighed_log_prob,
    why_not_enumerable,
    without_mask,
)
from pyro_discrete.recording import is_recorded

__all__ = [
    "BUDGET",
    "IN_GUIDE",
    "NOT_IN_GUIDE",
    "BudgetError",
    "ByParts",
    "EnumerateSites",
    "EnumerationDims",
    "Marginalise",
    "OutOfScopeError",
    "PairsError",
    "SharedDimError",
    "check_table",
    "in_pairs_where_needed",
    "mark_for_enumeration",
    "plain_distribution",
    "refuse_unguided",
    "unmarked",
]


IN_GUIDE = "in the guide too"
"""Where a site is to be drawn that cannot be summed out, as messages say it; `collapse`, which has none, rewords it."""

NOT_IN_GUIDE = "latent in the model but not drawn in the guide"
"""What such a site is, as messages say it; reworded likewise."""

BUDGET = "Enumerate(max_elements=..."
"""Where a larger sum is allowed, as messages say it; reworded likewise."""


class BudgetError(EnumerationError):
    """A sum is larger than the settings of its sites allow."""


class OutOfScopeError(EnumerationError):
    """A site depends on a draw that `pyro.markov` does not let it see: with a longer history it may."""


class SharedDimError(OutOfScopeError):
    """Draws of the guide stand in one dim, as no site of the guide sees both, and one of the model does.

    - `together`: for the guide's sites the others that a site of the model sees beside them.
    """

    def __init__(self, text: str, together: Mapping[str, set[str]]) -> None:
        super().__init__(text)
        self.together: Mapping[str, set[str]] = together


class PairsError(EnumerationError):
    """A term reads pairs of consecutive places of a structure whose values were given for single ones."""

    def __init__(self, site: str) -> None:
        super().__init__(f"Site {site!r} is read in pairs of its places, other than in the trial run.")
        self.site = site


T = TypeVar("T")


def in_pairs_where_needed(attempt: Callable[[Mapping[str, int]], T], by_parts: Mapping[str, int]) -> T:
    """What an attempt gives at the structures that are summed by parts, of as many places each as terms read of it.

    It is made again where a term turns out to read pairs of places.
    """
    while True:
        try:
            return attempt(by_parts)
        except PairsError as error:
            if by_parts[error.site] > 1:
                raise
            by_parts = {**by_parts, error.site: 2}


def check_table(msg: Any, settings: Enumerate, marginal: bool, by_parts: bool = True) -> None:
    """Raise `BudgetError` if a site's table is larger than `settings` allow, earlier sites' dims included.

    `by_parts`: whether a structure of more values than are listed may be summed by its partition function.
    """
    fn = msg["fn"]
    elements = cardinality(fn) * math.prod(fn.shape())
    parts = summed_by_parts(fn) if marginal and by_parts else None
    if parts is not None:
        elements = parts.numbers * math.prod(fn.shape())
    if elements > settings.max_elements or (parts is None and not listable(fn)):
        allowed = (
            f"{settings.max_elements:.3g} are allowed ({BUDGET}))"
            if parts is not None or listable(fn)
            else f"{LARGEST_SUPPORT} values of a structure are listed"
        )
        remedy = (
            f"Draw it {IN_GUIDE}, declare independent dims as a pyro.plate, or put chains in pyro.markov."
            if marginal
            else "Use 'rloo' or 'nvil', put chains in pyro.markov, or enumerate fewer sites."
        )
        raise BudgetError(
            f"Enumerating site {msg['name']!r} needs a table of {elements:.3g} elements ({cardinality(fn):.3g} "
            f"values by shape {tuple(fn.shape())}, enumerated dims of earlier sites included); at most "
            f"{allowed}. {remedy}"
        )


def mark_for_enumeration(msg: Any, settings: Enumerate, marginal: bool, parallel: bool = True) -> None:
    """Mark a site's message for Pyro's enumeration, joint values of its `.to_event` dims included.

    `marginal` says that the site is in the model alone: a mask does not keep it from being summed out. Raises
    `EnumerationError` if its table is larger than `settings` allow, enumerated dims of earlier sites included.
    """
    fn = msg["fn"]
    check_table(msg, settings, marginal, by_parts=False)
    base = base_distribution(fn)
    if fn.event_dim > len(base.event_shape) or without_mask(fn) is not fn or isinstance(base, Multinomial):
        msg["fn"] = _Enumerated(fn, marginal)
    infer = {key: value for key, value in msg["infer"].items() if key != "num_samples"}  # the sum takes its place
    if parallel:
        msg["infer"] = {**infer, "enumerate": "parallel"}
    else:  # one after another: a value has the shape of a draw
        msg["infer"] = {**infer, "enumerate": "sequential", "expand": True}


def plain_distribution(fn: Any) -> Any:
    """A site's distribution as it was before the site was marked."""
    return fn.fn if isinstance(fn, _Enumerated | ByParts) else fn


def unmarked(msg: Any) -> dict[str, Any]:
    """A message's `infer` without a mark for enumeration: of a site that has its values from elsewhere."""
    return {key: value for key, value in msg["infer"].items() if key != "enumerate"}


def refuse_unguided(name: str, fn: Any, infer: Mapping[str, Any]) -> None:
    """Raise `SiteMatchError` if a site in the model alone cannot be summed out."""
    if family_of(fn) in (None, Family.CONTINUOUS) or not math.isfinite(cardinality(fn)):
        if name.endswith("_unobserved"):  # what pyro.sample(..., obs_mask=) calls the part that is missing
            raise SiteMatchError(
                f"Site {name!r} is what obs_mask leaves to be drawn: missing values that no guide draws, and that have "
                "no finite support to be summed over. If no later site reads them, fill the gaps (torch.nan_to_num) "
                "and observe the data under poutine.mask(mask=obs_mask) in the place of obs_mask, which integrates "
                f"the missing ones out; else draw {name!r} {IN_GUIDE}."
            )
        if isinstance(base_distribution(fn), Delta):
            raise SiteMatchError(
                f"Site {name!r} is {NOT_IN_GUIDE}, and its distribution is a Delta, which draws nothing: its value is "
                f"computed. Write pyro.deterministic({name!r}, value), and pyro.factor for a log_density."
            )
        raise SiteMatchError(
            f"Site {name!r} is {NOT_IN_GUIDE}, and {why_not_enumerable(fn, infer)}. Draw it {IN_GUIDE}."
        )


SPARE = 5
"""So many dims stay unused before one that `pyro.markov` has let go of is given again."""


class EnumerationDims:
    """Gives out the dims in which enumerated values stand, from `first` on to the left; each site gets a number too.

    A guide and the model run against it share them: no site of the one meets a dim of the other. A site outside of
    `pyro.markov` keeps its dim for good. One inside gets a dim that no site in scope has, and by choice one that has
    been free for long: a later site that reads a draw out of scope, whose dim Pyro would have given to another one,
    then shows a dim that is nobody's in its scope. Dims of size 1 cost next to nothing.

    `together`: for sites of the guide, those whose dims they may not have as the model sees them beside each other (its
    `pyro.markov` may have a longer history than the guide's, or go the other way).
    """

    def __init__(self, first: int, together: Mapping[str, Collection[str]] = MappingProxyType({})) -> None:
        self.first = first
        self.together: Mapping[str, Collection[str]] = together
        self.start()

    def start(self) -> None:
        """Forget all that was given."""
        self.following: int = self.first
        self.number: int = 0
        self.everywhere: dict[int, int] = {}
        self.owners: dict[int, str] = {}
        self.names: list[str] = []
        self._dims: dict[str, int] = {}
        self.start_program()

    def start_program(self) -> None:
        """From here on give no dim that was given before."""
        self._local: list[int] = []

    def give(self, name: str, in_use: Collection[int] | None) -> tuple[int, int]:
        """A dim and a number for a site; `in_use`: dims that are not to be had, None for a site outside of markov."""
        number, dim = self.number, self.following
        self.number += 1
        kept = {self._dims.get(other) for other in self.together.get(name, ())}
        free = [] if in_use is None else [d for d in self._local if d not in in_use and d not in kept]
        spare = 1 if is_recorded() else SPARE  # a graph is of a run that was looked at before
        if len(free) >= spare:
            # not always the oldest: a program that looks back equally far every time would meet its own dim
            dim = free[number * number % spare]
            self._local.remove(dim)
        else:
            self.following -= 1
        if in_use is None:
            self.everywhere[dim] = number
        else:
            self._local.append(dim)
        self.owners[dim], self._dims[name] = name, dim
        self.names.append(name)
        return dim, number


class EnumerateSites(SiteMessenger):
    """Enumerates the sites that are marked `infer={"enumerate": "parallel"}`, and knows whose dim is whose.

    As Pyro's `EnumMessenger` it says in each such site's `infer` which dim its values stand in (`_enumerate_dim`) and,
    for every site, which enumerated sites' numbers all dims in scope hold (`_dim_to_id`). Unlike there the dims are
    those of `given`, and a site that shows a dim of no site in scope is refused, whether by its distribution, value,
    mask or scale.

    - `replayed`: run against a guide that was enumerated by the same `given`.

    Raises `EnumerationError`. Where draws of the guide share a dim that the model sees beside each other, it goes on:
    `check_together` is to be called after the run.
    """

    def __init__(self, given: EnumerationDims, replayed: bool = False) -> None:
        super().__init__()
        self.given: EnumerationDims = given
        self.replayed: bool = replayed

    def __enter__(self) -> Self:
        self.given.start_program() if self.replayed else self.given.start()
        self._depths: dict[str, int] = {}
        self._upstream: dict[str, dict[int, int]] = {}
        self._in_value: dict[str, dict[int, int]] = {}
        self._seen_by_all: dict[int, set[int]] = {}
        self._seen: dict[int, set[int]] = {}
        self._together: dict[str, set[str]] = {}
        self._clash = ""
        return super().__enter__()

    def check_together(self) -> None:
        """Raise `SharedDimError` if a site of the run sees draws of the guide beside each other that share a dim."""
        if self._clash:
            raise SharedDimError(self._clash, self._together)

    def _pyro_sample(self, msg: Any) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin):
            return
        name, infer = msg["name"], msg["infer"]
        scope, upstream = infer.get("_markov_scope"), dict(self.given.everywhere)
        self._seen = {dim: {number} for dim, number in upstream.items()} if self.replayed else {}
        for dim, numbers in self._seen_by_all.items():
            for number in numbers:
                self._sees(upstream, dim, number)
        if scope is not None and not msg["done"]:
            for other, depth in scope.items():
                if self._depths.get(other) == depth:  # else its markov context has ended
                    for dim, number in self._in_value.get(other, {}).items():
                        self._sees(upstream, dim, number)
            self._depths[name] = infer["_markov_depth"]
        self._upstream[name] = upstream
        if not msg["done"] and not msg["is_observed"] and infer.get("enumerate") == "parallel":
            self._enumerate(msg, upstream, scope is not None)

    def _sees(self, upstream: dict[int, int], dim: int, number: int) -> None:
        upstream[dim] = number if upstream.get(dim, number) == number else UNCLEAR
        if self.replayed:
            self._seen.setdefault(dim, set()).add(number)

    def _enumerate(self, msg: Any, upstream: dict[int, int], local: bool) -> None:
        fn, value = msg["fn"], enumerate_site(msg)
        shown = self._shown(fn.batch_shape)
        dim, number = self.given.give(msg["name"], {*upstream, *shown, *self._returning()} if local else None)
        made, event_dim = -1 - len(fn.batch_shape), fn.event_dim
        support = getattr(value, "_pyro_categorical_support", None)
        if support is not None:  # lets Categorical score its support faster
            value = value.reshape(value.shape[:1] + (1,) * (-1 - dim))
            value._pyro_categorical_support = support  # type: ignore[attr-defined]
        elif made < dim:
            value = value.transpose(dim - event_dim, made - event_dim)
            while value.dim() and value.size(0) == 1:
                value = value.squeeze(0)
        elif dim < made:
            value = value.reshape(value.shape[:1] + (1,) * (made - dim) + value.shape[1:])
        batch = value.shape[: value.dim() - event_dim]
        held = {d: upstream[d] for d in self._shown(batch) if d in upstream} | {dim: number}
        msg["infer"] |= {"_enumerate_dim": dim, "_dim_to_id": held}
        msg["value"], msg["done"] = value, True

    def _returning(self) -> set[int]:
        """Dims of sites that are out of scope for now: `pyro.markov(..., keep=True)` brings its sites back when it is
        gone through again, beside those of now."""
        contexts = [handler for handler in _PYRO_STACK if isinstance(handler, MarkovMessenger)]
        if not any(context.keep for context in contexts):
            return set()
        seen: Counter[str] = Counter()
        for context in contexts:
            first = 0 if context.keep else max(0, context._pos - context.history)
            for names in context._stack[first : None if context.keep else context._pos + 1]:
                seen.update(names)
        names = [name for name, depth in seen.items() if self._depths.get(name) == depth]
        return {dim for name in names for dim in self._in_value.get(name, ())}

    def _shown(self, shape: Sequence[int]) -> list[int]:
        """The enumerated dims that a shape has."""
        rank = len(shape)
        left = rank + self.given.first + 1
        return [i - rank for i, size in enumerate(shape[:left]) if size != 1] if left > 0 else []

    def _pyro_post_sample(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if not isinstance(fn, TorchDistributionMixin) or not torch.is_tensor(value):
            return
        held, upstream = msg["infer"].get("_dim_to_id", {}), self._upstream.get(msg["name"], {})
        shape = value.shape
        in_value = self._shown(shape[: len(shape) - fn.event_dim] if fn.event_dim else shape)
        shown = {*in_value, *self._shown(fn.batch_shape)}
        for weight in (msg["mask"], msg["scale"]):
            if torch.is_tensor(weight):
                shown.update(self._shown(weight.shape))
        known = {**upstream, **held}
        for dim in shown:
            number = known.get(dim, UNCLEAR)
            if (number == UNCLEAR or upstream.get(dim, number) != number) and self._in_term(msg, dim):
                self._refuse(msg["name"], dim, self._seen.get(dim, set()) | {number} - {UNCLEAR})
        self._in_value[msg["name"]] = {d: known[d] for d in in_value if d in known}
        if self.replayed and msg["name"] not in self._depths:  # outside of pyro.markov: all later sites see it
            for dim, number in self._in_value[msg["name"]].items():
                self._seen_by_all.setdefault(dim, set()).add(number)
        self._note(msg, known)

    def _in_term(self, msg: Any, dim: int) -> bool:
        """Whether a site's term has a dim: its batch shape may be wider."""
        return dim in self._shown(weighed_log_prob(msg).shape)

    def _refuse(self, name: str, dim: int, beside: Collection[int] = ()) -> None:
        """Refuse a site for a dim; note it where draws of the guide that are seen `beside` each other have it."""
        other = self.given.owners.get(dim)
        if other is None:
            raise SiteShapeError(
                f"Site {name!r} has dim {dim} of a size other than 1, which is in no plate and belongs to no "
                "enumerated site. Index from the right, so that dims on the left broadcast."
            )
        text = (
            f"Site {name!r} depends on an enumerated draw (as it seems {other!r}) that pyro.markov does not let it "
            "see: it was drawn more steps before than the `history` of its pyro.markov, or in one that has ended. Give "
            "pyro.markov as long a history as the program looks back (history=2 for a chain of second order), in the "
            "guide too, or draw these sites by 'rloo' or 'nvil'."
        )
        if len(beside) < 2:
            raise OutOfScopeError(text)
        self._clash = self._clash or text
        names = {self.given.names[number] for number in beside if number >= 0}
        for each in names:
            self._together.setdefault(each, set()).update(names - {each})

    def _note(self, msg: Any, known: dict[int, int]) -> None:
        """Say in `infer` what the site's dims hold; a replayed site's is the guide site's own."""
        msg["infer"]["_dim_to_id"] = known


UNCLEAR = -1
"""In the place of a site's number: two of those in scope share a dim."""


class Marginalise(EnumerateSites):
    """Enumerates every latent site of the model that is not in `drawn`, in dims left of rows and plates.

    `dims` says, by site, which enumerated site's values (by a number of its own) each such dim holds; `own` is each
    enumerated site's own number. `masked`: whether these sites' masks take their terms out, as maxima have it; in sums
    a masked site keeps its probability, which adds up to one. `rows`: whether the dim left of the plates is theirs.

    `by_parts`: the structures that are summed by their partition function, with 1, or with 2 where a term reads pairs
    of consecutive places. Their dim holds a number, the same at all places of the value, or two numbers in turn; what
    is computed from it is followed by `parts`, in this run and with all terms, to be sure that each is a sum over
    places, or over such pairs.
    """

    def __init__(
        self,
        drawn: Collection[str],
        settings: Mapping[str, Enumerate],
        batch_dims: int,
        masked: bool = False,
        rows: bool = True,
        by_parts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(EnumerationDims(-1 - batch_dims - rows))
        self.parts = Places() if by_parts else None
        self.by_parts: dict[str, int] = dict(by_parts)
        self.drawn: Collection[str] = drawn
        self.settings: Mapping[str, Enumerate] = settings
        self.masked: bool = masked
        self.structures: dict[str, GibbsStructure] = {}
        self.dims: dict[str, dict[int, int]] = {}
        self.own: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        own = is_latent(msg) and not msg["done"] and msg["name"] not in self.drawn
        if own:
            refuse_unguided(msg["name"], msg["fn"], msg["infer"])
            settings = self.settings.get(msg["name"]) or Enumerate()
            if msg["name"] in self.by_parts:
                self._mark_parts(msg, settings)
            else:
                mark_for_enumeration(msg, settings, marginal=not self.masked)
        elif "enumerate" in msg["infer"]:
            msg["infer"] = unmarked(msg)
        super()._pyro_sample(msg)
        if own:
            self.own[msg["name"]] = msg["infer"]["_dim_to_id"][msg["infer"]["_enumerate_dim"]]
            if msg["name"] in self.by_parts:
                assert self.parts is not None
                self.parts.follow(msg["value"], msg["name"])

    def __enter__(self) -> Self:
        if self.parts is not None:
            self.parts = Places()
            self.parts.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self.parts is not None:
            self.parts.__exit__(*exception)

    def watching(self) -> AbstractContextManager[Any]:
        """Within, what is computed of values is followed as in the run."""
        return nullcontext() if self.parts is None else self.parts

    def place_values(self, name: str, value: Tensor) -> Tensor:
        """At which of a structure's enumerated values each place of this one, and the next, have their numbers."""
        count, value = self.structures[name].numbers, value.long()
        if self.by_parts[name] == 1:
            return value
        following = torch.cat([value[..., 1:], value[..., -2:-1]], -1)  # of the last place that before it
        even = torch.arange(value.shape[-1], device=value.device) % 2 == 0
        return torch.where(even, value * count + following, following * count + value)

    def _mark_parts(self, msg: Any, settings: Enumerate) -> None:
        name, structure = msg["name"], summed_by_parts(msg["fn"])
        if is_recorded():  # a step is not captured then
            raise RuntimeError(f"what reads site {name!r} is looked at in every run, as it is summed by parts")
        if structure is None:
            raise EnumerationError(f"Site {name!r} is another kind of site than in the trial run.")
        if self.masked and msg["mask"] is not None and msg["mask"] is not True:
            raise EnumerationError(
                f"Site {name!r} is masked and too large to be listed: its most probable value without its own term is "
                "not to be had. Take the mask off, or put it around what reads the site."
            )
        check_table(msg, settings, marginal=True)
        msg["fn"], self.structures[name] = ByParts(structure, self.by_parts[name]), structure
        msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "num_samples"} | {"enumerate": "parallel"}

    def _note(self, msg: Any, known: dict[int, int]) -> None:
        self.dims[msg["name"]] = known


class ByParts(TorchDistribution):
    """A structure at the numbers that its places may have: a value holds one of them throughout, or (`width` 2) one at
    even places and one at odd ones, so that pairs of consecutive places have all that they may have. Its
    log-probability is in the sum over the structure, and not here."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, structure: GibbsStructure, width: int = 1) -> None:
        self.fn: GibbsStructure = structure
        self.width: int = width
        super().__init__(structure.batch_shape, structure.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ByParts:
        return ByParts(self.fn.expand(batch_shape), self.width)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[: value.dim() - self.event_dim], self.batch_shape)
        return self.fn.logits.new_zeros(shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        kind = self.fn.logits.dtype if self.fn.soft_value == "weights" else torch.long
        count, device = self.fn.numbers, self.fn.logits.device
        numbers = torch.arange(count**self.width, device=device).reshape(-1, *(1,) * self.event_dim)
        if self.width == 2:
            place = torch.arange(self.event_shape[-1], device=device)
            numbers = torch.where(place % 2 == 0, numbers // count, numbers % count)
        batch = self.batch_shape if expand else (1,) * len(self.batch_shape)
        values = numbers.to(kind).reshape(len(numbers), *(1,) * len(batch), *numbers.shape[1:])
        return values.expand(len(numbers), *batch, *self.event_shape).contiguous()


class _Enumerated(TorchDistribution):
    """A distribution with joint values of its `.to_event` dims in its support, and a score without mask."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, fn: Any, marginal: bool) -> None:
        self.fn = without_mask(fn) if marginal else fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Enumerated:
        return _Enumerated(self.fn.expand(batch_shape), False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.fn.log_prob(value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        return ScoreParts(self.fn.log_prob(value), without_mask(self.fn).log_prob(value), torch.zeros(()))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = joint_support(self.fn)
        return values.expand(values.shape[:1] + self.fn.shape()) if expand else values
