"""What several processes train together in tests: cases by name, run in all of them, and how they are started.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 python -m tests.support.rank_cases FOLDER CASE CASE ...

Each process writes what came of its cases into the folder.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_discrete import NVIL, RELAX, FitResult, FitState, OptimalControlVariate, TraceELBO, TraceIWELBO, fit
from pyro_discrete.interrupts import Interrupted
from tests.support.training_pairs import Pair as Network

ROOT = Path(__file__).parents[2]
X = torch.randn(23, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
POPULATION = 100


class Bits:
    """A bit a datum, and a global one if `shared`, in a plate that is whole, `subsampled`, or gone through one by one.

    The first parameter is drawn, so that it is seen whether all processes begin as one does.
    """

    def __init__(
        self, subsampled: bool = False, shared: bool = False, sequential: bool = False, start: Tensor | None = None
    ) -> None:
        self.subsampled, self.shared, self.sequential, self.start = subsampled, shared, sequential, start

    def plate(self, x: Tensor) -> Any:
        if self.subsampled:
            return pyro.plate("data", POPULATION, subsample=torch.arange(len(x)))
        return pyro.plate("data", len(x))

    def each(self, x: Tensor) -> Any:
        if self.sequential:
            for i in self.plate(x):
                yield f"_{i}", x[int(i)]
            return
        with self.plate(x):
            yield "", x

    def model(self, x: Tensor) -> None:
        w = pyro.param("w", lambda: torch.randn(3, dtype=torch.float64) if self.start is None else self.start.clone())
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.3).to(x))) if self.shared else torch.zeros(()).to(x)
        for suffix, data in self.each(x):
            z = pyro.sample(f"z{suffix}", dist.Bernoulli(0.3 + 0.2 * w[0].sigmoid() + 0.2 * g))
            mean = z.unsqueeze(-1) * w + 0.5 * g.unsqueeze(-1)
            pyro.sample(f"x{suffix}", dist.Normal(mean, 1.0).to_event(1), obs=data)

    def guide(self, x: Tensor) -> None:
        if self.shared:
            pyro.sample("g", dist.Bernoulli(logits=pyro.param("c", torch.tensor(0.2, dtype=torch.float64))))
        a = pyro.param("a", torch.zeros(3, dtype=torch.float64))
        for suffix, data in self.each(x):
            pyro.sample(f"z{suffix}", dist.Bernoulli(logits=data @ a + 0.1))


class Collected(torch.optim.Optimizer):
    """Steps nowhere: adds up gradients, and their squares."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["sum"] = state.get("sum", 0) + parameter.grad
                    state["squares"] = state.get("squares", 0) + parameter.grad.square()

    def means(self, named: dict[str, Tensor], steps: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean gradient and its standard error, by the parameter's name."""
        found = {}
        for name in ("w", "a", "c"):
            if name in named:
                mean, squares = (self.state[named[name]][key] / steps for key in ("sum", "squares"))
                found[name] = mean, ((squares - mean.square()).clamp(min=0) / (steps - 1)).sqrt()
        return found


def train(elbo: Any, pair: Any = None, data: Any = X, **settings: Any) -> FitResult:
    """A run as in a new process."""
    pyro.clear_param_store()
    pair = pair or Bits()
    settings = {"lr": 0.05, "steps": 30, "seed": 1, "log_every": 5, "progress": False, **settings}
    if isinstance(data, Tensor):
        settings.setdefault("batch_size", 7)
    return fit(pair.model, pair.guide, data, elbo, **settings)


def parameters(result: FitResult) -> dict[str, Any]:
    found = {name: parameter.detach().clone() for name, parameter in result.parameters.items()}
    return {"parameters": found, "loss": result.history["loss"].values.tolist(), "step": result.step}


EXACT: dict[str, Callable[[], FitResult]] = {
    "plain": lambda: train("enumerate"),
    "plain, global": lambda: train("enumerate", Bits(shared=True)),
    "subsampled": lambda: train("enumerate", Bits(subsampled=True)),
    "subsampled, global": lambda: train("enumerate", Bits(subsampled=True, shared=True)),
    "captured": lambda: train(TraceELBO("enumerate", compile="graph")),
    "sequential": lambda: train("enumerate", Bits(sequential=True), steps=4),
    "whole data": lambda: train("enumerate", batch_size=None),
    "one left over": lambda: train("enumerate", Bits(shared=True), data=X[:15]),
    "loader": lambda: train(
        "enumerate", data=DataLoader(TensorDataset(X), batch_size=7, generator=torch.Generator(), shuffle=True)
    ),
    "by name": lambda: train("enumerate", data={"x": X}, batch_size=7, data_plate="data"),
    "bound": lambda: train(TraceIWELBO("reinforce", num_particles=3), Summed(), steps=10),
    "schedule": lambda: train(
        "enumerate",
        scheduler=partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
        validation_data=X[:10],
        validate_every=5,
        patience=4,
        clip_norm=0.5,
    ),
}
"""What is exact gives the same in several processes as in one."""


class Summed:
    """The guide draws nothing, so that a bound of it has no noise."""

    def model(self, x: Tensor) -> None:
        w = pyro.param("w", torch.ones(3, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


SAMPLED: dict[str, Callable[[], Any]] = {
    "rloo": lambda: TraceELBO("rloo", num_particles=2),
    "nvil": lambda: TraceELBO(NVIL(variance_normalisation=False, learning_rate=0.01)),
    "disarm": lambda: "disarm",
    "double_cv": lambda: TraceELBO("double_cv", num_particles=2),
    "rebar": lambda: "rebar",
    "optimal_control_variate": lambda: "optimal_control_variate",
    "captured": lambda: TraceELBO(NVIL(variance_normalisation=False, learning_rate=0.01), compile="graph"),
    "particles": lambda: TraceELBO("rloo", num_particles=4),
}
START = torch.tensor([0.8, -0.5, 0.3], dtype=torch.float64)


def gradients(elbo: Any, steps: int, split: str = "data") -> dict[str, Any]:
    """The mean gradient on five data, which two ranks cannot share equally, and its standard error."""
    made: list[Collected] = []

    def collect(groups: Any) -> Collected:
        made.append(Collected(groups))
        return made[0]

    pair = Bits(shared=True, start=START)
    result = train(elbo, pair, X[:5], batch_size=None, steps=steps, optimizer=collect, lr=None, split=split)
    return made[0].means(dict(result.parameters), result.step)


LEARNED: dict[str, Callable[[], Any]] = {
    "nvil": lambda: TraceELBO("nvil"),
    "its own optimiser": lambda: TraceELBO(NVIL(learning_rate=0.01)),
    "optimal_control_variate": lambda: TraceELBO(OptimalControlVariate()),
    "relax": lambda: TraceELBO(RELAX()),
    "captured": lambda: TraceELBO(NVIL(learning_rate=0.01), compile="graph"),
    "muprop": lambda: TraceELBO("muprop"),
}


def learned(name: str) -> dict[str, Any]:
    """Everything that is learned, after some steps of a network with a buffer that changes."""
    elbo, network = LEARNED[name](), Network()
    result = train(elbo, network, data=X.float(), steps=13, batch_size=8)
    flat: dict[str, Any] = {}

    def flatten(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                flatten(part, f"{path}/{key}")
        elif isinstance(value, Tensor):
            flat[path] = value.detach().clone()

    flatten({**elbo.state_dict(), "network": network.state_dict()}, "")
    return {"state": flat, "random": torch.get_rng_state(), **parameters(result)}


def on_rank_one(here: Any, there: Any) -> Any:
    return there if int(os.environ.get("RANK", "0")) == 1 else here


class Differing(Bits):
    """Differs on rank 1 in the way that it is called after."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = on_rank_one("", how)

    def model(self, x: Tensor) -> None:
        if self.how == "parameter":
            pyro.param("v", torch.zeros(2))
        super().model(x if self.how != "program" else 2 * x)


class PerDatum(Bits):
    def guide(self, x: Tensor) -> None:
        with self.plate(x):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(len(x), dtype=torch.float64))))


class Outside(Bits):
    def model(self, x: Tensor) -> None:
        super().model(x)
        pyro.sample("y", dist.Normal(torch.zeros(len(x)).to(x), 1.0).to_event(1), obs=x[:, 0])


class NoPlate:
    def model(self, x: Tensor) -> None:
        w = pyro.param("w", torch.zeros(3, dtype=torch.float64))
        pyro.factor("f", -(x - w).square().sum())

    def guide(self, x: Tensor) -> None:
        pass


class Unreadable:
    """A transform that fails on rank 1, some steps after the beginning."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == on_rank_one(0, 12):
            raise RuntimeError("the disk of rank 1 is full")
        return x


def failing_callback(state: FitState) -> None:
    if state.rank == 1 and state.step == 10:
        raise ValueError("nothing to report")


def stopping_callback(state: FitState) -> None:
    if state.rank == 1 and state.step == 10:
        state.stop("rank 1 has had enough")


class Unmade(NoPlate):
    """A parameter that comes into being on one rank alone."""

    calls = 0

    def model(self, x: Tensor) -> None:
        Unmade.calls += 1
        with pyro.plate("data", len(x)):
            w = pyro.param("w", torch.zeros(3, dtype=torch.float64))
            if on_rank_one(0, 1) and Unmade.calls > 12:
                w = w + pyro.param("late", torch.ones(3, dtype=torch.float64))
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


REFUSED: dict[str, Callable[[], Any]] = {
    "data": lambda: train("enumerate", data=on_rank_one(X, torch.cat([X[:-1], 2 * X[-1:]]))),
    "settings": lambda: train("enumerate", steps=on_rank_one(30, 31)),
    "program": lambda: train("enumerate", Differing("program")),
    "parameter": lambda: train("enumerate", Differing("parameter")),
    "late parameter": lambda: train("enumerate", Unmade()),
    "a rank without data": lambda: train("enumerate", batch_size=1),
    "a param a datum": lambda: train("enumerate", PerDatum()),
    "a site outside": lambda: train("enumerate", Outside()),
    "no plate": lambda: train("enumerate", NoPlate()),
    "unknown plate": lambda: train("enumerate", data_plate="dato"),
    "failing": lambda: train("enumerate", transform=Unreadable()),
    "failing callback": lambda: train("enumerate", callbacks=[failing_callback]),
    "particles": lambda: train(TraceELBO("rloo", num_particles=3), split="particles"),
    "too few particles": lambda: train(TraceELBO("rloo", num_particles=2), split="particles"),
    "several lengths": lambda: train("enumerate", data=(X, torch.zeros(2)), batch_size=None),
    "unwritable": lambda: train("enumerate", checkpoint="/dev/null/run.pt"),
    "nothing to resume": lambda: train("enumerate", checkpoint="/tmp/there-is-none.pt", resume=True),
}


class At:
    """A callback that sends this process a signal, if it is of that rank, at a step."""

    every = 1

    def __init__(self, step: int, rank: int, number: int) -> None:
        self.step, self.rank, self.number = step, rank, number

    def __call__(self, state: FitState) -> None:
        if state.step == self.step and state.rank == self.rank:
            os.kill(os.getpid(), self.number)


def checkpointed(folder: Path, name: str, **settings: Any) -> FitResult:
    settings = {"checkpoint": folder / f"{name}.pt", "checkpoint_every": 7, "resume": "auto", **settings}
    return train(TraceELBO(NVIL(learning_rate=0.01)), Bits(shared=True), **settings)


def case(name: str, folder: Path) -> Any:
    kind, _, rest = name.partition(": ")
    if kind == "exact":
        return parameters(EXACT[rest]())
    if kind == "sampled":
        return gradients(SAMPLED[rest](), 300, "particles" if rest == "particles" else "data")
    if kind in ("learned", "learned again"):
        return learned(rest)
    if kind == "refused":
        return parameters(REFUSED[rest]())
    if kind == "stopped by":
        return train("enumerate", callbacks=[stopping_callback]).stopped
    if kind == "whole":
        return parameters(checkpointed(folder, "whole", callbacks=[print_nothing]))
    if kind == "signal":
        return parameters(checkpointed(folder, "signal", callbacks=[At(10, 1, getattr(signal, rest))]))
    if kind == "killed":
        return parameters(checkpointed(folder, "killed", callbacks=[At(10, 1, signal.SIGKILL)]))
    if kind == "goes on":
        return parameters(checkpointed(folder, rest, callbacks=[print_nothing]))
    if kind == "exact checkpoint":
        pair = Bits(shared=True)
        return parameters(train("enumerate", pair, steps=int(rest), checkpoint=folder / "exact.pt", resume="auto"))
    raise ValueError(name)


def print_nothing(state: FitState) -> None:
    """In the place of a callback that is gone."""


def outcome(name: str, folder: Path) -> Any:
    """What came of a case, or the error as text."""
    try:
        return case(name, folder)
    except Interrupted as error:
        return f"Interrupted: {error.step} {error.number}"
    except Exception as error:
        return " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])


def start(cases: Sequence[str], folder: Path, ranks: int = 2) -> list[subprocess.Popen[bytes]]:
    """Processes that run these cases together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    env |= {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.rank_cases", str(folder), *cases]
    return [
        subprocess.Popen(command, cwd=ROOT, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]


def ended(processes: Sequence[subprocess.Popen[bytes]], seconds: float = 600) -> list[int]:
    """How they ended; those that do not are killed, which is an error."""
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(0.1, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def run(cases: Sequence[str], folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What came of the cases, on each rank that lived to say so."""
    ended(start(cases, folder, ranks))
    found = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    return [torch.load(path, weights_only=False) if path.exists() else {} for path in found]


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    results: dict[str, Any] = {}
    for name in cases:
        results[name] = outcome(name, folder)
        torch.save(results, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
