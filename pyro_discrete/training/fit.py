"""`fit`: trains a pair, from the arguments that it takes to the result that it returns; goes on from a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_discrete.checkpoints import load_checkpoint, save_checkpoint
from pyro_discrete.elbos.elbo import TraceELBO
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import DiscreteInferenceError, SettingError, refuses_unknown_keywords, shown
from pyro_discrete.interrupts import Interrupted, StopRequest
from pyro_discrete.planning.select import Spec
from pyro_discrete.tables.html_table import html_table
from pyro_discrete.training.batches import Arguments, as_arguments, make_batches
from pyro_discrete.training.loop import FitState, Loop
from pyro_discrete.training.optimisation import OptimizerSpec, Rates, build_optimizer
from pyro_discrete.training.parts import Parts
from pyro_discrete.training.ranks import Ranks, joined_ranks, launch, restarted
from pyro_discrete.training.settings import SEEDS, check_settings

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "FitResult",
    "fit",
]


@dataclass(frozen=True)
class FitResult:
    """What training led to.

    - `history`: a dataset. Along `step`: `loss` (mean over the steps since the last record), `lr` (of the first
      parameter group), `ms_per_step`; along `validation_step`: `validation_loss`.
    - `step`: steps made, those of the runs that were resumed included. `stopped`: why it ended: "steps", or
      "early stopping", or what a callback gave as its reason.
    - `loss`, `validation_loss`: the last ones recorded (None if there are none); `best_loss`, `best_step`: the best
      validation (without validation data: record), and when it was.
    - `parameters`: by name, the tensors themselves. `optimizer`: as it is in the end.
    - `rank`, `ranks`: the number of this process among those that trained together. `bytes_per_step`: what it handed
      over to the others in the last step (0 alone).
    """

    history: xr.Dataset
    step: int
    stopped: str
    loss: float | None
    validation_loss: float | None
    best_loss: float | None
    best_step: int | None
    parameters: Mapping[str, torch.Tensor] = field(repr=False)
    optimizer: Optimizer = field(repr=False)
    rank: int = 0
    ranks: int = 1
    bytes_per_step: int = 0

    def __repr__(self) -> str:
        return f"FitResult({', '.join(f'{name}={value}' for name, value in self._rows())})"

    def _repr_html_(self) -> str:
        return html_table(["FitResult", ""], self._rows(), notes=["history is a dataset, and plot() a picture of it"])

    def _rows(self) -> list[tuple[str, str]]:
        """What there is to say in a line, each by its attribute; of parameters how many numbers they hold."""
        shown = {"loss": self.loss, "validation_loss": self.validation_loss, "best_loss": self.best_loss}
        rows = [("step", str(self.step)), ("stopped", repr(self.stopped))]
        rows += [(name, f"{value:.6g}") for name, value in shown.items() if value is not None]
        rows += [("best_step", str(self.best_step))] if self.best_step is not None else []
        rows += [("rank", str(self.rank)), ("ranks", str(self.ranks))] if self.ranks > 1 else []
        numbers = sum(parameter.numel() for parameter in self.parameters.values())
        return [*rows, ("parameters", f"{len(self.parameters)} of {numbers} numbers")]

    def plot(self, path: str | Path | None = None) -> Figure:
        """The losses along the steps, the rate below if it changed; written to `path` if given (extra "plots")."""
        from matplotlib.figure import Figure

        history = self.history
        changed = history.sizes["step"] > 1 and bool((history["lr"] != history["lr"][0]).any())
        figure = Figure(figsize=(7, 3.4 + 1.6 * changed), layout="constrained")
        panels = figure.subplots(1 + changed, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + changed])[:, 0]
        panels[0].plot(history["step"], history["loss"], "o-", markersize=3, color="#0072B2", label="training loss")
        if history.sizes["validation_step"]:
            panels[0].plot(
                history["validation_step"], history["validation_loss"], "s-", markersize=4, color="#D55E00",
                label="validation loss",
            )  # fmt: skip
        if self.best_step is not None:
            panels[0].axvline(self.best_step, color="#666666", linestyle=":", label=f"best, step {self.best_step}")
        panels[0].set_ylabel("loss")
        panels[0].legend(frameon=False)
        if changed:
            panels[1].plot(history["step"], history["lr"], color="#009E73")
            panels[1].set_ylabel("rate")
        panels[-1].set_xlabel("training step")
        for axes in panels:
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def __copy__(self) -> FitResult:
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        """Parameters and optimizer together, without what ties Pyro's params to its store (which cannot be pickled)."""
        parameters, optimizer = copy.deepcopy((dict(self.parameters), self.optimizer))
        for tensor in (*parameters.values(), *(p for group in optimizer.param_groups for p in group["params"])):
            vars(tensor).pop("unconstrained", None)
        return {**self.__dict__, "parameters": parameters, "optimizer": optimizer}


@refuses_unknown_keywords
def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any = None,
    elbo: DiscreteELBO | Spec = "auto",
    optimizer: OptimizerSpec = "adam",
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    transform: Callable[..., Any] | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    lr: float | None = None,
    rates: Rates | None = None,
    scheduler: Callable[[Optimizer], Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    log_every: int = 100,
    validation_data: Any = None,
    validate_every: int = 1000,
    patience: int | None = None,
    min_delta: float = 0.0,
    callbacks: Sequence[Callable[[FitState], Any]] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    resume: bool | Literal["auto"] = False,
    metadata: Mapping[str, Any] | None = None,
    progress: bool | str = True,
    split: Literal["data", "particles"] | None = "data",
    data_plate: str | Sequence[str] | None = None,
) -> FitResult:
    r"""Train a model and its guide: what `SVI` does, in one fused optimiser, with what a long run needs around it.

    **What is trained**: every parameter that the loss depends on, wherever it lives (`pyro.param`, modules, the
    estimators' own networks); those that come into being later are taken in. An ELBO with `compile` runs captured
    steps, and on an accelerator the loss is read only where it is recorded.

    - `data`: a tensor, or a tuple (arguments) or dict (keyword arguments) of tensors, with `batch_size` taken by index
      (in a seeded order, unless `shuffle` is off; `drop_last` leaves out an epoch's last, smaller batch) and otherwise
      whole (NumPy arrays count as tensors); a `DataLoader` or another iterable of batches; or an object with
      `next_batch`, `state_dict` and `load_state_dict`; None for a program without arguments.
    - `elbo`: an ELBO of this package, or what `TraceELBO` takes as its estimator.
    - `optimizer`: a name in `torch.optim`, a class or function of parameter groups (fused where torch can), an
      optimiser, or one of `pyro.optim` with fixed settings. `lr` is its rate, `rates` maps names or globs of parameters
      to other rates, or to a group's settings (`{"estimators.*": 1e-2}`).
    - `steps` or `epochs`: when it ends (one of them). `transform`: applied to each batch's tensors (`torch.bernoulli`
      binarises anew). `device`: where batches go. `seed`: of torch, NumPy and Python, and of the order of batches.
    - `scheduler`: a function of the optimiser that makes a torch schedule, stepped after every step
      (`ReduceLROnPlateau`: after every validation). `clip_norm`: bound on the norm of the whole gradient,
      `clip_value`: on each of its entries.
    - `log_every`: steps between records. `validation_data`: as `data`, evaluated every `validate_every` steps by the
      discrete `elbo.loss`, mean over its batches, always under the same random numbers.
    - `patience`: end after so many validations (records, without validation data) that do not improve the best loss by
      `min_delta`; the parameters of the best one are then put back.
    - `callbacks`: called with a `FitState` at each record, or every `callback.every` steps if it has that; may change
      rates there, or call `state.stop("reason")`. One with a `state_dict` is saved and resumed with the rest.
    - `checkpoint`: a file that holds everything the next steps depend on (parameters, buffers, optimiser, schedule,
      estimators' state, random states, the place in the data, the history, `metadata`), written as a whole every
      `checkpoint_every` steps, at the end and on Ctrl-C. With `resume=True` (or "auto", if the file is there) the run
      goes on as if it had never stopped: bit for bit, eagerly and with `compile="graph"`.
    - `progress`: whether a terminal shows a bar, or what to call it: steps a second, time left, losses, and what the
      callbacks' `latest()` says (a `Monitor`'s: gradient noise and dead latents).

    **Many processes**: under torchrun (where `RANK` and `WORLD_SIZE` are set, or a process group of `torch.distributed`
    is there) all train together, and what comes out of a step is that of the joint batch.

    - `split`: "data" gives each rank its part of every batch; the plates that follow the data count for the whole one.
      "particles" gives each all of it, and its share of the repetitions. None: each trains by itself.
    - `data_plate`: names the plates that follow the data, where that cannot be found out.

    All ranks draw the same batches, so data, loader and seed are to be the same on all; other random numbers differ by
    rank. Parameters start as they are on rank 0. That rank writes checkpoints, evaluates validation data, and shows
    progress; callbacks are called on every one (`state.rank`). A checkpoint of as many ranks goes on bit for bit, one
    of others with new random numbers; started again by torchrun, a run goes on from its own checkpoint by itself.
    A signal to one of them stops all at the same step.

    Raises `SettingError` for settings out of their range or that contradict each other, `CheckpointError` for a
    checkpoint that is absent, damaged, another program's or cannot be written, `RanksError` where ranks differ in
    program, data or versions, or one has failed or is gone, `Interrupted` (a `KeyboardInterrupt`, no
    `Exception`) on SIGINT or SIGTERM after the step and the save; and what the ELBO raises, the last checkpoint being
    kept.

    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Bernoulli(0.3))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Bernoulli(logits=pyro.param("slope", torch.tensor(0.0)) * x))
    >>> result = fit(model, guide, torch.randn(100), "enumerate", lr=0.05, steps=200, batch_size=20, progress=False)
    >>> result.step, result.history["loss"].dims, list(result.parameters)
    (200, ('step',), ['slope'])
    """
    check_settings(
        {
            "steps": steps,
            "epochs": epochs,
            "batch_size": batch_size,
            "log_every": log_every,
            "validate_every": validate_every,
            "checkpoint_every": checkpoint_every,
            "patience": patience,
            "seed": seed,
            "lr": lr,
            "rates": rates,
            "clip_norm": clip_norm,
            "clip_value": clip_value,
            "min_delta": min_delta,
            "device": device,
            "transform": transform,
            "scheduler": scheduler,
            "callbacks": callbacks,
            "checkpoint": checkpoint,
            "resume": resume,
            "metadata": metadata,
            "split": split,
            "data_plate": data_plate,
        }
    )
    elbo = _objective(elbo)
    if (steps is None) == (epochs is None):
        raise SettingError("Give either steps or epochs, to say when training ends.")
    if not torch.is_grad_enabled():
        raise SettingError("fit was called with gradients off (torch.no_grad or inference_mode): call it outside.")
    path = None if checkpoint is None else Path(checkpoint)
    plates = (data_plate,) if isinstance(data_plate, str) else data_plate
    with joined_ranks(wanted=split is not None) as ranks, _repetitions(elbo, ranks, split):
        intervals = {"log_every": log_every, "validate_every": validate_every, "checkpoint_every": checkpoint_every}
        ends = {"steps": steps, "epochs": epochs, "batch_size": batch_size, "patience": patience}
        alike = {**ends, **intervals, "seed": seed, "split": split, "lr": lr, "checkpoint": path is not None}
        alike |= {"callbacks": [getattr(callback, "every", log_every) for callback in callbacks]}
        ranks.same(alike, "their settings", lambda told: shown(told, 400))
        saved = ranks.of_first(lambda: _saved(path, resume), "as it looked for a checkpoint")
        seed = _seeded(seed, ranks)
        with ranks.together("as it looked at the data"):
            batches = make_batches(data, batch_size, shuffle, drop_last, seed or 0, device)
            last = _last_step(batches, steps, epochs)
            if saved is not None and saved.get("step", 0) > last:
                raise SettingError(
                    f"The checkpoint {path} is at step {saved['step']} already, and the run was to end at step {last}: "
                    "ask for more steps (those made before count), or start anew with another checkpoint."
                )

        def prepare(batch: Any) -> Arguments:
            args, kwargs = as_arguments(batch, device)
            if transform is None:
                return args, kwargs
            changed = transform(*args, **kwargs)
            if changed is None:
                raise SettingError("transform returned None; the batch that the program is to be given is expected.")
            return as_arguments(changed)

        def save() -> None:
            if path is not None:
                state_dict = loop.state_dict()
                with ranks.together("as it saved a checkpoint"):
                    if ranks.first:
                        own = {"launch": launch()} if launch() else {}
                        save_checkpoint(path, {**state_dict, "metadata": dict(metadata or {}), **own})

        def after_step() -> None:
            """What is due at this step."""
            if state.step % log_every == 0:
                loop.record()
                if validation_data is None and state.loss is not None:
                    loop.judge(state.loss, patience, min_delta)
            if validation_data is not None and state.step % validate_every == 0:
                loop.validate(validation_data, batch_size)
                loop.judge(state.validation_loss or 0.0, patience, min_delta)
            due = [callback for callback in callbacks if state.step % getattr(callback, "every", log_every) == 0]
            if due:
                with ranks.together(f"in a callback at step {state.step}") as asked:
                    for callback in due:
                        callback(state)
                    asked.for_it = bool(state.stopped)
                if asked.for_it:
                    state.stopped = next(filter(None, ranks.told(state.stopped)))
            bar.update(state.step - bar.n)
            if state.step % log_every == 0:
                bar.set_postfix_str(_shown(state, callbacks), refresh=False)
            if state.step % checkpoint_every == 0 and state.step < last:
                save()

        name = progress if isinstance(progress, str) else type(elbo).__name__
        hidden = None if progress and ranks.first else True  # None: shown in a terminal alone
        state = FitState(model, guide, elbo, rank=ranks.rank, ranks=ranks.size)
        with (
            StopRequest(patient=ranks.size > 1) as stop,
            tqdm(total=last, desc=name, unit="step", disable=hidden) as bar,
        ):
            loop = Loop(
                state,
                Parts(batches, prepare, ranks, split or "data", plates, seed),
                lambda named: build_optimizer(optimizer, named, lr, rates),
                scheduler,
                (clip_norm, clip_value),
                callbacks,
                lambda: stop.number,
                seed,
            )
            try:
                loop.begin(saved)
                if saved is None:
                    after_step()
                    save()  # a run that is killed early can be resumed as well
                while state.step < last and not state.stopped and loop.signal() is None:
                    loop.advance(recorded=(state.step + 1) % log_every == 0)
                    after_step()
            except (DiscreteInferenceError, OSError) as error:
                kept = f"; {path} keeps the last checkpoint before it" if path is not None and path.exists() else ""
                error.add_note(f"Training stopped at step {state.step}{kept}.")
                raise
            if saved is None or state.step > saved["step"]:
                save()
            signal = loop.last_signal()
        if not loop.recorded:
            loop.record()
        if patience is not None:
            loop.restore_best()
        result = _result(loop)
    if signal is not None:
        raise Interrupted(state.step, signal, result)
    return result


def _repetitions(elbo: DiscreteELBO, ranks: Ranks, split: str | None) -> AbstractContextManager[None]:
    """Around training: a rank's share of the repetitions, where these are what is split."""
    return elbo.share_of_particles(ranks.size) if split == "particles" and ranks.size > 1 else nullcontext()


def _seeded(seed: int | None, ranks: Ranks) -> int | None:
    """Start all random numbers from the seed; returns the one of what all ranks draw alike."""
    if ranks.size > 1 and seed is None:
        seed = ranks.of_first(lambda: int(torch.randint(SEEDS, ())), "as it drew a seed")
    if seed is not None:
        pyro.set_rng_seed(seed)
    return seed


def _objective(elbo: Any) -> DiscreteELBO:
    """The ELBO that was given, or that of the estimator that was. Raises `SettingError` for what is neither."""
    if isinstance(elbo, DiscreteELBO):
        return elbo
    if isinstance(elbo, torch.Tensor | np.ndarray):
        raise SettingError(
            f"elbo is {shown(elbo)}: data? A program's arguments go together: fit(model, guide, data=(X, y), ...)."
        )
    if isinstance(elbo, type) and issubclass(elbo, DiscreteELBO):
        raise SettingError(f"elbo={elbo.__name__} is a class; an ELBO is expected: {elbo.__name__}().")
    if isinstance(elbo, ELBO):
        raise SettingError(
            f"elbo is Pyro's {type(elbo).__name__}; an ELBO of pyro_discrete is expected, or an estimator's name."
        )
    return TraceELBO(elbo)


def _last_step(batches: Any, steps: int | None, epochs: int | None) -> int:
    """The step that ends training: one of the two is given."""
    if steps is not None:
        return steps
    per_epoch = getattr(batches, "steps_per_epoch", None)
    if per_epoch is None:
        raise SettingError("The data do not say how many batches they have; give steps instead of epochs.")
    return (epochs or 1) * per_epoch


def _saved(path: Path | None, resume: bool | str) -> dict[str, Any] | None:
    """The state to go on from, if any."""
    if path is None:
        if resume is True:
            raise SettingError("resume=True needs a checkpoint to go on from: give checkpoint=path.")
        return None
    if path.is_dir():
        raise SettingError(f"checkpoint={path} is a folder; the path of a file is expected.")
    if resume == "auto":
        resume = path.exists()
    if resume:
        return load_checkpoint(path)
    if path.exists():
        if restarted() and load_checkpoint(path).get("launch") == launch():
            return load_checkpoint(path)  # this very run's, before torchrun started it again
        raise SettingError(f"{path} exists already; go on with it by resume=True, or name another checkpoint.")
    return None


def _shown(state: FitState, callbacks: Sequence[Any]) -> str:
    validation = [] if state.validation_loss is None else [f"validation {state.validation_loss:.5g}"]
    seen = [callback.latest() for callback in callbacks if hasattr(callback, "latest")]
    return ", ".join([f"loss {state.loss:.5g}", *validation, *filter(None, seen)])


def _result(loop: Loop) -> FitResult:
    import xarray as xr  # here, as it is slow to import

    state, best = loop.state, loop.best
    assert state.optimizer is not None
    columns = {key: ("step", [record[key] for record in state.records]) for key in ("loss", "lr", "ms_per_step")}
    history = xr.Dataset(
        {
            **columns,
            "validation_loss": ("validation_step", [record["validation_loss"] for record in state.validations]),
        },
        coords={
            "step": [int(record["step"]) for record in state.records],
            "validation_step": [int(record["step"]) for record in state.validations],
        },
    )
    history["ms_per_step"].attrs["units"] = "ms"
    return FitResult(
        history,
        state.step,
        state.stopped or "steps",
        state.loss,
        state.validation_loss,
        best["loss"] if math.isfinite(best["loss"]) else None,
        best["step"],
        dict(state.parameters),
        state.optimizer,
        state.rank,
        state.ranks,
        loop.exchange.bytes,
    )
