"""Unrolled chains: what grouping makes of their graphs, and a step beside hand-vectorised code and NumPyro's scan.

    python -m benchmarks.chains.unrolled --curve
    python -m benchmarks.chains.unrolled [hidden:100:4 hidden:1000:4 ...] [--numpyro ENVIRONMENT/bin/python]

A case is a program, its length and the number of states. Milliseconds are medians of process time for the loss and its
gradients, in float64 on one thread: in each round every way runs in turn, twice, and the second time counts. `step` is
all of `TraceELBO.gradients`, compiled; `graph`, `grouped` and `compiled` are the graph alone: as it was traced,
grouped, and compiled. By hand, a hidden Markov model is summed in pairs of links, as tensors of all links.

NumPyro runs in a process of its own, in an environment of its own (`pip install numpyro funsor`): its scan, in float64,
whose enumerated log-density gives the loss, jitted with its gradients. Losses are held to each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_discrete import TraceELBO
from pyro_discrete.capture import graph as capture_graph
from pyro_discrete.capture.graph import Capture
from pyro_discrete.capture.grouping import group_alike

CASES = ("hidden:100:4", "hidden:100:16", "hidden:1000:4", "categories:100:4", "bits:100:2", "sequence:100:2")
GOALS = {
    "hidden:100:4": ("NumPyro", 2.5),
    "hidden:100:16": ("by hand, compiled", 1.0),
    "hidden:1000:4": ("by hand, compiled", 1.0),
}
LENGTHS = (25, 50, 100, 200)
CURVES = (("hidden", 4), ("hidden", 16), ("categories", 4), ("bits", 2), ("sequence", 2))
WORKER = Path(__file__).with_name("numpyro_scan.py")


def hidden(states: int, x: Tensor) -> None:
    """A hidden Markov model with normal emissions."""
    logits = pyro.param("transition", lambda: 2 * torch.eye(states)).log_softmax(-1)
    locs = pyro.param("locs", lambda: torch.linspace(-2.0, 2.0, states))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(logits=logits[z]))
        pyro.sample(f"x{t}", dist.Normal(locs[z], 1.0), obs=x[t])


def categories_guide(states: int, x: Tensor) -> None:
    """Each state by itself."""
    q = pyro.param("q", lambda: 0.1 * torch.randn(len(x), states))
    for t in range(len(x)):
        pyro.sample(f"z{t}", dist.Categorical(logits=q[t]))


def bits(x: Tensor) -> None:
    """A chain of two states."""
    a, z = pyro.param("a", lambda: torch.tensor([0.3, 0.8])), torch.tensor(0.0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Bernoulli(logits=a[0] + a[1] * z))
        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


def bits_guide(x: Tensor) -> None:
    """Each bit by itself."""
    q = pyro.param("q", lambda: 0.1 * torch.randn(len(x)))
    for t in range(len(x)):
        pyro.sample(f"z{t}", dist.Bernoulli(logits=q[t]))


def sequence_guide(x: Tensor) -> None:
    """Each bit given the one before: draws that follow one another."""
    q, z = pyro.param("q", lambda: 0.1 * torch.randn(len(x), 2)), torch.tensor(0.0)
    for t in range(len(x)):
        z = pyro.sample(f"z{t}", dist.Bernoulli(logits=q[t, 0] + q[t, 1] * z))


def nothing(x: Tensor) -> None:
    """A guide that leaves all to the sum."""


def program(kind: str, states: int) -> tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]:
    """Model, guide and the arguments of `TraceELBO`."""

    def hmm(x: Tensor) -> None:
        hidden(states, x)

    def categories(x: Tensor) -> None:
        categories_guide(states, x)

    two = {"estimator": "rloo", "num_particles": 2}
    return {
        "hidden": (hmm, nothing, {"estimator": "enumerate"}),
        "categories": (hmm, categories, two),
        "bits": (bits, bits_guide, two),
        "sequence": (bits, sequence_guide, two),
    }[kind]


def by_hand(states: int, x: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]:
    """The hidden Markov model's loss as tensors of all links: as it is, and by `torch.compile`; and its parameters."""
    transition, locs = (2 * torch.eye(states)).requires_grad_(), torch.linspace(-2.0, 2.0, states).requires_grad_()

    def product(a: Tensor, b: Tensor) -> Tensor:
        top, other = a.amax(-1, keepdim=True), b.amax(-2, keepdim=True)
        return ((a - top).exp() @ (b - other).exp()).log() + top + other

    def loss(transition: Tensor, locs: Tensor) -> Tensor:
        logits = transition.log_softmax(-1)
        emissions = torch.distributions.Normal(locs, 1.0, validate_args=False).log_prob(x[:, None])
        first, links = logits[0] + emissions[0], logits + emissions[1:, None, :]
        while len(links) > 1:
            pairs = len(links) // 2 * 2
            links = torch.cat([product(links[:pairs:2], links[1:pairs:2]), links[pairs:]])
        return -(first[:, None] + links[0]).flatten().logsumexp(0)

    compiled = torch.compile(loss, dynamic=False)
    return lambda: loss(transition, locs), lambda: compiled(transition, locs), [transition, locs]


def captured(case: str, compile: Any = "graph") -> tuple[TraceELBO, Any, Capture, Tensor, dict[str, float]]:
    """A pair's ELBO, the pair, its captured step, its data, and how long the first calls took."""
    kind, length, states = case.split(":")
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide, settings = program(kind, int(states))
    x = torch.randn(int(length))
    elbo = TraceELBO(**settings, compile=compile)
    assert elbo.captures is not None
    elbo.captures.least_operations = 0
    grouping = [0.0]

    def timed(*args: Any) -> Any:
        begun = time.process_time()
        made = group_alike(*args)
        grouping[0] = time.process_time() - begun
        return made

    capture_graph.group_alike = timed  # type: ignore[attr-defined]
    try:
        begun = time.process_time()
        elbo.loss_and_grads(model, guide, x)
        first = time.process_time() - begun
        elbo.loss_and_grads(model, guide, x)
    finally:
        capture_graph.group_alike = group_alike  # type: ignore[attr-defined]
    seconds = {"first": first, "grouping": grouping[0], "start-up": time.process_time() - begun}
    graph = next(kind.step.graph for kinds in elbo.captures._kinds.values() for kind in kinds if kind.step)
    return elbo, (model, guide), graph, x, seconds


def curve() -> None:
    """How many operations a step has, over the length: as traced, and grouped."""
    print("| program |", " | ".join(f"{n} steps" for n in LENGTHS), "|")
    print("| --- " * (len(LENGTHS) + 1) + "|")
    for kind, states in CURVES:
        cells = []
        for length in LENGTHS:
            graph = captured(f"{kind}:{length}:{states}")[2]
            cells.append(f"{len(graph.graph):,} to {graph.operations:,}")
        print(f"| {kind}, {states} states |", " | ".join(cells), "|", flush=True)


def medians(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Process time of each in ms, all of them once in every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(next(iter(times.values()))) < 7:
        for name, run in runs.items():
            for _ in range(2):  # the second with warm caches
                begun = time.process_time()
                run()
                spent = time.process_time() - begun
            times[name].append(1e3 * spent)
    return {name: statistics.median(each) for name, each in times.items()}


def measure(case: str, seconds: float, numpyro: str | None) -> dict[str, Any]:
    """One case: its sizes, start-up and times."""
    kind, _, states = case.split(":")
    elbo, (model, guide), graph, x, spent = captured(case)
    begun = time.process_time()
    graph.compile([x])
    graph([x])
    row: dict[str, Any] = {
        "case": case,
        "nodes": [len(graph.graph), graph.operations],
        **{f"{name}, s": value for name, value in spent.items()},
        "compiling, s": time.process_time() - begun,
    }
    for _ in range(16):  # of these, the first few are compared with the program
        elbo.gradients(model, guide, x)
    compiled, grouped = graph._function, graph._grouped
    inputs = [x, *graph.tensors]

    def plain(function: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return function(*inputs)

        return run

    runs: dict[str, Callable[[], Any]] = {
        "step": lambda: elbo.gradients(model, guide, x),
        "compiled": plain(compiled),
        "graph": plain(graph.graph.module().forward),
    }
    if grouped is not None:
        runs["grouped"] = plain(grouped.module().forward)
    if kind == "hidden":
        eager, fast, parameters = by_hand(int(states), x)
        assert abs(float(eager() - graph([x])[0])) < 1e-8
        runs["by hand"] = lambda: torch.autograd.grad(eager(), parameters)
        runs["by hand, compiled"] = lambda: torch.autograd.grad(fast(), parameters)
    row |= medians(runs, seconds)
    if kind == "hidden" and numpyro:
        settings = json.dumps({"x": x.tolist(), "states": int(states), "seconds": seconds})
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        done = subprocess.run(
            [numpyro, str(WORKER), settings], capture_output=True, text=True, check=True, env=environment
        )
        found = json.loads(done.stdout.splitlines()[-1])
        row["NumPyro"] = found["ms"]
        assert abs(found["loss"] - float(graph([x])[0])) < 1e-6 * abs(found["loss"])
    if case in GOALS and GOALS[case][0] in row:
        against, most = GOALS[case]
        row["goal"] = f"{row['step'] / row[against]:.2f} of {against}, at most {most}"
    return row


def main() -> None:
    """Print the curve, or measure cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--numpyro", help="Python of an environment that has NumPyro")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.curve:
        curve()
        return
    for case in arguments.cases:
        row = measure(case, arguments.seconds, arguments.numpyro)
        print({k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
