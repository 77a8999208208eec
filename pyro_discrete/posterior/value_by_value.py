"""Sums of programs that do not take enumerated values side by side: a run for each value, or for each joint value.

And the check of those that do: what stands in the tables of an enumerated run has to be what plain runs give.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import EnumerationError, SiteShapeError
from pyro_discrete.programs.dims import ROWS_PLATE, plates_of
from pyro_discrete.programs.pair import SiteMessenger
from pyro_discrete.programs.sites import (
    is_latent,
    sample_sites,
    site_log_prob,
    without_mask,
)
from pyro_discrete.sums.components import FIRST_SYMBOL, Names
from pyro_discrete.sums.enumerated_sites import Marginalise
from pyro_discrete.sums.factors import Component, Factor
from pyro_discrete.sums.joint_values import GiveValues, JointValues, Own
from pyro_discrete.sums.left_out import LeftOutOfRuns, has_open_end
from pyro_discrete.sums.marginalisation import SCALES_DIFFER, Known

__all__ = [
    "MOST_RUNS",
    "EnumeratedRun",
    "Leaf",
    "Unmarked",
    "disagreement",
    "leaves",
    "note_of_leaves",
    "summed_leaves",
    "value_by_value",
]


MOST_RUNS = 1024
"""So many values, or joint values, at most are gone through one run after another."""


class Unmarked(SiteMessenger):
    """Takes Pyro's marks off: what is summed over, and that the sum is exact, is settled here."""

    def _pyro_sample(self, msg: Any) -> None:
        if "enumerate" in msg["infer"] or "num_samples" in msg["infer"]:
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k not in ("enumerate", "num_samples")}


@dataclass
class EnumeratedRun:
    """A program's trace with sites' values in dims of their own; `plain` has sites as they are in a run without.

    `rows` is None where there is no dim of rows; `batch_dims`, of the plates, then counts one less, for which see
    `components`.
    """

    trace: Trace
    enumerated: Marginalise
    rows: int | None
    batch_dims: int
    plain: dict[str, Any] = field(default_factory=dict)


def _term(msg: Any, own: bool, masked: bool) -> Tensor:
    """A site's log-probability, unscaled; one that is summed over has its mask only if `masked`."""
    if own and not masked:
        return without_mask(msg["fn"]).log_prob(msg["value"])
    return torch.as_tensor(scale_and_mask(site_log_prob(msg), mask=msg["mask"]))


def _check_scale(name: str, msg: Any, seen: dict[str, Any]) -> None:
    """Raise `EnumerationError` if a site's scale is another one at another value."""
    scale = torch.as_tensor(msg["scale"])
    before = seen.setdefault(name, scale)
    if before.shape != scale.shape or not torch.equal(before, scale):
        raise EnumerationError(
            f"Site {name!r} has a scale that changes with the values of the sites that are summed over. Their "
            "posterior is that of the terms without scales, which are for subsampling. Write the power that is meant "
            "into the distribution, as a pyro.factor."
        )


def _in_same_plates(one: Any, other: Any) -> bool:
    """Whether a site has the same plates, of the same sizes, in two runs."""
    first, second = ({f.name: f.size for f in plates_of(msg)} for msg in (one, other))
    return first == second


# ---------------------------------------------------------------------------------------------------- value by value


def value_by_value(run: Callable[..., Trace], own: Own, drawn: Any, masked: bool, plate_dims: int) -> EnumeratedRun:
    """The tables of a program from one run for each combination of values, the same in all elements of a plate.

    Raises `EnumerationError` for more than `MOST_RUNS`, or sites that change with the values.
    """
    numbers: dict[str, int] = {}
    give = GiveValues(own, lambda name, batch, count: torch.tensor(numbers.get(name, 0)))
    trace = run(give)
    sizes, first = dict(give.sizes), sample_sites(trace)
    if any(has_open_end(first[name]["fn"]) for name in sizes):
        raise EnumerationError("how far the sum over a count goes is judged by runs at every joint value.")
    if math.prod(sizes.values()) > MOST_RUNS:
        raise EnumerationError(f"there are {math.prod(sizes.values()):.3g} joint values, more than {MOST_RUNS}.")
    terms: dict[str, list[Tensor]] = {name: [] for name in first}
    scales: dict[str, Any] = {}
    for combination in itertools.product(*(range(size) for size in sizes.values())):
        numbers.update(zip(sizes, combination, strict=True))
        give.given.clear()
        give.sizes.clear()
        again = sample_sites(run(give))
        if again.keys() != first.keys() or give.sizes != sizes:
            raise EnumerationError("the program's sites change with the values.")
        for name, msg in again.items():
            if not _in_same_plates(msg, first[name]):
                raise EnumerationError(f"the plates of site {name!r} change with the values.")
            terms[name].append(_plated(name, _term(msg, name in sizes, masked), plate_dims))
            _check_scale(name, msg, scales)
    enumerated = Marginalise(drawn, {}, plate_dims - 1, masked=masked)
    enumerated.own = {name: number for number, name in enumerate(sizes)}
    made = Trace()
    for name, msg in trace.nodes.items():
        if name not in terms:
            made.add_node(name, **msg)
            continue
        table = torch.stack(torch.broadcast_tensors(*terms[name]))
        table = table.reshape(*sizes.values(), *table.shape[1:])
        for dim, summed in enumerate(sizes):
            if summed != name and torch.equal(table, table.narrow(dim, 0, 1).expand_as(table)):
                table = table.narrow(dim, 0, 1)
        dims = {-plate_dims - len(sizes) + i: i for i in range(len(sizes))}
        enumerated.dims[name] = dims
        if name not in sizes and all(n == 1 for n in table.shape[: len(sizes)]):
            made.add_node(name, **msg)
            continue
        known = {"fn": Known(table), "value": table.new_zeros(()), "mask": None, "args": (), "kwargs": {}}
        made.add_node(name, **{**msg, **known})
    plain = {name: first[name]["fn"] for name in first}
    return EnumeratedRun(made, enumerated, None, plate_dims - 1, plain)


def _plated(name: str, term: Tensor, plate_dims: int) -> Tensor:
    """A term with as many dims as there are plates."""
    while term.dim() > plate_dims and term.shape[0] == 1:
        term = term[0]
    if term.dim() > plate_dims:
        raise SiteShapeError(
            f"Site {name!r} has a log-probability of shape {tuple(term.shape)}, whose dim 0 is no plate's."
        )
    return term.reshape((1,) * (plate_dims - term.dim()) + tuple(term.shape))


# ------------------------------------------------------------------------------------------------- joint values


@dataclass
class Leaf:
    """A run at one joint value: its trace, what it weighs, each site's value by number `[*batch]`, and the terms."""

    trace: Trace
    log_weight: Tensor
    given: dict[str, Tensor]
    sizes: dict[str, int]
    terms: dict[str, Tensor]

    def value(self, name: str) -> Tensor:
        """A site's value, `[*batch, *event]`."""
        return self.trace.nodes[name]["value"]  # type: ignore[return-value]


def leaves(
    run: Callable[..., Trace], own: Own, masked: bool, own_terms_alone: bool, most: int = MOST_RUNS
) -> Iterator[Leaf]:
    """A run for every joint value of all elements of the sites to be summed over; these may change with earlier values.

    Raises `EnumerationError` for more than `most`.
    """
    scales: dict[str, Any] = {}
    walk = JointValues(most)
    for _ in walk:
        give = GiveValues(own, walk.choose)
        trace = run(give)
        terms: dict[str, Tensor] = {}
        for name, msg in sample_sites(trace).items():
            if name in give.given or not own_terms_alone:
                terms[name] = _term(msg, name in give.given, masked)
                _check_scale(name, msg, scales)
        total = sum((term.double().sum() for term in terms.values()), torch.zeros((), dtype=torch.double))
        yield Leaf(trace, total, give.given, give.sizes, terms)


def note_of_leaves(found: Sequence[Leaf]) -> None:
    """Note, with the counts that are summed over, whether they go far enough."""
    left_out = LeftOutOfRuns()
    for leaf in found:
        left_out.saw(leaf.terms, leaf.trace.nodes, list(leaf.given))
    left_out.note(torch.stack([leaf.log_weight for leaf in found]).logsumexp(0))


def summed_leaves(found: Sequence[Leaf], plate_dims: int) -> tuple[Trace, dict[str, list[str]]]:
    """A trace with one term for the sum over all joint values, and the members of that term: as `collapsed` gives them.

    Members are the sites that are summed over and those whose terms change with these.
    """
    first = found[0].trace
    names = list(dict.fromkeys(name for leaf in found for name in leaf.terms))

    def changes(name: str) -> bool:
        terms = [leaf.terms.get(name) for leaf in found]
        return any(t is None or terms[0] is None or not torch.equal(t, terms[0]) for t in terms)

    members = [n for n in names if any(n in leaf.given for leaf in found) or changes(n)]
    scales = {n: float(leaf.trace.nodes[n]["scale"]) for leaf in found for n in members if n in leaf.terms}
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{n!r}: {s:.6g}" for n, s in scales.items())
        raise EnumerationError(f"Sites that are summed over together ({listed}), but {SCALES_DIFFER}")
    totals = [sum(leaf.terms[n].sum() for n in members if n in leaf.terms) for leaf in found]
    term = torch.stack([torch.as_tensor(total) for total in totals]).logsumexp(0)
    zero = term.new_zeros((1,) * plate_dims)
    made, last = Trace(), None
    for name, msg in first.nodes.items():
        silent = {"fn": Known(zero), "mask": None, "args": (), "kwargs": {}, "scale": 1.0}
        made.add_node(name, **({**msg, **silent} if name in members else msg))
        last = msg if name in members else last
    own = [n for n in members if n in found[0].given]
    label = f"sum over {', '.join(own[:3])}{', ...' if len(own) > 3 else ''}"
    node = {
        **(last or {}),
        "fn": Known(term),
        "mask": None,
        "args": (),
        "kwargs": {},
        "scale": next(iter(scales.values())),
    }
    node |= {"name": label, "value": term.new_zeros(()), "is_observed": True, "infer": {}, "cond_indep_stack": ()}
    made.add_node(label, **node)
    return made, {label: members}


# ------------------------------------------------------------------------------------------------- the check


def _numbers(seed: int, rotate: bool) -> Callable[[str, torch.Size, int], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def choose(name: str, batch: torch.Size, count: int) -> Tensor:
        if rotate:
            return (torch.arange(math.prod(batch)) + seed).reshape(batch) % count
        return torch.randint(count, tuple(batch), generator=generator)

    return choose


def disagreement(
    run: EnumeratedRun,
    found: Sequence[Component],
    names: Names,
    own: Own,
    plain: Callable[..., Trace],
    own_terms_alone: bool,
) -> str:
    """Why the tables of an enumerated run are not what plain runs give, at some values and rows; else "".

    `plain(*handlers)` gives the trace of a run of the program without rows, the handlers around it. Sites with
    noise of their own (dropout) show nothing. Notes in `run.plain` what sites are in a plain run.
    """
    rows = [0] if run.rows in (None, 1) else [0, run.rows - 1]  # type: ignore[operator]
    factors = {f.name: f for c in found for f in c.factors}
    noisy: set[str] | None = None
    scales: dict[str, Any] = {}
    for row in rows:
        constant: dict[str, Tensor] = {}
        for attempt in range(2 if len(rows) > 1 else 3):
            by_parts: dict[str, Tensor] = {}
            give = GiveValues(own, _numbers(attempt, attempt == 0), by_parts)
            nodes = sample_sites(plain(give, _AsDrawn(run, give.given, row)))
            if nodes.keys() - run.trace.nodes.keys() or give.given.keys() != run.enumerated.own.keys():
                return "its sites change with the values"
            terms = {n: _term(m, n in give.given, run.enumerated.masked) for n, m in nodes.items()}
            if noisy is None:
                give_again = GiveValues(own, _numbers(attempt, True), by_parts)
                again = sample_sites(plain(give_again, _AsDrawn(run, give_again.given, row)))
                noisy = {n for n, t in terms.items() if n not in again or not _equal(t, again[n], n in give.given, run)}
                run.plain = {n: m["fn"] for n, m in nodes.items()}
            for name, term in terms.items():
                if name in noisy:
                    continue
                _check_scale(name, nodes[name], scales)
                if not _in_same_plates(nodes[name], run.trace.nodes[name]):
                    return f"the plates of site {name!r} change with the values"
                if own_terms_alone and name not in give.given:
                    continue
                if name in factors and _is_by_parts(factors[name]):
                    continue  # its term is in the sum over the structure
                if name in factors:
                    expected, got = torch.broadcast_tensors(_entry(factors[name], give.given, run, names, row), term)
                else:
                    expected, got = constant.setdefault(name, term), term
                    if expected.shape != got.shape:
                        return f"the shape of site {name!r} changes with the values"
                if not torch.allclose(expected, got.to(expected), rtol=1e-4, atol=1e-3, equal_nan=True):
                    return (
                        f"at site {name!r} the log-probability is another one than in a run with the same values alone"
                    )
    return ""


def _equal(term: Tensor, msg: Any, own: bool, run: EnumeratedRun) -> bool:
    other = _term(msg, own, run.enumerated.masked)
    return other.shape == term.shape and torch.allclose(other, term, equal_nan=True)


def _entry(factor: Factor, given: Mapping[str, Tensor], run: EnumeratedRun, names: Names, row: int) -> Tensor:
    """A packed table's entries at the given values and row, `[*batch]`."""
    sites = {number: name for name, number in run.enumerated.own.items()}
    dims: str = factor.value._pyro_dims  # type: ignore[attr-defined]
    parts, index = factor.parts, []
    behind = (1,) if parts is not None and parts.along else ()  # entries place by place, added up
    for symbol, size in zip(dims, factor.value.shape, strict=True):
        if parts is not None and symbol == parts.along:
            index.append(torch.arange(size))
        elif parts is not None and symbol == parts.site:
            name = sites[ord(symbol) - FIRST_SYMBOL]
            places = factor.value.shape[dims.index(parts.along)] if behind else 1
            read = run.enumerated.place_values(name, given[name])[..., parts.start : parts.start + places]
            index.append(read if behind else read[..., 0])
        elif symbol in factor.symbols:
            found = given[sites[ord(symbol) - FIRST_SYMBOL]]
            index.append(found.reshape((*found.shape, *behind)))
        elif names.frames[symbol].name == ROWS_PLATE:
            index.append(torch.tensor(row))
        else:
            after = -1 - (names.frames[symbol].dim or -1)
            index.append(torch.arange(size).reshape(size, *(1,) * after, *behind))
    found = factor.value[tuple(index)] if index else factor.value
    return found.sum(-1) if behind else found


def _is_by_parts(factor: Factor) -> bool:
    return factor.parts is not None and factor.parts.structure is not None


class _AsDrawn(SiteMessenger):
    """Gives drawn sites what they were in a row of an enumerated run, at the values given to the sites before them."""

    def __init__(self, run: EnumeratedRun, given: Mapping[str, Tensor], row: int) -> None:
        super().__init__()
        self.run, self.given, self.row = run, given, row

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_latent(msg) and not msg["done"] and name in self.run.trace.nodes and name not in self.run.enumerated.own:
            value = _drawn_at(self.run, self.run.trace.nodes[name], self.given, self.row)
            msg["value"] = value.reshape(msg["fn"].shape()) if value.numel() == msg["fn"].shape().numel() else value
            msg["done"] = True


def _drawn_at(run: EnumeratedRun, msg: Any, given: Mapping[str, Tensor], row: int) -> Tensor:
    """A drawn site's value in a row of an enumerated run, at values of the sites that are enumerated before it."""
    value, event = msg["value"], msg["fn"].event_dim
    sites = {number: name for name, number in run.enumerated.own.items()}
    known = run.enumerated.dims.get(msg["name"], {})
    shape = value.shape[: value.dim() - event]
    index: list[Tensor] = []
    for dim in range(-len(shape), 0):
        if shape[dim] == 1:
            index.append(torch.tensor(0))
        elif dim in known and dim < -1 - run.batch_dims:
            index.append(given[sites[known[dim]]])
        elif run.rows is not None and dim == -1 - run.batch_dims:
            index.append(torch.tensor(row))
        else:
            index.append(torch.arange(shape[dim]).reshape(shape[dim], *(1,) * (-1 - dim)))
    found = value[tuple(index)] if index else value
    plates = max([-f.dim for f in msg["cond_indep_stack"] if f.dim is not None and f.name != ROWS_PLATE], default=0)
    batch = found.shape[: found.dim() - event]
    while len(batch) > plates and batch[0] == 1:
        found, batch = found[0], batch[1:]
    return found
