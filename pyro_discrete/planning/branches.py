"""The branches that a program has taken, each with the plan that was made there."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from pyro_discrete.inspection.decisions import WhatDecides, decisions, first_look, noted
from pyro_discrete.planning.plan import Plan, StructureChangedError
from pyro_discrete.programs.pair import Pair, SiteMessenger

__all__ = ["BranchChangedError", "Branches", "watching_sizes"]

MOST_BRANCHES, MOST_CONTENTS = 64, 4096
"""So many branches are planned in; of so many contents of calls it is remembered which branch they lead to."""


class BranchChangedError(Exception):
    """A run does what no run of its plan has done."""


class _WatchSizes(SiteMessenger):
    """Raises `StructureChangedError` where one of these plates has several elements."""

    def __init__(self, plates: Collection[str]) -> None:
        super().__init__()
        self.plates = plates

    def _pyro_sample(self, msg: Any) -> None:
        grown = [f.name for f in msg["cond_indep_stack"] if f.name in self.plates and f.size > 1]
        if grown:
            raise StructureChangedError(
                f"plate {grown[0]!r} has several elements, where it had one when the steps were planned", grown=grown
            )


def watching_sizes(pair: Pair, plan: Plan) -> Pair:
    """The pair to be run, watched where a plate of one element has shown nothing of several."""
    if not plan.of_one:
        return pair
    watch = _WatchSizes(plan.of_one)
    return replace(pair, guide=watch(pair.guide), model=watch(pair.model))


class Branches:
    """Which plan holds in which call of a program.

    What a plan found out (that rows and plate elements stay apart, say) it found in the branch of its trial. Calls in
    which all that may decide is as it was (`WhatDecides`) take the branch that they took. In any other, what the runs
    of the last plan do is noted as they go; where it is something new, one further run of the program, without
    gradients, says which branch that is. A branch that is new is planned anew. After `MOST_BRANCHES` a warning says
    that the last plan is believed.

    `around`: the handlers that the pair's steps have around it. `trial`: the run of the first look, if a plan may be
    made by it.
    """

    def __init__(self, pair: Pair, around: Callable[[Pair], Pair] = lambda pair: pair) -> None:
        seen, self._done, self.trial = first_look(pair, around)
        self._decides: WhatDecides | None = WhatDecides(pair, seen)
        self.seen: Collection[str] = self._decides.seen
        self._plans: dict[Any, Plan] = {}
        self._of: OrderedDict[Any, Any] = OrderedDict()
        self._given: Any = None
        self._now: Any = None
        self.sure: bool = False
        self._learns = self._waits = False

    def unchanged(self) -> bool:
        """Whether all that the program can see in Python is known, and as it was before it was run for a plan."""
        return self._decides is not None and not self._decides.in_draws and self._decides.holds()

    @property
    def known(self) -> bool:
        """Whether all that the program may decide by is watched: it draws no numbers of Python's or NumPy's then."""
        return self._decides is not None and not (self.by_draws or self.looks)

    @property
    def looks(self) -> str:
        """Why what the runs do is noted in every call; empty if it is not."""
        return "" if self._decides is None or self._decides.in_draws else self._decides.reason

    @property
    def by_draws(self) -> bool:
        """Whether Python decides by draws, so that what a call is given does not tell which branch it takes."""
        return self._decides is not None and self._decides.in_draws

    def begin(self, pair: Pair, plan: Plan) -> None:
        """Take in the plan that was made for the first call."""
        assert self._decides is not None
        self.trial = None
        self._waits = not (self.seen or self.looks) and self.unchanged()
        self._given = self._decides.of(pair)
        self._now, self.sure = self._given if self._decides.in_draws else self._done or decisions(pair), True
        self._plans[self._now] = plan
        self.remember()

    def plan_for(self, pair: Pair, last: Plan) -> Plan | None:
        """The plan of the branch that this call takes, or is supposed to (not `sure`); None for one without a plan yet.

        `last`: that of the last call now.
        """
        self._plans[self._now] = last
        if self._decides is None:
            return last
        self._given, self._learns = self._decides.of(pair), False
        self.sure = self._given is not None and self._given in self._of
        if self.sure:
            self._now = self._of[self._given]
        elif self._decides.in_draws:
            return self._switched(self._given, last)
        return self._plans[self._now]

    def watched(self, pair: Pair, plan: Plan) -> Pair:
        """The pair to be run: what its runs do is noted where that is to be learned, or to be compared.

        It is not learned before a call may take another branch, where no values are read by which one could, and runs
        change nothing that they see: a first call of a hidden Markov model takes 0.9 of the time. Raises
        `BranchChangedError` where nothing is known to compare with.
        """
        met = bool(plan.met.digests)
        learned = self.sure and not self._learns and (met or self._waits)
        if self._decides is None or self._decides.in_draws or learned:
            return pair
        if not self.sure and not met:
            raise BranchChangedError

        def told(digest: int) -> None:
            if self.sure:
                plan.met.digests.add(digest)
            elif digest not in plan.met.digests:
                raise BranchChangedError

        return noted(pair, told)

    def look(self, pair: Pair, last: Plan) -> Plan | None:
        """The plan of the branch that this call takes, by a further run; None for one without a plan yet."""
        self._learns = True
        return self._switched(decisions(pair), last)

    def note(self, plan: Plan) -> None:
        """Keep the plan that was made for the call last looked at."""
        self._plans[self._now] = plan

    def keeps(self, plan: Plan) -> bool:
        """Whether a plan is that of another branch than the last one."""
        return any(each is plan for branch, each in self._plans.items() if branch != self._now)

    def remember(self) -> None:
        """The call has gone through in the branch that it was supposed to take."""
        if self._given is not None:
            self._of[self._given] = self._now
            if len(self._of) > MOST_CONTENTS:
                self._of.popitem(last=False)

    def _switched(self, branch: Any, last: Plan) -> Plan | None:
        self.sure = True
        if branch not in self._plans and len(self._plans) >= MOST_BRANCHES:
            self._decides = None
            warnings.warn(
                f"This program has taken {MOST_BRANCHES} different branches, by its arguments or by what it holds. Its "
                "plan was made anew for each; from here on the last one is believed, whatever branch a call takes. "
                "Decide by torch.where, or by what stays the same.",
                stacklevel=6,
            )
            return last
        self._now = branch
        return self._plans.get(branch)
