"""What a pair looks like: the sites of both programs, their plates, and what each is computed from directly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_discrete.errors import in_a_line
from pyro_discrete.families import Family
from pyro_discrete.inspection.dependencies import direct_dependencies, terms_that_move
from pyro_discrete.inspection.provenance import Provenance
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair
from pyro_discrete.programs.sites import base_distribution, family_of, is_observed_delta, latent_sites, sample_sites

__all__ = [
    "PairGraph",
    "SiteNode",
    "pair_graph",
]


MOST_MOVED = 16
"""So many sites' values are changed, where Python reads some, to see what else changes."""


Plates = tuple[tuple[str, str], ...]
"""The name of each plate around a site, and its size in words, outermost first."""


@dataclass(frozen=True)
class SiteNode:
    """A sample site: `law` is its distribution in a word or two; `where`: "model", "guide" or "both"."""

    name: str
    law: str
    plates: Plates
    observed: bool
    where: str


@dataclass(frozen=True)
class PairGraph:
    """The sites in the order of the model, then those of the guide alone, and what they are computed from.

    - `model`, `guide`: pairs (from, to) of names, in either program: `to` reads the value that was drawn at `from`.
    - `unknown`: why arrows may be missing; empty where all are there.
    """

    nodes: Sequence[SiteNode] = ()
    model: frozenset[tuple[str, str]] = frozenset()
    guide: frozenset[tuple[str, str]] = frozenset()
    unknown: str = ""


def pair_graph(pair: Pair) -> PairGraph:
    """Run the pair twice, once to see its sites, once to follow what each reads. All states are left as they were.

    Where that cannot be followed everywhere, it is run again with other values of the first discrete sites: what
    changes then does depend on them.
    """
    with kept_state(pair.model, pair.guide), on_trial(), pyro.validation_enabled(False):
        subsamples = KeepSubsamples()
        try:
            guide_trace, model_trace = trace_pair(pair, subsamples)
        except (ValueError, RuntimeError, IndexError) as error:
            return PairGraph(unknown=f"it does not run on single values ({in_a_line(error)})")
        drawn = latent_sites(model_trace) | latent_sites(guide_trace)
        values = {n: m["value"].detach().clone() for n, m in drawn.items() if isinstance(m["value"], Tensor)}
        known = direct_dependencies(pair, subsamples, values, _Indices)
        moved = {}
        if not known.known:
            discrete = [n for n in values if family_of(drawn[n]["fn"]) not in (None, Family.CONTINUOUS)]
            moved = terms_that_move(pair, subsamples, values, {n: drawn[n] for n in discrete[:MOST_MOVED]})
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
    shown = {n: m for n, m in (in_guide | in_model).items() if not is_observed_delta(m)}
    order = [n for n in [*in_model, *(n for n in in_guide if n not in in_model)] if n in shown]
    nodes = [_node(n, shown[n], n in in_model, n in in_guide) for n in order]
    arrows = {(key, source) for key, sources in known.terms.items() for source in sources}
    arrows |= {(key, source) for source, keys in moved.items() for key in keys}
    arrows = {(key, source) for key, source in arrows if source != key[1] and {source, key[1]} <= shown.keys()}
    model, guide = (frozenset((source, of) for (s, of), source in arrows if s == side) for side in ("model", "guide"))
    return PairGraph(nodes, model, guide, known.reason)


def _node(name: str, msg: Any, in_model: bool, in_guide: bool) -> SiteNode:
    fn = msg["fn"]
    base = base_distribution(fn)
    law = "factor" if isinstance(base, Unit) else type(base).__name__
    copies = fn.event_shape[: fn.event_dim - len(base.event_shape)] if hasattr(base, "event_shape") else ()
    law = " x ".join([*map(str, copies), law])
    plates = sorted((p for p in plates_of(msg) if p.vectorized), key=lambda p: p.dim or 0)
    part = {p.name: f" of {p.full_size}" for p in plates if p.full_size not in (None, p.size)}
    sizes = tuple((p.name, f"{p.size}{part.get(p.name, '')}") for p in plates)
    where = "both" if in_model and in_guide else "model" if in_model else "guide"
    return SiteNode(name, law, sizes, bool(msg["is_observed"]), where)


class _Indices(TorchFunctionMode):
    """Follows `table[z]` where `z` is a single whole number, which torch reads and does not show to its dispatcher."""

    def __init__(self, provenance: Provenance) -> None:
        super().__init__()
        self.provenance = provenance

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        single = _single_numbers(args[1]) if func is Tensor.__getitem__ else []
        names = self.provenance.of(*single)
        if not names:
            return func(*args, **(kwargs or {}))
        with self.provenance.reading():
            found = func(*args, **(kwargs or {})).clone()
        self.provenance.mark(found, names)
        return found


def _single_numbers(index: Any) -> list[Tensor]:
    places = index if isinstance(index, tuple) else (index,)
    return [p for p in places if isinstance(p, Tensor) and p.dim() == 0 and p.dtype in (torch.int64, torch.int32)]
