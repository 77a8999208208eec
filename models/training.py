"""Training a program on data with one estimator: steps, metrics, checkpoints, and going on where a run stopped."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from models.checkpoints import CHECKPOINT_NAME, load_checkpoint, save_checkpoint, write_atomically
from models.config import RunConfig, build_program, check_same_run
from models.data import BatchStream, binarise_once
from models.dataset import Dataset
from models.errors import CheckpointError, ConfigError
from models.estimators import build_elbo
from models.evaluation import Bounds, bounds, discrete_elbo, isolated, log_likelihood
from models.interrupts import Interrupted, StopRequest
from models.metrics import Metrics, Record
from models.posterior import agreement
from models.program import LatentClasses, Program
from pyro_discrete.errors import DiscreteInferenceError

__all__ = ["RUN_FILES", "RunResult", "Training", "refuse_used_folder", "run"]

RUN_FILES = (CHECKPOINT_NAME, "config.json", "metrics.jsonl")
"""What a run writes from its start on."""
LOG_EVERY = 10
"""Steps between two records of metrics."""
SMOOTHING = 0.98
"""Decay of the running mean of the training objective."""


class Training:
    """A program, its ELBO, optimiser and batches: all that changes from step to step.

    Parameters start from the config's seed alone, so that runs differing in the estimator start from the same program.
    """

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        self.config = config
        self.fingerprint = data.fingerprint
        self.stream = BatchStream(data.train, config.batch_size, config.binarisation, config.seed)
        pyro.set_rng_seed(config.seed)
        self.program: Program = build_program(config, data)
        self.elbo = build_elbo(config)
        # The estimator's own parameters come into being on the first call; the optimiser needs them.
        with isolated(config.seed):
            first = binarise_once(data.train[: config.batch_size], config.binarisation).to(config.device)
            self.elbo.loss(self.program.model, self.program.guide, first)
        groups: list[dict[str, Any]] = [{"params": list(self.program.parameters()), "lr": config.lr}]
        own = list(self.elbo.parameters())
        if own:
            groups.append({"params": own, "lr": config.estimator_lr})
        self.optimiser = torch.optim.Adam(groups)
        self.step = 0
        self.smoothed: float | None = None

    def advance(self) -> float:
        """Make one step; returns its training objective, in nats per element of the data."""
        x = self.stream.next_batch().to(self.config.device)
        self.optimiser.zero_grad()
        loss = self.elbo.loss_and_grads(self.program.model, self.program.guide, x)
        self.optimiser.step()
        self.step += 1
        objective = -loss / len(x)
        self.smoothed = objective if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * objective
        return objective

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as tensors and plain values."""
        return {
            "config": self.config.to_dict(),
            "data": self.fingerprint,
            "step": self.step,
            "smoothed": self.smoothed,
            "program": self.program.state_dict(),
            "elbo": self.elbo.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "stream": self.stream.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.program.load_state_dict(state["program"])
        self.elbo.load_state_dict(state["elbo"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.stream.load_state_dict(state["stream"])
        self.step = state["step"]
        self.smoothed = state["smoothed"]
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])


@dataclass(frozen=True)
class RunResult:
    """A finished run: its training state, metrics, and bounds on the test elements `test` `[m, ...]` (binary images).

    `found`, where the latents are classes: the exact test log-likelihood, and how the classes agree with the labels.
    """

    training: Training
    metrics: Metrics
    test: Tensor
    bounds: Bounds
    found: dict[str, float]

    @property
    def summary(self) -> dict[str, Any]:
        """The run in numbers; bounds in nats per element, from hard samples."""
        return {
            "step": self.training.step,
            "test_elbo": self.bounds.elbo,
            "test_bound": self.bounds.importance_weighted,
            "bound_samples": self.bounds.samples,
            **self.found,
            "ms_per_step": self.metrics.ms_per_step,
        }


def run(
    config: RunConfig,
    data: Dataset,
    out: Path | None = None,
    *,
    resume: bool = False,
    checkpoint_every: int = 500,
    bound_samples: int = 100,
) -> RunResult:
    """Train to `config.steps` and evaluate; with `out`, keep config, metrics, checkpoints and summary in that folder.

    With `resume` the folder's checkpoint is continued, bit for bit as if the run had never stopped.

    Raises `ConfigError` if the folder holds a run and `resume` is not set; `CheckpointError` if there is nothing to
    resume, or another run; `Interrupted` on SIGINT or SIGTERM, after saving; the library's errors, the last checkpoint
    being kept.
    """
    if checkpoint_every < 1:
        raise ConfigError(f"--checkpoint-every is {checkpoint_every}; expected at least 1.")
    if bound_samples < 1:
        raise ConfigError(f"--bound-samples is {bound_samples}; expected at least 1.")
    if out is not None and not resume:
        refuse_used_folder(out)
    state = load_checkpoint(out) if out is not None and resume else None
    test = binarise_once(data.test, config.binarisation)
    metrics = Metrics(out / "metrics.jsonl" if out is not None else None)
    with isolated(config.seed):
        training = Training(config, data)
        if state is not None and out is not None:
            check_same_run(state["config"], config, out)
            if state["data"] != training.fingerprint:
                raise CheckpointError(
                    f"The run in {out} was trained on other data: {state['data']}, now {training.fingerprint}."
                )
            training.load_state_dict(state)
            metrics.resume(training.step)
        elif out is not None:
            out.mkdir(parents=True, exist_ok=True)
            save_checkpoint(out, training.state_dict())
        if out is not None:
            write_atomically(out / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        try:
            _train(training, metrics, test, out, checkpoint_every)
        except DiscreteInferenceError as error:
            if out is not None:
                error.add_note(f"Training stopped at step {training.step}; {out} keeps the last checkpoint before it.")
            raise
    program = training.program
    found = {}
    if isinstance(program, LatentClasses):
        found = {"test_log_likelihood": log_likelihood(program, test), **agreement(program, data)}
    result = RunResult(training, metrics, test, bounds(program, test, bound_samples), found)
    if out is not None:
        write_atomically(out / "summary.json", json.dumps(result.summary, indent=2) + "\n")
    return result


def refuse_used_folder(out: Path, signs: Sequence[str] = RUN_FILES) -> None:
    """Raise `ConfigError` if the folder already holds a run, of which one of these files is the sign."""
    held = [name for name in signs if (out / name).exists()]
    if held:
        raise ConfigError(
            f"{out} already holds a run ({held[0]}); add --resume to go on with it, or choose another --out."
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names a folder.")


def _train(training: Training, metrics: Metrics, test: Tensor, out: Path | None, checkpoint_every: int) -> None:
    config = training.config
    times: list[float] = []
    label = f"{config.program} {config.estimator}"
    latest = ""
    with StopRequest() as stop, tqdm(total=config.steps, initial=training.step, desc=label, unit="step") as bar:
        while training.step < config.steps:
            started = time.perf_counter()
            objective = training.advance()
            times.append(1000 * (time.perf_counter() - started))
            step = training.step
            last = step == config.steps or stop.number is not None
            evaluate = step % config.evaluate_every == 0 or step == config.steps
            if evaluate or step % LOG_EVERY == 0:
                assert training.smoothed is not None
                record: Record = {"step": step, "elbo": objective, "smoothed": training.smoothed}
                if evaluate:
                    record["test_elbo"] = discrete_elbo(training.program, test)
                    latest = f", test {record['test_elbo']:.2f}"
                record["ms_per_step"] = statistics.median(times)
                times.clear()
                metrics.append(record)
                bar.set_postfix_str(f"bound {training.smoothed:.2f}{latest} nats", refresh=False)
            bar.update()
            if out is not None and (last or step % checkpoint_every == 0):
                save_checkpoint(out, training.state_dict())
            if stop.number is not None and step < config.steps:
                raise Interrupted(step, stop.number)
