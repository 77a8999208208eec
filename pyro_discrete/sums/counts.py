"""Counts that are summed out: how far their sums go, and what says that they go far enough."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops.integrator import register_exception_handler
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Binomial, constraints

from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.counts import CountUpTo, log_mass_beyond
from pyro_discrete.programs.pair import Pair, Program
from pyro_discrete.programs.sites import base_distribution, is_latent
from pyro_discrete.recording import is_recorded
from pyro_discrete.relaxations.relaxed_distribution import TRUNCATION, rebuilt, stated_truncation

__all__ = [
    "LEFT_OUT",
    "Counts",
    "MoreTermsError",
    "UnsettledSumError",
    "may_be_count",
]


LEFT_OUT = 1e-8
"""A sum without a last value goes on until at most so much of it is left out."""

GUIDE_LEFT_OUT = 1e-15
"""So much of a guide's probability is left out: what it is a mean of may grow with the count."""

AT_FIRST = 1e-10
"""So much of the prior is left out in the first run of a sum, before it is known how far out the data are."""

NOTABLE = 1e-6
"""A larger share of a stated last value in its sum is worth a warning."""

MOST_TERMS = 2**17
"""A sum goes on for so many terms at most."""

FEW = 8
"""So many terms are never too many."""

LESS = -math.log(LEFT_OUT) + 1.0
"""By so much, and by what is left out, is the logarithm of what may be left of a prior lowered."""


AMPLE = -LEFT_OUT * (1 - 1e-6)
"""An excess below this says that what is left out is nothing beside what might be."""


class MoreTermsError(Exception):  # caught within the package
    """A sum over a count has to go further than it did: it is to be run again."""


class UnsettledSumError(EnumerationError):
    """A sum over a count goes on and on.

    NUTS and HMC take it for a proposal of no density, a divergence: a step that is too long may try a rate that is far
    beyond all sums.
    """


register_exception_handler("a sum over a count that does not settle", lambda e: isinstance(e, UnsettledSumError))


class Counts:
    """How far the sums over the counts of a pair go. Runs are made of `around(pair)`, and judged afterwards.

    A count that is summed out gets a last value: the one that its site states as `infer={"truncation": 20}`; the
    largest number of trials of a Binomial; or one found here. This goes for every count of the model alone, and in the
    guide for the sites that `asked` says. A guide's distribution is *cut* there: its draws, its score and its sum are
    all of the values up to the last one, so that it is a distribution, and the loss a bound. A prior keeps its
    probabilities.

    What is found is kept from run to run, as `tops`. Unless `steady`, it follows the prior of each run down as well (a
    sampler may try a large rate once), to where as little of it is left as was small enough so far. Runs note what may
    be left out (see `pyro_discrete.sums.left_out`), as tensors, so that they can be captured; `judge` reads these, and
    raises `MoreTermsError` with larger `tops` where it is too much.
    """

    def __init__(self, asked: Callable[[Any], bool] | None = None, steady: bool = True) -> None:
        self.asked: Callable[[Any], bool] | None = asked
        self.steady: bool = steady
        self.tops: dict[str, int] = {}
        self.targets: dict[str, float] = {}
        self.drawn: set[str] = set()
        self.noted: list[tuple[Sequence[str], Tensor]] = []
        self.shares: list[tuple[str, Tensor]] = []
        self._told: set[str] = set()

    def around(self, pair: Pair) -> Pair:
        """The pair with last values at the counts that are summed out; nothing is noted yet."""
        self.start()
        if pair.guide_runs_model:
            return pair
        return Pair(self.in_model(pair.model), _InGuide(self)(pair.guide), pair.args, pair.kwargs)

    def in_model(self, model: Program) -> Program:
        """The model by itself: every latent count is summed out that is not in `drawn`."""
        return _InModel(self)(model)

    def start(self) -> None:
        """Forget what runs have noted."""
        self.noted, self.shares = [], []

    def note(self, names: Sequence[str], excess: Tensor) -> None:
        """Of the counts of these names: `excess` is above zero where their sum is to go further."""
        self.noted.append((names, excess.detach().double().max()))

    def note_share(self, name: str, share: Tensor) -> None:
        """Of a count with a stated last value: the share that this has in its sum."""
        self.shares.append((name, share.detach().double().max()))

    def settled(self) -> Tensor | None:
        """Whether all sums of the runs so far go far enough, as a tensor; None where none has to be judged."""
        if not self.noted:
            return None
        excess = [each for _, each in self.noted]
        return ~(torch.stack([e.to(excess[0].device) for e in excess]) > 0).any()

    def judge(self) -> None:
        """Raise `MoreTermsError` where a sum has to go further, and warn where a stated last value has a large share.

        Raises `EnumerationError` for a sum that does not settle.
        """
        noted, shares = self.noted, self.shares
        self.start()
        if noted:
            excess = torch.stack([e.cpu() for _, e in noted])
            if bool((excess > 0).any()):
                short = {n: float(e) for (names, e) in noted if bool(e > 0) for n in names if n in self.tops}
                for name, most in short.items():
                    self._go_further(name, most)
                raise MoreTermsError(f"the sums over {', '.join(map(repr, short))} have to go further")
            if not self.steady:
                self._go_less_far({n for (names, e) in noted if float(e) < AMPLE for n in names})
        for name, share in shares:
            if name not in self._told and bool(share > NOTABLE):
                self._told.add(name)
                warnings.warn(
                    f"Site {name!r} is summed up to the last value that it states ({TRUNCATION!r}), which has a share "
                    f"of {float(share):.2g} in its sum: the values beyond it, which are left out, may matter. State a "
                    "larger one, or none (the sum then goes on until what is left is below 1e-8 of it).",
                    stacklevel=4,
                )

    def _go_further(self, name: str, excess: float) -> None:
        """What is left of the prior has to be smaller by as much as the sum is off: its share is proportional to it."""
        top = self.tops.pop(name)
        if top >= MOST_TERMS:
            raise UnsettledSumError(
                f"The sum over site {name!r} does not settle: after {top + 1} terms what is left out may still be more "
                f"than {LEFT_OUT:g} of it. Either none of these values gives the data a probability (look at the data, "
                "or at the scale of their likelihood), or the prior reaches that far: state the last value at the "
                f'site, infer={{"{TRUNCATION}": 1000}}.'
            )
        target = self.targets.get(name, math.log(AT_FIRST))
        self.targets[name] = target - LESS - excess if excess < math.inf else 2 * target - LESS

    def _go_less_far(self, names: Iterable[str]) -> None:
        """Nothing that can be seen is left out: more of the prior may be left next time."""
        for name in names:
            target = self.targets.get(name, 0.0)
            self.targets[name] = min(math.log(AT_FIRST), target + max(LESS / 2, -target / 4))

    def up_to(self, msg: Any, guide: bool) -> Any:
        """A site's distribution with a last value; itself where it has one or where none can be found."""
        name, base = msg["name"], base_distribution(msg["fn"])
        if base.event_shape or isinstance(base, CountUpTo):
            return msg["fn"]
        if isinstance(base, Binomial):
            last = self._trials(name, base)
            if last is None:
                return msg["fn"]
            return rebuilt(msg["fn"], lambda fn: CountUpTo(fn, last, name=name, ledger=self))
        if getattr(base, "has_enumerate_support", False) or not _is_whole(base):
            return msg["fn"]
        stated = stated_truncation(msg["infer"], name)
        if stated is None:
            stated, ends = self._found(name, base, GUIDE_LEFT_OUT if guide else AT_FIRST), "open"
        else:
            ends = "stated"
        if stated is None:
            return msg["fn"]
        last = stated
        made = rebuilt(msg["fn"], lambda fn: CountUpTo(fn, last, cut=guide, ends=ends, name=name, ledger=self))
        if guide:
            self._note_cut(name, base_distribution(made))
        return made

    def _trials(self, name: str, base: Binomial) -> int | None:
        """The largest number of trials so far; None where all elements have the same, which Pyro can enumerate."""
        if is_recorded():  # values are not to be read: those of the runs before count
            if name in self.tops:
                self.note([name], base.total_count.max() - self.tops[name])
            return self.tops.get(name)
        largest = int(base.total_count.max())
        if name not in self.tops and largest == int(base.total_count.min()):
            return None
        self.tops[name] = max(self.tops.get(name, 1), largest)
        return self.tops[name]

    def _found(self, name: str, base: Any, left_out: float) -> int | None:
        """How far the sum goes: as far as before, or so far that so little of the probability is beyond."""
        if name in self.tops and (self.steady or torch._C._get_tracing_state() is not None):
            return self.tops[name]
        if log_mass_beyond(base, 0) is None:
            return None
        target, last = self.targets.setdefault(name, math.log(left_out)), self.tops.get(name, FEW)

        def enough(last: int) -> bool:
            return bool((log_mass_beyond(base, last) <= target).all())  # type: ignore[operator]

        while last < MOST_TERMS and not enough(last):
            last = last * 5 // 4 + 4
        while last > FEW and enough((last - 4) * 4 // 5):
            last = (last - 4) * 4 // 5
        self.tops[name] = min(last, MOST_TERMS)
        return self.tops[name]

    def _note_cut(self, name: str, cut: CountUpTo) -> None:
        """Note how much of a guide's probability is left out, or what share its stated last value has."""
        with torch.no_grad():
            if cut.ends == "open":
                beyond = cut.log_beyond()
                assert beyond is not None
                self.note([name], beyond - math.log(GUIDE_LEFT_OUT))
            elif not is_recorded():
                self.note_share(name, cut.log_prob(torch.full((), cut.last, dtype=cut.fn.mean.dtype)).exp())


class _InGuide(Messenger):
    """Cuts the guide's counts that are summed over, and notes which sites it draws."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __enter__(self) -> Any:
        self.counts.drawn = set()
        return super().__enter__()

    def _process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        self.counts.drawn.add(msg["name"])
        asked = self.counts.asked
        if asked is not None and may_be_count(msg["fn"]) and is_latent(msg) and not msg["done"] and asked(msg):
            msg["fn"] = self.counts.up_to(msg, guide=True)

    def _postprocess_message(self, msg: Any) -> None: ...


class _InModel(Messenger):
    """Gives last values to the counts of the model alone, and lets values be impossible that some counts rule out."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self._summed = False

    def __enter__(self) -> Any:
        self._summed = False
        return super().__enter__()

    def _process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or not may_be_count(msg["fn"]):
            return
        fn = msg["fn"]
        if not is_latent(msg) or msg["name"] in self.counts.drawn:
            read = self._summed if msg["is_observed"] else msg["name"] in self.counts.tops
            if read and isinstance(base_distribution(fn), Binomial):
                msg["fn"] = rebuilt(fn, _Possible)
        elif not msg["done"]:
            msg["fn"] = self.counts.up_to(msg, guide=False)
            self._summed = self._summed or isinstance(base_distribution(msg["fn"]), CountUpTo)

    def _postprocess_message(self, msg: Any) -> None: ...


_KINDS: dict[type, bool] = {}


def may_be_count(fn: Any) -> bool:
    """Whether a distribution may be one of counts, by its class: most are not, which is found at the least cost."""
    base = base_distribution(fn)
    kind = type(base)
    found = _KINDS.get(kind)
    if found is None:
        whole = isinstance(base, TorchDistributionMixin) and _is_whole(base)
        found = _KINDS[kind] = whole and (
            issubclass(kind, Binomial) or not getattr(kind, "has_enumerate_support", False)
        )
    return found


def _is_whole(base: Any) -> bool:
    """Whether it is a distribution of whole numbers from 0 on."""
    try:
        support = base.support
    except NotImplementedError:
        return False
    return bool(getattr(support, "is_discrete", False)) and getattr(support, "lower_bound", None) == 0


class _Possible(TorchDistribution):
    """A Binomial whose value may be out of its reach: data of more successes than some value of a count before them has
    trials, or a guide's value for the largest number of trials. Its probability is zero then, and that is no error."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.nonnegative_integer

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Possible:
        return _Possible(self.fn.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.fn.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        possible = value <= self.fn.total_count
        found = self.fn.log_prob(torch.where(possible, value, 0.0))
        return torch.where(possible, found, -math.inf)
