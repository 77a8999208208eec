"""Over a day: does a long run keep its memory, files and threads, and how much does a kill cost it?

    python -m benchmarks.learning.endurance memory --steps 100000 --out runs/endurance
    python -m benchmarks.learning.endurance kills --kills 20 --out runs/endurance

`memory` trains a small belief network on the digits and notes what the process holds. `kills` has another process
train, kills it (SIGKILL) at random moments, each time lets it go on, and compares where it stood with where it goes on;
in the end the run is compared, bit for bit, with one that nobody killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from models.data.catalogue import load_images
from models.programs.sbn import SigmoidBeliefNetwork
from pyro_discrete import FitState, TraceELBO, fit
from pyro_discrete.checkpoints import load_checkpoint, write_atomically

__all__ = ["Held", "app"]

EVERY = 50
"""Steps between two checkpoints."""
app = typer.Typer(add_completion=False)


class Held:
    """A callback that notes what the process holds at some steps: resident memory, open files, threads."""

    every = 1

    def __init__(self, at: list[int]) -> None:
        self.at, self.records = at, list[dict[str, Any]]()

    def __call__(self, state: FitState) -> None:
        if state.step in self.at:
            status = Path("/proc/self/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
            files = len(list(Path("/proc/self/fd").iterdir()))
            counted = {"resident_mib": round(resident, 1), "files": files, "threads": threading.active_count()}
            threads_of_all = int(status.split("Threads:")[1].split()[0])
            self.records.append({"step": state.step, **counted, "threads_of_all": threads_of_all})


def train(steps: int, checkpoint: Path, callbacks: list[Any], compile: Any = False) -> None:
    """A run of a small network, from its checkpoint if there is one."""
    images = load_images("digits")
    torch.manual_seed(0)
    network = SigmoidBeliefNetwork(images.train.mean(0), (8,))
    elbo = TraceELBO("nvil", compile=compile)
    fit(
        network.model,
        network.guide,
        images.train,
        elbo,
        lr=1e-3,
        steps=steps,
        batch_size=20,
        transform=torch.bernoulli,
        seed=0,
        callbacks=callbacks,
        checkpoint=checkpoint,
        checkpoint_every=EVERY if compile is False else 1000,
        resume="auto",
        progress=False,
    )


@app.command()
def memory(
    steps: Annotated[int, typer.Option(help="Of the run.")] = 100_000,
    out: Annotated[Path, typer.Option(help="Folder of figures and checkpoints.")] = Path("runs/endurance"),
) -> None:
    """What the process holds in a run of so many steps."""
    held = Held(sorted({max(1, steps // 100), *(steps * part // 10 for part in (1, 3, 5, 7, 9, 10))}))
    checkpoint = out / "memory.pt"
    checkpoint.unlink(missing_ok=True)
    started = time.perf_counter()
    train(steps, checkpoint, [held], "graph")
    found = {"steps": steps, "seconds": round(time.perf_counter() - started), "held": held.records}
    write_atomically(out / "memory.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


class Told:
    """A callback that writes each step that was made to a file."""

    every = 1

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")

    def __call__(self, state: FitState) -> None:
        self.file.write(f"{state.step}\n")
        self.file.flush()


@app.command(hidden=True)
def worker(steps: int, out: Path, name: str) -> None:
    """The run that is killed."""
    train(steps, out / f"{name}.pt", [Told(out / f"{name}.steps")])


@app.command()
def kills(
    kills: Annotated[int, typer.Option(help="How often the run is killed.")] = 20,
    steps: Annotated[int, typer.Option(help="Of the run.")] = 2000,
    out: Annotated[Path, typer.Option(help="Folder of figures and checkpoints.")] = Path("runs/endurance"),
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill a run so many times, and let it go on."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob("killed.*"), *out.glob("whole.*")]:
        path.unlink()
    moments, lost = random.Random(seed), list[int]()
    command = [sys.executable, "-m", "benchmarks.learning.endurance", "worker", str(steps), str(out)]
    told = out / "killed.steps"
    for kill in range(kills):
        before = len(_steps(told))
        process = subprocess.Popen([*command, "killed"])
        due = before + moments.randint(1, 3 * EVERY)
        while process.poll() is None and len(_steps(told)) < due:
            time.sleep(0.001 * moments.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        made, kept = _steps(told)[-1], load_checkpoint(out / "killed.pt")["step"]
        lost.append(made - kept)
        print(f"kill {kill + 1}: at step {made}, goes on from {kept}")
    for name in ("killed", "whole"):
        subprocess.run([*command, name], check=True)
    same = _same(*(load_checkpoint(out / f"{name}.pt") for name in ("killed", "whole")))
    found = {"kills": kills, "steps": steps, "checkpoint_every": EVERY, "lost": lost, "as_unbroken": same}
    write_atomically(out / "kills.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def _steps(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first if k != "ms_per_step")
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


if __name__ == "__main__":
    app()
