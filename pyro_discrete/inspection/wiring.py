"""What could wire a program otherwise in another call: its arguments, and whatever else its code can see in Python."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_discrete.inspection.dependencies import Dependencies, find_dependencies
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.python_state import PythonState, UnknownStateError, described

__all__ = [
    "Wiring",
    "without_floats",
]


KNOWN = 8
"""Dependencies are looked for in so many states of a program at most; a program with more of them keeps full costs."""


class Wiring:
    """The dependencies of a pair, looked for again whenever what it is run with, or what it can see, is new.

    `given_up`: why they are not to be looked for, if so.

    Within one state a program whose values Python does not read does the same in every call. Where it cannot be told
    whether the state is the same (it reads a file, say), or where a program changes what it sees while it runs (a
    counter), nothing is known, and it keeps full costs.
    """

    def __init__(self, given_up: str = "") -> None:
        self._found: list[tuple[Any, PythonState, Dependencies]] = []
        self._given_up = given_up

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks anew: what a program can see (modules, closures) is no part of it."""
        return {**self.__dict__, "_found": []}

    def of(self, pair: Pair) -> Dependencies:
        """What depends on what in this call."""
        if self._given_up:
            return Dependencies(reason=self._given_up)
        lifted, numbers = without_floats(pair)
        if numbers:  # an annealed weight, say, which is new in every call
            found = self._of(lifted, numbers)
            if found.known or self._given_up:
                return found
        return self._of(pair, ())

    def _of(self, pair: Pair, numbers: Collection[Tensor]) -> Dependencies:
        try:
            arguments = described((pair.args, dict(pair.kwargs)))
        except UnknownStateError as error:
            return Dependencies(reason=str(error))
        for place, (of, state, found) in enumerate(self._found):
            if of == arguments and state.holds():
                if place:
                    self._found.insert(0, self._found.pop(place))
                return found
        with kept_state(pair.model, pair.guide):
            return self._looked_for(pair, numbers, arguments)

    def _looked_for(self, pair: Pair, numbers: Collection[Tensor], arguments: Any) -> Dependencies:
        """What depends on what in a new state, by runs of the pair."""
        for _ in range(2):  # once more for what a program makes in its first run
            if len(self._found) >= KNOWN:
                return Dependencies(reason=f"its arguments or plain values have changed more than {KNOWN} times")
            state = PythonState((pair.model, pair.guide), (*pair.args, *pair.kwargs.values()))
            if state.unknown:
                self._given_up = state.unknown
                return Dependencies(reason=state.unknown)
            found = find_dependencies(pair, numbers) if numbers else find_dependencies(pair)
            if state.holds():
                self._found.insert(0, (arguments, state, found))
                return found
        self._given_up = "the program changes plain values that it can see, such as a counter"
        return Dependencies(reason=self._given_up)


def without_floats(pair: Pair) -> tuple[Pair, list[Tensor]]:
    """The pair with tensors for the floats among its arguments, and these."""
    numbers: list[Tensor] = []
    if all(isinstance(value, Tensor) for value in (*pair.args, *pair.kwargs.values())):
        return pair, numbers

    def lifted(value: Any) -> Any:
        if type(value) is not float:
            return value
        numbers.append(torch.tensor(value, dtype=torch.float64))
        return numbers[-1]

    args, kwargs = tree_map(lifted, (pair.args, dict(pair.kwargs)))
    return Pair(pair.model, pair.guide, args, kwargs), numbers
