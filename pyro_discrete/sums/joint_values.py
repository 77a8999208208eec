"""Joint values of discrete sites, of all elements of their plates, one run of a program after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.pair import SiteMessenger, random_state, set_python_random_state
from pyro_discrete.programs.sites import cardinality, is_latent, joint_support, summed_by_parts
from pyro_discrete.sums.enumerated_sites import IN_GUIDE, refuse_unguided

__all__ = [
    "MOST_VALUES",
    "GiveValues",
    "JointValues",
    "Own",
]


MOST_VALUES = 2**17
"""A table of so many joint values of one site at most is made."""


Own = Callable[[Any], bool]
"""Whether a latent site, given as its message, is summed over."""


class GiveValues(SiteMessenger):
    """Gives sites to be summed over the values whose numbers `choose(name, batch shape, how many)` says.

    - `given`: these numbers `[*batch]`, by site. `sizes`: how many values each has.
    - `by_parts`: where structures that are summed by their partition function find the value that they take, or keep
      one that is drawn; without it they are refused. It is in `given`.
    """

    def __init__(
        self, own: Own, choose: Callable[[str, torch.Size, int], Tensor], by_parts: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.own: Own = own
        self.choose: Callable[[str, torch.Size, int], Tensor] = choose
        self.by_parts: dict[str, Tensor] | None = by_parts
        self.given: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["done"] or not self.own(msg):
            return
        name, fn = msg["name"], msg["fn"]
        refuse_unguided(name, fn, msg["infer"])
        structure = summed_by_parts(fn)
        if structure is not None and self.by_parts is not None:
            msg["value"], msg["done"] = self.by_parts.setdefault(name, structure.sample()), True
            self.given[name], self.sizes[name] = msg["value"].long(), structure.numbers
            return
        if cardinality(fn) > MOST_VALUES:
            raise EnumerationError(
                f"Site {name!r} has {cardinality(fn):.3g} joint values, more than the {MOST_VALUES} that are gone "
                f"through. Draw it {IN_GUIDE}, by 'rloo' or 'nvil'."
            )
        support = joint_support(fn).reshape(-1, *fn.event_shape)
        index = self.choose(name, fn.batch_shape, len(support)).expand(fn.batch_shape)
        self.given[name], self.sizes[name] = index, len(support)
        msg["value"], msg["done"] = support[index.to(support.device)].reshape(fn.shape()), True


class JointValues:
    """A walk through all joint values of sites, a run for each: a later site, and whether there is one, may depend on
    earlier values. What a program draws with Python's and NumPy's generators (a part of the data, its size), the runs
    have in common: they are of one program.

    >>> import torch
    >>> walk = JointValues(most=8)
    >>> found = []
    >>> for _ in walk:  # a run asks for the numbers of the values that it is to take
    ...     first = walk.choose("a", torch.Size([]), 2)
    ...     found.append([int(first), *(walk.choose("b", torch.Size([2]), 2).tolist() if first else [])])
    >>> found
    [[0], [1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]]
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._due: list[int] = []
        self._counts: list[int] = []
        self._names: dict[str, None] = {}
        self._start: Any = None

    def __iter__(self) -> Iterator[None]:
        """Begin one run after another. Raises `EnumerationError` at more than `most`."""
        self._due, self._start = [], random_state()
        for count in range(self.most + 1):
            if count == self.most:
                raise self._too_many()
            if count:
                set_python_random_state(self._start)
            self._counts = []
            yield
            due = self._due
            while due and due[-1] + 1 == self._counts[len(due) - 1]:
                due.pop()
            if not due:
                return
            due[-1] += 1

    def again(self) -> None:
        """Have the run of the present values made once more."""
        self._counts = []
        set_python_random_state(self._start)

    @property
    def size(self) -> int:
        """How many joint values there are of the sites that this run has asked for, if all runs have these."""
        return math.prod(self._counts)

    def _too_many(self) -> EnumerationError:
        listed = ", ".join(map(repr, [*self._names][:6])) + (", ..." if len(self._names) > 6 else "")
        return EnumerationError(
            f"There are more than {self.most} joint values of {listed}, and each takes a run. Sum out fewer: "
            "draw others in the guide, by 'rloo' or 'nvil'."
        )

    def choose(self, name: str, batch: torch.Size, size: int) -> Tensor:
        """The number of a site's value in this run, for each of its elements `[*batch]`."""
        elements = math.prod(batch)
        if elements * math.log(max(size, 1)) > math.log(2 * self.most):
            raise EnumerationError(
                f"The elements of site {name!r} have {size} values each, {size}^{elements} joint ones; at most "
                f"{self.most} are gone through. Draw it {IN_GUIDE}, by 'rloo' or 'nvil'."
            )
        self._names[name] = None
        place = len(self._counts)
        if place == len(self._due):
            self._due.append(0)
        self._counts.append(size**elements)
        if self.size > self.most:
            raise self._too_many()
        return torch.tensor([self._due[place] // size**i % size for i in range(elements)]).reshape(batch)
