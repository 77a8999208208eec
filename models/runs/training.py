"""Training a program on data with one estimator: steps, metrics, checkpoints, and going on where a run stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
from torch import Tensor

from models.data.catalogue import BatchStream
from models.data.dataset import Dataset
from models.data.images import binarise_once
from models.errors import ConfigError
from models.programs.program import Program
from models.runs.config import CHECKPOINT_NAME, RunConfig, build_elbo, build_program, check_resumable
from models.runs.evaluation import Bounds, bounds, isolated
from models.runs.findings import findings
from models.runs.folder import refuse_used_folder, taken
from models.runs.recording import LOG_EVERY, Metrics, Recorder
from pyro_discrete import fit
from pyro_discrete.checkpoints import load_checkpoint, write_atomically
from pyro_discrete.diagnostics import Monitor, TensorBoard
from pyro_discrete.errors import CheckpointError

__all__ = ["RunResult", "Training", "run", "run_beside"]


class Training:
    """A program, its ELBO and its batches; `step` counts the steps made, `loss` is the last one recorded, of a batch.

    Parameters start from the config's seed alone, so that runs differing in the estimator start from the same program.
    """

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        self.config = config
        self.fingerprint = data.fingerprint
        self.stream = BatchStream(data.train, config.batch_size, config.binarisation, config.seed)
        pyro.set_rng_seed(config.seed)
        self.program: Program = build_program(config, data)
        self.elbo = build_elbo(config)
        self.step = 0
        self.loss: float | None = None
        # The estimator's own parameters come into being on the first call; whether it has any decides on its rate.
        with isolated(config.seed):
            first = binarise_once(data.train[: config.batch_size], config.binarisation).to(config.device)
            self.elbo.loss(self.program.model, self.program.guide, first)

    def run(
        self,
        callbacks: Sequence[Any] = (),
        checkpoint: Path | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> None:
        """Train to `config.steps`. A `Recorder` among the `callbacks` says how often the loss is recorded."""
        config = self.config
        result = fit(
            self.program.model,
            self.program.guide,
            self.stream,
            self.elbo,
            lr=config.lr,
            rates={"estimators.*": config.estimator_lr} if any(True for _ in self.elbo.parameters()) else None,
            steps=config.steps,
            device=config.device,
            log_every=next((c.log_every for c in callbacks if isinstance(c, Recorder)), min(LOG_EVERY, config.steps)),
            callbacks=callbacks,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            resume=resume,
            metadata={"config": config.to_dict(), "data": self.fingerprint},
            progress=f"{config.program} {config.estimator}",
        )
        self.step, self.loss = result.step, result.loss


@dataclass(frozen=True)
class RunResult:
    """A finished run: its training state, metrics, and bounds on the test elements `test` `[m, ...]` (binary images).

    `monitor` has looked at its gradients as it went.
    `found`: what its latents are judged by (see `findings`), such as the exact test log-likelihood and labels.
    """

    training: Training
    metrics: Metrics
    test: Tensor
    bounds: Bounds
    monitor: Monitor
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
    monitor_every: int = 0,
    tensorboard: bool = False,
) -> RunResult:
    """Train to `config.steps` and evaluate; with `out`, keep config, metrics, checkpoints and summary in that folder.

    With `resume` the folder's checkpoint is continued, bit for bit as if the run had never stopped.

    `monitor_every`: steps between two looks at the gradients (see `pyro_discrete.diagnostics.Monitor`), each of which
    costs two steps; 0 for none. `tensorboard`: whether the folder gets event files, too (`TensorBoard`).

    Raises `ConfigError` if the folder holds a run and `resume` is not set; `CheckpointError` if there is nothing to
    resume, or another run; `Interrupted` on SIGINT or SIGTERM, after saving; the library's errors, the last checkpoint
    being kept.
    """
    if checkpoint_every < 1:
        raise ConfigError(f"--checkpoint-every is {checkpoint_every}; expected at least 1.")
    if bound_samples < 1:
        raise ConfigError(f"--bound-samples is {bound_samples}; expected at least 1.")
    test = binarise_once(data.test, config.binarisation)
    with taken(out):
        return _run(config, data, out, test, resume, checkpoint_every, bound_samples, monitor_every, tensorboard)


def run_beside(
    config: RunConfig,
    data: Dataset,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int = 500,
    monitor_every: int = 0,
    tensorboard: bool = False,
) -> None:
    """What a process does in a run of several that is not the first: its part of every step. It writes nothing.

    The first one calls `run` with the same settings.
    """
    test = binarise_once(data.test, config.binarisation)
    with isolated(config.seed):
        training = Training(config, data)
        recorder = Recorder(Metrics(None), training.program, test, config.evaluate_every, config.steps)
        idle: list[Any] = [_Idle(monitor_every or config.steps + 1)]
        if tensorboard:
            idle.append(_Idle(recorder.log_every))
        training.run([recorder, *idle], out / CHECKPOINT_NAME, checkpoint_every, resume)


class _Idle:
    """In the place of what the first process alone does at such steps."""

    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, state: Any) -> None: ...


def _run(
    config: RunConfig,
    data: Dataset,
    out: Path | None,
    test: Tensor,
    resume: bool,
    checkpoint_every: int,
    bound_samples: int,
    monitor_every: int,
    tensorboard: bool,
) -> RunResult:
    """What `run` does, in a folder that is its own."""
    path = None if out is None else out / CHECKPOINT_NAME
    metrics = Metrics(out / "metrics.jsonl" if out is not None else None)
    with isolated(config.seed):
        training = Training(config, data)
        program = training.program
        monitor = Monitor(program.model, program.guide, training.elbo, every=monitor_every or config.steps + 1)
        recorder = Recorder(metrics, program, test, config.evaluate_every, config.steps, monitor)
        callbacks: list[Any] = [recorder, monitor]
        if tensorboard and out is not None:
            callbacks.append(TensorBoard(out / "tensorboard", monitor))
        if path is not None and out is not None:
            if resume:
                saved = load_checkpoint(path)
                check_resumable(saved, config, out)
                if saved["metadata"]["data"] != training.fingerprint:
                    raise CheckpointError(
                        f"The run in {out} was trained on other data: {saved['metadata']['data']}, now "
                        f"{training.fingerprint}."
                    )
                metrics.resume(saved["step"])
            else:
                refuse_used_folder(out)
                (out / "metrics.jsonl").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
            write_atomically(out / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        training.run(callbacks, path, checkpoint_every, resume)
    found = findings(program, data, test)
    result = RunResult(training, metrics, test, bounds(program, test, bound_samples), monitor, found)
    if out is not None:
        write_atomically(out / "summary.json", json.dumps(result.summary, indent=2) + "\n")
    return result
