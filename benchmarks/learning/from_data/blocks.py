"""Groups of the karate club and of a connectome's neurons; their number by the bound; what a step costs.

    python -m benchmarks.learning.from_data.blocks

Marks: at most two members of the club on the wrong side, and neurons' groups that agree with the types of cells better
than spectral clustering's, on the left and on the right. The number of groups and the curve of costs are printed,
without a mark.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.learning.from_data.line import Line
from models.data.catalogue import load_data
from models.data.dataset import Dataset
from models.programs.blocks import BlockModel
from models.runs.config import configure
from models.runs.evaluation import bounds, isolated
from models.runs.findings import findings
from models.runs.training import Training
from pyro_discrete import TraceELBO
from pyro_discrete.errors import DiscreteInferenceError

__all__ = ["bound_by_groups", "lines", "milliseconds"]

SPLIT_OFF = 2
"""Members of the karate club."""
CLUB: dict[str, Any] = {"data": "karate-club", "categories": 2, "steps": 300}
NEURONS: tuple[dict[str, Any], ...] = tuple(
    {"data": f"mushroom-body-{side}", "categories": 6, "degrees": "equal", "steps": 300} for side in ("left", "right")
)
"""Cells of a type have alike partners and alike numbers of them, so that degrees are not corrected for."""
ESTIMATOR = "gumbel_softmax"
BOUND_SAMPLES = 200
NODES = (8, 12, 30, 60, 120, 240)
OF_A_STEP = ("enumerate", "indecater", "rloo", "nvil", "gumbel_softmax")
STEPS = 3
EDGES_OF_A_NODE = 8


def trained(settings: dict[str, Any], data: Dataset) -> BlockModel:
    """The model after the settings' run, with the estimator of these lines."""
    config = configure("blocks", ESTIMATOR, **settings)
    with isolated(config.seed):
        training = Training(config, data)
        training.run()
    assert isinstance(training.program, BlockModel)
    return training.program


def bound_by_groups(settings: dict[str, Any], groups: Iterable[int]) -> dict[int, float]:
    """The ELBO in nats after a run with each number of groups."""
    data = load_data(settings["data"])
    return {
        number: bounds(trained({**settings, "categories": number}, data), data.test, BOUND_SAMPLES).elbo
        for number in groups
    }


def milliseconds(estimator: str, nodes: int, groups: int = 4) -> float | None:
    """Processor time of a step on a random graph, the least of some; None where the estimator refuses the size."""
    torch.manual_seed(0)
    upper = (torch.rand(nodes, nodes) < EDGES_OF_A_NODE / nodes).float().triu(1)
    edges = upper + upper.mT
    program = BlockModel(edges, torch.randint(groups, (nodes,)), groups)
    times = []
    with isolated(0):
        elbo = TraceELBO(estimator, num_particles=2 if estimator == "rloo" else 1)
        for _ in range(1 + STEPS):
            started = time.process_time()
            try:
                elbo.loss_and_grads(program.model, program.guide, edges[None])
            except DiscreteInferenceError:
                return None
            times.append(1000 * (time.process_time() - started))
    return min(times[1:])


def lines(seed: int = 0, club: dict[str, Any] = CLUB, neurons: Sequence[dict[str, Any]] = NEURONS) -> Iterator[Line]:
    """Raises `DataError` where the connectome is not installed, after the club's line."""
    found = _found(club, seed)
    off, by_spectrum = found["split_off"], found["spectral_split_off"]
    yield Line(
        "blocks",
        f"{club['data']}: nodes not in the group that they belong to",
        f"at most {SPLIT_OFF}",
        f"{off:.0f} (spectral clustering {by_spectrum:.0f})",
        off <= SPLIT_OFF,
        off,
    )
    for settings in neurons:
        yield _agreement(settings, _found(settings, seed))


def _found(settings: dict[str, Any], seed: int) -> dict[str, float]:
    data = load_data(settings["data"])
    return findings(trained({**settings, "seed": seed}, data), data, data.test)


def _agreement(settings: dict[str, Any], found: dict[str, float]) -> Line:
    own, spectral = found["adjusted_rand_index"], found["spectral_adjusted_rand_index"]
    return Line(
        "blocks",
        f"{settings['data']}: adjusted Rand index of {settings['categories']} groups and the known ones",
        "at least spectral clustering's",
        f"{own:.3f} (spectral clustering {spectral:.3f})",
        own >= spectral,
        own,
    )


def main() -> None:
    for line in lines():
        print(f"{line.claim}: {line.found}, mark: {line.mark}; {'right' if line.right else 'short'}", flush=True)
    for settings, numbers in ((CLUB, range(2, 5)), *((side, range(3, 9)) for side in NEURONS)):
        for number, elbo in bound_by_groups(settings, numbers).items():
            print(f"{settings['data']}, {number} groups: ELBO {elbo:.1f}", flush=True)
    print("ms a step, nodes " + ", ".join(map(str, NODES)))
    for estimator in OF_A_STEP:
        found = [milliseconds(estimator, nodes) for nodes in NODES]
        print(f"{estimator}: " + ", ".join("refused" if ms is None else f"{ms:.1f}" for ms in found), flush=True)


if __name__ == "__main__":
    main()
