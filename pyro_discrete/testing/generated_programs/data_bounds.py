"""The importance-weighted bound of each datum, from the runs for all joint values."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from pyro_discrete.testing.generated_programs.description import Chain, Description
from pyro_discrete.testing.generated_programs.expressions import SCALARS
from pyro_discrete.testing.generated_programs.oracle import Run

__all__ = ["JoinedDataError", "data_bounds"]


class JoinedDataError(ValueError):
    """The elements of the plates are no independent data."""


def data_bounds(description: Description, runs: list[Run], plates: Collection[str]) -> tuple[float, Tensor]:
    r"""Minus the bound of two particles for each datum, an element of `plates`: its mean, and that of each pair.

    Sites outside of the plates, g, are drawn once for both particles. Given these, the log-weight has to be a sum over
    elements, :math:`\log w(z) = c + \sum_n f_n(z_n)`, whose parts are found by least squares; the bound is
    :math:`c + \sum_n \log \frac12 (e^{f_n(z_n)} + e^{f_n(z'_n)})`. Raises `JoinedDataError` where it is none.
    """
    dims = _dims(description, plates)
    groups: dict[tuple[object, ...], list[tuple[Run, Tensor]]] = {}
    for run in runs:
        shared = tuple((n, *v.flatten().tolist()) for n, v in run.values.items() if n not in dims)
        groups.setdefault(shared, []).append((run, _elements(run.values, dims)))
    mean, total, found = torch.zeros(()), torch.zeros(()), []
    for group in groups.values():
        weights = torch.stack([run.weight.detach() for run, _ in group])
        log_w = torch.stack([(run.log_p - run.log_q).detach() for run, _ in group])
        numbers = torch.stack([elements for _, elements in group])  # [runs, elements, values of one]
        parts = []
        for element in range(numbers.shape[1]):
            same = numbers[:, element].unique(dim=0, return_inverse=True)[1]
            parts.append(torch.nn.functional.one_hot(same).to(log_w))
        design = torch.cat([torch.ones(len(group), 1), *parts], 1)
        solution = torch.linalg.lstsq(design, log_w.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        if not torch.allclose(design @ solution, log_w, rtol=1e-8, atol=1e-8):
            raise JoinedDataError(f"the elements of {sorted(plates)} are no independent data")
        bounds, start = -solution[0], 1
        for part in parts:
            each = part @ solution[start : start + part.shape[1]]
            start += part.shape[1]
            bounds = bounds - (torch.logaddexp(each[:, None], each) - torch.tensor(2.0).log())
        bounds = bounds.expand(len(group), len(group))
        share = weights.sum()
        mean, total = mean + (weights[:, None] * weights * bounds).sum() / share, total + share
        found.append(bounds.flatten())
    return (mean / total).item(), torch.cat(found)


def _dims(description: Description, plates: Collection[str]) -> dict[str, tuple[int, list[int]]]:
    """Of each site in all of the plates, at which step of a sequential one it is (0 where there is none), and where the
    others stand in its values."""
    found: dict[str, tuple[int, list[int]]] = {}
    for site in description.sites():
        loop = {f"{site.name}_steps"} if isinstance(site, Chain) and site.way == "plate" else set[str]()
        if set(plates) <= {*site.plates, *loop}:
            event = 0 if site.family in SCALARS else 2 if site.family == "pair_of_one_hots" else 1
            names = [f"{site.name}_{t}" for t in range(site.length)] if isinstance(site, Chain) else [site.name]
            dims = sorted(description.plate(p).dim - event for p in plates if p not in loop)
            found |= {name: (t if loop & {*plates} else 0, dims) for t, name in enumerate(names)}
    return found


def _elements(values: Mapping[str, Tensor], dims: Mapping[str, tuple[int, list[int]]]) -> Tensor:
    """The values of the sites in the plates, by element: `[elements, values]`; `[0, 0]` where there is no such site."""
    columns: dict[int, list[Tensor]] = {}
    for name, value in values.items():
        if name in dims:
            step, at = dims[name]
            value = value.detach().movedim(at, list(range(len(at))))
            value = value.flatten(0, len(at) - 1) if at else value.unsqueeze(0)
            columns.setdefault(step, []).append(value.reshape(len(value), -1) * 1.0)
    return torch.cat([torch.cat(each, 1) for each in columns.values()]) if columns else torch.zeros(0, 0)
