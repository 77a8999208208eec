"""The branches that arguments have led a program into, each with the plan that was made there."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_discrete.inspection.decisions import ARGUMENTS, contents, decided_by, decisions, words
from pyro_discrete.planning.plan import Plan
from pyro_discrete.programs.pair import Pair

__all__ = ["Branches"]

MOST_BRANCHES, MOST_CONTENTS = 64, 4096
"""So many branches are planned in; of so many arguments it is remembered which one they lead to."""


class Branches:
    """Which plan holds for which arguments, of a program that lets Python see their values (`if x.sum() > 0`).

    What a plan found out (that rows and plate elements stay apart, say) it found in the branch of its trial. Arguments
    that are new are run once, without gradients, to see what Python sees of them: what it has seen before is the branch
    of that plan, anything else is to be planned. After `MOST_BRANCHES` a warning says that the last plan is believed.

    `watched`: whether there is anything of this to do; not so where Python sees no argument, and where it sees draws,
    which take their branches in every run anew.
    """

    def __init__(self) -> None:
        self.watched = self._sees_values = False
        self._plans: dict[Any, Plan] = {}
        self._of: OrderedDict[str, Any] = OrderedDict()
        self._now: Any = None

    def begin(self, pair: Pair, plan: Plan) -> None:
        """Look at a program once, for the plan that was made for these arguments."""
        tensors = any(isinstance(v, Tensor) for v in tree_leaves((pair.args, dict(pair.kwargs))))
        self._sees_values = tensors and decided_by(pair) == {ARGUMENTS}
        self.watched = self._sees_values or bool(words((pair.args, pair.kwargs)))
        if self.watched:
            self._now = self._branch(pair)
            self._plans[self._now] = plan

    def plan_for(self, pair: Pair, last: Plan) -> Plan | None:
        """The plan of the branch that these arguments lead to, if there is one; `last`: that of the last branch now."""
        self._plans[self._now] = last
        self._now = self._branch(pair)
        if self._now not in self._plans and len(self._plans) >= MOST_BRANCHES:
            self.watched = False
            warnings.warn(
                f"What Python sees of this program's arguments has been another in {MOST_BRANCHES} calls. Its plan was "
                "made anew for each; from here on the last one is believed, whatever branch a call takes. Decide by "
                "torch.where, or by what stays the same.",
                stacklevel=6,
            )
            return last
        return self._plans.get(self._now)

    def note(self, plan: Plan) -> None:
        """Keep the plan that was made for the arguments last looked at."""
        self._plans[self._now] = plan

    def _branch(self, pair: Pair) -> Any:
        given = pair.args, dict(pair.kwargs)
        if not self._sees_values:
            return words(given)
        content = contents(given)
        if content not in self._of:
            self._of[content] = words(given), decisions(pair)
            if len(self._of) > MOST_CONTENTS:
                self._of.popitem(last=False)
        return self._of[content]
