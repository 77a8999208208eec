"""What a step takes beside Pyro, before anything is compiled; what a first call takes; how both grow along a chain.

    python -m benchmarks.steps.eager_steps
    python -m benchmarks.steps.eager_steps --only "chain*" --parts steps --turns 40

Whole steps of `SVI` with Adam (validation off, one thread) by `TraceELBO`, by Pyro's ELBOs with as many particles, by
hand in PyTorch and as a captured graph (`compile="graph"`) are made in turns, in one process. A ratio is the median of
the turns' ratios, with the middle half of them; times are the processor's. Of the programs of `benchmarks.examples`,
after Pyro's examples and after packages, loss and gradient by exact sums are timed; what they are is compared by
`benchmarks.soundness.pyro_examples`. A first call is put beside the median of later ones.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro.infer import SVI, JitTraceEnum_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor

from benchmarks.examples.catalogue import names
from benchmarks.examples.example import EXAMPLES, Example
from benchmarks.steps.enumeration import chain, nothing
from benchmarks.steps.step_rows import LR, Here
from benchmarks.steps.step_shapes import DRAWS, SHAPES, Shape, by_hand
from pyro_discrete import TraceELBO

__all__ = ["CONTESTS", "Contest", "Ratio", "first_call", "ratios", "timed"]

Ratio = tuple[float, float, float]
"""The median, and the quartiles around it."""

Make = Callable[[], Callable[[], Any]]
"""Sets a step up, with parameters in the param store of the moment."""

OURS, GRAPH, JIT = "ours", 'ours, compile="graph"', "JitTraceEnum_ELBO"
STEPS = 2
"""Steps in a turn that count, after one that does not."""


@dataclass(frozen=True)
class Contest:
    """Ways of making the same steps. `goals`: the ratio of ours to another way's time that is aimed at."""

    ways: Mapping[str, Make]
    goals: Mapping[str, float]
    first: float | None = None
    """In how many later steps' time the first call is to be over, where that is aimed at."""


def quartiles(found: Iterable[float]) -> Ratio:
    """Median, lower and upper quartile."""
    lower, middle, upper = statistics.quantiles(found, n=4, method="inclusive")
    return middle, lower, upper


def svi(model: Any, guide: Any, args: tuple[Any, ...], loss: Any) -> Callable[[], Any]:
    """A step of Pyro's, with Adam."""
    inference = SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss=loss)
    return lambda: inference.step(*args)


def network(shape: Shape, particles: int, goals: Mapping[str, float], first: float | None = None) -> Contest:
    """A belief network with one layer of draws: "rloo", or "reinforce" with one particle."""
    estimator = "rloo" if particles > 1 else "reinforce"

    def by(make: Callable[[], Any]) -> Make:
        def setup() -> Callable[[], Any]:
            program = shape.program()
            return svi(program.model, program.guide, (shape.data(),), make())

        return setup

    def hand() -> Callable[[], Any]:
        program, x = shape.program(), shape.data()
        loss, optimiser = by_hand(shape, program), torch.optim.Adam(program.parameters(), lr=LR)

        def step() -> None:
            optimiser.zero_grad()
            loss(x).backward()
            optimiser.step()

        return step

    settings: Any = {"num_particles": particles, "vectorize_particles": True, "max_plate_nesting": 1}
    ways: dict[str, Make] = {
        OURS: by(lambda: TraceELBO(estimator, num_particles=particles)),
        "Trace_ELBO": by(lambda: Trace_ELBO(**settings)),
        "TraceGraph_ELBO": by(lambda: TraceGraph_ELBO(**settings)),
        GRAPH: by(lambda: TraceELBO(estimator, num_particles=particles, compile="graph")),
    }
    if particles == DRAWS:
        ways["by hand"] = hand
    return Contest(ways, goals, first)


def exact(
    model: Any, guide: Any, args: tuple[Any, ...], goal: float | None, first: float | None = None, spec: str = ""
) -> Contest:
    """Exact sums of a pair, beside Pyro's of the same pair with its marks."""
    marked = config_enumerate(model), config_enumerate(guide)
    ways: dict[str, Make] = {
        OURS: lambda: svi(model, guide, args, TraceELBO(spec or "enumerate")),
        "TraceEnum_ELBO": lambda: svi(*marked, args, TraceEnum_ELBO(max_plate_nesting=1)),
        GRAPH: lambda: svi(model, guide, args, TraceELBO(spec or "enumerate", compile="graph")),
        JIT: lambda: svi(*marked, args, JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)),
    }
    return Contest(ways, {} if goal is None else {"TraceEnum_ELBO": goal}, first)


KINDS, POINTS = 5, 600


def looked_up(bayesian: bool, goal: float, first: float | None = None, spec: str = "") -> Contest:
    """A mixture of 5 Gaussians over 600 points, assignments in the guide; `bayesian`: the guide draws their means."""
    x = 3 * torch.randn(POINTS, generator=torch.Generator().manual_seed(1))

    def model(x: Tensor) -> None:
        if bayesian:
            with pyro.plate("parts", KINDS):
                loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        else:
            loc = pyro.param("loc", lambda: torch.linspace(-4.0, 4.0, KINDS))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(KINDS)))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if bayesian:
            with pyro.plate("parts", KINDS):
                place = pyro.param("place", lambda: torch.linspace(-4.0, 4.0, KINDS))
                pyro.sample("loc", dist.Normal(place, 0.1))
        logits = pyro.param("q", lambda: torch.zeros(len(x), KINDS))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return exact(model, guide, (x,), goal, first, spec)


def chained(length: int, goal: float | None = None, first: float | None = None) -> Contest:
    """A hidden Markov model, all of its states in the model alone."""
    x = torch.randn(length, generator=torch.Generator().manual_seed(1))
    return exact(chain, nothing, (x,), goal, first)


SMALL = Shape("64-20, batch 50", "binary", 50, latents=(20,), pixels=64)
CONTESTS: dict[str, Callable[[], Contest]] = {
    "784-200, two particles": lambda: network(
        SHAPES["linear-50"], 2, {"Trace_ELBO": 0.95, "TraceGraph_ELBO": 0.65}, first=5
    ),
    "784-200, one particle": lambda: network(SHAPES["linear-50"], 1, {"Trace_ELBO": 1.0, "TraceGraph_ELBO": 0.65}),
    "64-20, two particles": lambda: network(SMALL, 2, {"Trace_ELBO": 0.85, "TraceGraph_ELBO": 0.65}),
    "64-20, one particle": lambda: network(SMALL, 1, {"Trace_ELBO": 0.85, "TraceGraph_ELBO": 0.65}),
    "mixture": lambda: looked_up(False, 0.85, first=5),
    "`loc[z]`": lambda: looked_up(True, 0.9),
    '`loc[z]`, "auto"': lambda: looked_up(True, 0.9, spec="auto"),
    "chain of 100": lambda: chained(100, 0.6),
    "chain of 200": lambda: chained(200, first=5),
    "chain of 1,000": lambda: chained(1_000, 0.6),
    "chain of 10,000": lambda: chained(10_000, 0.5),
}
LONGEST = "chain of 10,000"
"""Of which two turns of one step are made, and no graph."""
CURVE = (100, 1_000, 10_000)
PACKAGES = ("lineages", "spots", "ploidy", "classes_of_images", "classes_of_the_model", "copies_by_hand", "droplets")
"""The programs that are as programs of packages were that once went slowly, or not at all."""


def ratios(
    contest: Contest, turns: int, without: Iterable[str] = (), before: int = 4, counted: int = STEPS
) -> tuple[dict[str, float], dict[str, Ratio]]:
    """Median ms of each way, and ours by each of the others.

    `before`: steps of each way ahead of the turns. `counted`: those of a turn that count.
    """
    rows = {}
    for name, make in contest.ways.items():
        if name not in without:
            rows[name] = Here(name, make)
            rows[name].turn(before)  # plans, captures
    found: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(turns):
        for name in list(rows) if turn % 2 == 0 else reversed(list(rows)):
            found[name].append(statistics.median(rows[name].turn(counted + 1)[1:]))
    compared = {
        name: quartiles([mine / other for mine, other in zip(found[OURS], taken, strict=True)])
        for name, taken in found.items()
        if name != OURS
    }
    return {name: statistics.median(taken) for name, taken in found.items()}, compared


WARM_UP = 3


def timed(name: str, turns: int) -> tuple[float, float, Ratio]:
    """Ms of loss and gradient of an example by our exact sums, and by Pyro's, and the ratio."""
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = EXAMPLES[name]()
        made.guide(*made.args)
        settings: Any = {"max_plate_nesting": made.nesting}
        elbos = TraceELBO("enumerate", **settings), TraceEnum_ELBO(**settings)
        found = [[_milliseconds(elbo, made) for elbo in elbos] for _ in range(WARM_UP + turns)][WARM_UP:]
    ours, theirs = zip(*found, strict=True)
    return statistics.median(ours), statistics.median(theirs), quartiles(one / other for one, other in found)


def _milliseconds(elbo: Any, made: Example) -> float:
    start = time.process_time()
    elbo.loss_and_grads(made.model, made.guide, *made.args)
    spent = 1e3 * (time.process_time() - start)
    for parameter in pyro.get_param_store().values():
        parameter.unconstrained().grad = None
    return spent


def first_call(make: Make, later: int) -> tuple[float, float]:
    """Ms of a first step, and the median of so many later ones; what earlier calls have left is collected before."""
    gc.collect()
    times = Here("", make).turn(1 + later)
    return times[0], statistics.median(times[1:])


def _shown(ratio: Ratio) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def _steps(only: str, turns: int, graph: bool) -> None:
    print("| a step of | ours, ms | by | ms | ours / that | aim |\n| --- | --- | --- | --- | --- | --- |")
    for name, make in CONTESTS.items():
        if fnmatchcase(name, only):
            if name == LONGEST:
                ms, compared = ratios(make(), 2, (GRAPH, JIT), before=1, counted=1)
            else:
                ms, compared = ratios(make(), turns, (JIT,) if graph else (GRAPH, JIT))
            goals = make().goals
            for other, ratio in compared.items():
                aim = goals.get(other, "")
                print(f"| {name} | {ms[OURS]:.2f} | {other} | {ms[other]:.2f} | {_shown(ratio)} | {aim} |", flush=True)


def _examples(only: str, turns: int) -> None:
    print(
        "| loss and gradient of | ours, ms | TraceEnum_ELBO, ms | ours / that | aim |\n| --- | --- | --- | --- | --- |"
    )
    for name in names():
        if fnmatchcase(name, only):
            ours, theirs, ratio = timed(name, turns)
            aim = 1.1 if name in PACKAGES else 1.0
            print(f"| `{name}` | {ours:.2f} | {theirs:.2f} | {_shown(ratio)} | {aim} |", flush=True)


def _first(only: str, tries: int) -> None:
    print("| first call of | s | in later steps | aim |\n| --- | --- | --- | --- |")
    for name, make in CONTESTS.items():
        contest = make()
        if fnmatchcase(name, only) and contest.first is not None:
            first_call(contest.ways[OURS], 3)  # imports, caches of Python's and torch's
            found = [first_call(contest.ways[OURS], 10) for _ in range(tries)]
            ratio = quartiles([first / later for first, later in found])
            seconds = statistics.median(first for first, _ in found) / 1000
            print(f"| {name} | {seconds:.3f} | {_shown(ratio)} | {contest.first:g} |", flush=True)


def _curve(lengths: Iterable[int]) -> None:
    print("| chain of | first call, s | a later step, s | first call a site, ms |\n| --- | --- | --- | --- |")
    first_call(chained(20).ways[OURS], 1)  # imports
    for length in lengths:
        first, later = first_call(chained(length).ways[OURS], 3)
        print(f"| {length:,} | {first / 1000:.2f} | {later / 1000:.3f} | {first / length:.2f} |", flush=True)


def main(
    only: Annotated[str, typer.Option(help="Glob of what is timed, by name.")] = "*",
    parts: Annotated[str, typer.Option(help="Of steps, examples, first, curve: what is measured.")] = (
        "steps,examples,first,curve"
    ),
    turns: Annotated[int, typer.Option(help="How often each way is measured.")] = 30,
    longest: Annotated[int, typer.Option(help="The longest chain of the curve.")] = CURVE[-1],
    graph: Annotated[bool, typer.Option(help="Time captured steps as well.")] = True,
) -> None:
    """Measure, and print tables in Markdown."""
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    chosen = parts.split(",")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "steps" in chosen:
            _steps(only, turns, graph)
        if "examples" in chosen:
            _examples(only, turns)
        if "first" in chosen:
            _first(only, max(3, turns // 5))
        if "curve" in chosen:
            _curve([n for n in CURVE if n <= longest])


if __name__ == "__main__":
    typer.run(main)
