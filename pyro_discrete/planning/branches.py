"""The branches that a program has taken, each with the plan that was made there."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from pyro_discrete.inspection.decisions import BranchOfCall
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair

__all__ = ["Branches"]

MOST_BRANCHES = 64
"""So many branches are planned in."""


class Branches:
    """Which plan holds in which call of a program.

    What a plan found out (that rows and plate elements stay apart, say) it found in the branch of its trial. Another
    branch, which `BranchOfCall` tells, is planned anew. After `MOST_BRANCHES` a warning says that the last plan is
    believed.
    """

    def __init__(self) -> None:
        self._branch: BranchOfCall | None = None
        self._plans: dict[Any, Plan] = {}
        self._now: Any = None

    @property
    def looks(self) -> str:
        """Why each call is run once more to see its branch; empty if it is not."""
        return "" if self._branch is None else self._branch.reason

    def begin(self, pair: Pair, plan: Plan, seen: Collection[str]) -> None:
        """Note the plan that was made for this call, in which Python sees these."""
        self._branch = BranchOfCall(seen)
        self._now = self._branch.of(pair)
        self._plans = {self._now: plan}

    def plan_for(self, pair: Pair, last: Plan) -> Plan | None:
        """The plan of the branch that this call takes, if there is one; `last`: that of the last branch now."""
        if self._branch is None:
            return last
        self._plans[self._now] = last
        self._now = self._branch.of(pair)
        if self._now not in self._plans and len(self._plans) >= MOST_BRANCHES:
            self._branch = None
            warnings.warn(
                f"This program has taken {MOST_BRANCHES} different branches, by its arguments or by what it holds. Its "
                "plan was made anew for each; from here on the last one is believed, whatever branch a call takes. "
                "Decide by torch.where, or by what stays the same.",
                stacklevel=6,
            )
            return last
        return self._plans.get(self._now)

    def note(self, plan: Plan) -> None:
        """Keep the plan that was made for the call last looked at."""
        self._plans[self._now] = plan
