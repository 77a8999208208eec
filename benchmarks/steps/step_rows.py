"""Ways to make a training step: this package's, Pyro's, by hand, and those of libraries in processes of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate

from benchmarks.steps.step_shapes import DRAWS, Shape, by_hand, training_loop
from pyro_discrete import TraceELBO

__all__ = ["Here", "Row", "Worker", "rows_here"]

LR = 1e-3


class Row(ABC):
    """One way of making steps; `times` in ms of the processor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.times: list[float] = []

    @abstractmethod
    def turn(self, steps: int) -> list[float]:
        """Make so many steps; ms of each."""

    def measure(self, steps: int) -> None:
        """A turn among the others; its first step, which finds cold caches, does not count."""
        self.times += self.turn(steps + 1)[1:]

    @property
    def median(self) -> float:
        return statistics.median(self.times)


class Here(Row):
    """In this process, with a param store of its own."""

    def __init__(self, name: str, make: Callable[[], Callable[[], Any]]) -> None:
        super().__init__(name)
        self._state: Any = None
        with self._store():
            self.step = make()

    @contextmanager
    def _store(self) -> Iterator[None]:
        store = pyro.get_param_store()
        state: Any = self._state if self._state is not None else {"params": {}, "constraints": {}}
        with store.scope(state) as self._state:
            yield

    def turn(self, steps: int) -> list[float]:
        times = []
        with self._store():
            for _ in range(steps):
                started = time.process_time()
                self.step()
                times.append(1000 * (time.process_time() - started))
        return times


class Worker(Row):
    """In a process and an environment of its own: told how many steps to make, it says how long each took."""

    def __init__(self, name: str, python: str, script: str, shape: Shape, key: str, path: str | None = None) -> None:
        super().__init__(name)
        environment = {**os.environ, **({"PYTHONPATH": path} if path else {}), "OMP_NUM_THREADS": "1"}
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        settings = {**vars(shape), "key": key}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(script)), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.version = self._answer("version")

    def _answer(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended, see its message above")
        return json.loads(line)

    def turn(self, steps: int) -> list[float]:
        return self._answer(str(steps))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def rows_here(shape: Shape, compiled: bool = True) -> list[Row]:
    """Every way that this environment has, each with parameters of its own that start alike."""
    x = shape.data()
    estimator: dict[str, Any] = {"estimator": "enumerate"} if shape.exact else {"estimator": "rloo"}
    if not shape.exact:
        estimator["num_particles"] = DRAWS

    def fitted(compile: bool) -> Callable[[], Any]:
        program = shape.program()
        loop = training_loop(program, TraceELBO(**estimator, compile=compile), x, LR)
        loop.begin(None)
        return lambda: loop.advance(recorded=False)

    def svi(loss: Any, enumerate: bool = False) -> Callable[[], Any]:
        program = shape.program()
        model = config_enumerate(program.model) if enumerate else program.model
        inference = SVI(model, program.guide, pyro.optim.Adam({"lr": LR}), loss=loss)
        return lambda: inference.step(x)

    def hand(compile: bool, fused: bool = True) -> Callable[[], Any]:
        program = shape.program()
        loss = by_hand(shape, program)
        loss = torch.compile(loss) if compile else loss
        optimiser = torch.optim.Adam(program.parameters(), lr=LR, fused=fused)

        def step() -> None:
            optimiser.zero_grad()
            loss(x).backward()
            optimiser.step()

        return step

    particles: dict[str, Any] = {"num_particles": DRAWS, "vectorize_particles": True, "max_plate_nesting": 1}
    pyros: dict[str, Callable[[], Callable[[], Any]]] = {
        "Pyro Trace_ELBO": lambda: svi(Trace_ELBO(**particles)),
        "Pyro TraceGraph_ELBO": lambda: svi(TraceGraph_ELBO(**particles)),
        "Pyro JitTrace_ELBO": lambda: svi(JitTrace_ELBO(**particles, ignore_jit_warnings=True)),
    }
    if shape.exact:
        pyros = {"Pyro TraceEnum_ELBO": lambda: svi(TraceEnum_ELBO(max_plate_nesting=1), enumerate=True)}
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "fit, eager": lambda: fitted(False),
        "SVI.step, eager": lambda: svi(TraceELBO(**estimator)),
        **pyros,
        "by hand, eager": lambda: hand(False, fused=False),
        "by hand, eager, fused Adam": lambda: hand(False),
    }
    if compiled:
        makers = {
            "fit, compile=True": lambda: fitted(True),
            "SVI.step, compile=True": lambda: svi(TraceELBO(**estimator, compile=True)),
            **makers,
            "by hand, torch.compile": lambda: hand(True),
        }
    rows: list[Row] = []
    for name, make in makers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started = time.perf_counter()
            row = Here(name, make)
            row.turn(4)  # captures and compiles
            print(f"  {name}: ready after {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        rows.append(row)
    return rows
