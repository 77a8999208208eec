"""How ranks begin alike: with the parameters of rank 0, the same program, the same data and the same versions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyro
import pyro.util
import torch
from torch import Tensor, nn

from pyro_discrete.errors import RanksError
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import Program
from pyro_discrete.programs.parameters import modules_of
from pyro_discrete.training.parts import Parts
from pyro_discrete.training.ranks import Ranks, named

__all__ = ["checksum", "meet", "start_alike"]

SAME_LOSS = 1e-3
"""Relative difference of losses that one program gives on different machines at most."""


def meet(ranks: Ranks, parts: Parts, elbo: Any, model: Program, guide: Program, seen: dict[int, nn.Module]) -> None:
    """Look at the program on data that all ranks have, and take over what rank 0 has of parameters and buffers.

    `seen` fills with the modules that are called meanwhile. Raises `RanksError`, on every rank, where they differ in
    versions, data or programs.
    """
    ranks.same(_versions(), "versions")
    start = pyro.util.get_rng_state()  # that of the seed, on all

    def loss(batch: Any) -> float:
        """As one process begins, so that what it draws for its parameters is drawn here too."""
        pyro.util.set_rng_state(start)
        args, kwargs = parts.prepare(batch)
        with kept_state(model, guide):
            return elbo.loss(model, guide, *args, **kwargs)

    with ranks.together("as it looked at the program"):
        batch = parts.look(model, guide)
        loss(batch)  # which makes parameters, and the estimators' networks
    ranks.same(checksum(parts.data(batch)), "data, of which these are checksums")
    ranks.same(sorted(parts.plates), "the plates that follow the data")
    held = [p for _, p in sorted(pyro.get_param_store().named_parameters())]
    for module in (*modules_of(model, guide), *seen.values(), elbo):
        held += [*module.parameters(), *module.buffers()]
    held = list({id(tensor): tensor for tensor in held}.values())
    ranks.same([tuple(tensor.shape) for tensor in held], "the shapes of their parameters and buffers")
    ranks.spread(held)
    with ranks.together("as it looked at the program"):
        found = loss(batch)
    told = ranks.told(found)
    other = [r for r, each in enumerate(told) if not math.isclose(each, told[0], rel_tol=SAME_LOSS)]
    if other:
        raise RanksError(
            "The ranks differ in their programs: on the same data, with the same parameters and random numbers, the "
            f"loss is {told[0]:.6g} on rank 0 and {told[other[0]]:.6g} on {named(other).lower()}. All have to run the "
            "same model and guide."
        )


def start_alike(ranks: Ranks, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the first step in the order of rank 0; `RanksError` unless all start from the same."""
    names = ranks.told(list(parameters))
    for rank, other in enumerate(names):
        odd = sorted({*names[0]} ^ {*other})
        if odd:
            there, absent = (0, rank) if odd[0] in names[0] else (rank, 0)
            raise RanksError(
                f"The ranks differ in their programs: rank {there} has a parameter {odd[0]!r} in the first step, rank "
                f"{absent} has none. All have to run the same program; make what depends on the data before."
            )
    starts = ranks.told([checksum([parameters[name]]) for name in names[0]])
    for place, name in enumerate(names[0]):
        other = [rank for rank, start in enumerate(starts) if start[place] != starts[0][place]]
        if other:
            raise RanksError(
                f"Parameter {name!r} does not start on {named(other).lower()} as on rank 0, and is held where fit does "
                "not see it before the first step. Make it under the same seed everywhere, or hold it in a module of "
                "the program or by pyro.param."
            )
    return {name: parameters[name] for name in names[0]}


def checksum(tensors: Iterable[Tensor]) -> int:
    """Of the tensors, their shapes and dtypes included."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(repr((tuple(tensor.shape), tensor.dtype)).encode(), found)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found = zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), found)
    return found


def _versions() -> dict[str, str]:
    try:
        own = version("pyro_discrete")
    except PackageNotFoundError:  # run from its sources
        own = ""
    return {"pyro_discrete": own, "pyro": pyro.__version__, "torch": torch.__version__}
