"""The loop behind `fit`: one step after another, and all of its state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro.util
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import (
    CheckpointError,
    DiscreteInferenceError,
    EmptyBatchError,
    NonFiniteError,
    SettingError,
    shown,
)
from pyro_discrete.programs.parameters import modules_of
from pyro_discrete.training.batches import one_epoch
from pyro_discrete.training.exchange import Exchange, Key, OwnStep
from pyro_discrete.training.meeting import checksum, meet, start_alike
from pyro_discrete.training.optimisation import clip_gradients, make_step, named_parameters
from pyro_discrete.training.parts import Part, Parts
from pyro_discrete.training.ranks import Ranks

__all__ = [
    "FitState",
    "Loop",
]


VALIDATION_SEED = 20
"""Every validation has the same random numbers, so that two of them differ by the parameters alone."""

MOST_COMPARED = 1 << 20
"""Numbers of a buffer that is compared to see whether it has changed; of a larger one its version says so."""


@dataclass
class FitState:
    """What a callback sees, after a step.

    - `model`, `guide`, `elbo`: what is trained. `stopped`: why training ends after this step, empty if it goes on.
    - `step`: steps made. `args`, `kwargs`: the program's arguments in the last one.
    - `loss`: mean over the steps of the last record; `validation_loss`: the last one (None before there is one).
    - `records`, `validations`: what the history will hold, one dict each.
    - `rank`, `ranks`: the number of this process among those that train together, and how many they are. Each calls
      its callbacks; what writes files does so at rank 0. `elements`: of the last step's batch on all ranks together.
    - `parameters`: by name. `optimizer`: may be changed (its rates, say).
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    elbo: DiscreteELBO
    step: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    loss: float | None = None
    validation_loss: float | None = None
    records: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    stopped: str = ""
    rank: int = 0
    ranks: int = 1
    elements: int | None = None

    def stop(self, reason: str) -> None:
        """End training after this step."""
        self.stopped = reason


class Loop:
    """Steps of one pair, with everything that the next ones depend on in `state_dict`.

    - `parts`: the batches, and this rank's part of them. `optimise`: named parameters to their optimiser; `schedule`:
      an optimiser to its schedule, or None. `clip`: bounds on the gradient's norm and on its numbers.
    - `asked`: the signal by which this process is asked for an end, if it is. `seed`: of what ranks draw, if there are
      several.
    """

    def __init__(
        self,
        state: FitState,
        parts: Parts,
        optimise: Callable[[dict[str, Tensor]], Optimizer],
        schedule: Callable[[Optimizer], Any] | None,
        clip: tuple[float | None, float | None],
        callbacks: Sequence[Any],
        asked: Callable[[], int | None],
        seed: int | None,
    ) -> None:
        self.state: FitState = state
        self.parts: Parts = parts
        self.optimise: Callable[[dict[str, Tensor]], Optimizer] = optimise
        self.asked: Callable[[], int | None] = asked
        self.seed: int | None = seed
        self.ranks: Ranks = parts.ranks
        self.exchange: Exchange = Exchange(parts.ranks)
        self.schedule: Callable[[Optimizer], Any] | None = schedule
        self.clip: tuple[float | None, float | None] = clip
        self.callbacks: Sequence[Any] = callbacks
        self.scheduler: Any = None
        self.modules: list[nn.Module] = []
        self.best: dict[str, Any] = {"loss": math.inf, "step": None, "waited": 0, "parameters": {}}
        self._total: Tensor | None = None
        self._count, self._since = 0, time.perf_counter()
        self._known: set[int] = set()
        self._kept: dict[int, tuple[int, Tensor | None]] = {}
        self._accelerated = False

    def begin(self, saved: Mapping[str, Any] | None) -> None:
        """Find out what is to be trained, by the first step; `saved` is the state to go on from, if any."""
        seen: dict[int, nn.Module] = {}
        hook = register_module_forward_pre_hook(lambda module, _: seen.setdefault(id(module), module) and None)
        state, result = self.state, None
        try:
            if self.ranks.size > 1:
                meet(self.ranks, self.parts, state.elbo, state.model, state.guide, seen)
                pyro.set_rng_seed(self.ranks.seed(self.seed or 0))
                modules = _outermost([*modules_of(state.model, state.guide), *seen.values()], state.elbo)
                self._keep({(i, name): b for i, module in enumerate(modules) for name, b in module.named_buffers()})
            with self.ranks.together("in its first step"):
                part, result = self._own_gradients(check=True)
        finally:
            hook.remove()
        self.modules = _outermost([*modules_of(state.model, state.guide), *seen.values()], state.elbo)
        parameters = [*result.parameters, *result.idle]
        state.parameters = named_parameters(parameters, state.elbo, state.model, state.guide)
        self._known = {id(parameter) for parameter in parameters}
        self._accelerated = any(parameter.device.type != "cpu" for parameter in parameters)
        if self.ranks.size > 1:
            state.parameters = start_alike(self.ranks, state.parameters)
        state.optimizer = self.optimise(state.parameters)
        self.scheduler = None if self.schedule is None else self.schedule(state.optimizer)
        if self.scheduler is not None and not all(hasattr(self.scheduler, name) for name in ("step", "state_dict")):
            raise SettingError(
                f"scheduler= made {shown(self.scheduler)}; one of torch.optim.lr_scheduler is expected, made of the "
                "optimiser that it is given."
            )
        if saved is not None:
            self.load_state_dict(saved)
        else:
            self._apply(self._joint(part, result, None))
        self._since = time.perf_counter()

    def advance(self, recorded: bool) -> None:
        """One step. On an accelerator the loss is looked at in steps that are recorded, elsewhere in each."""
        check = recorded or not self._accelerated
        if self.ranks.size == 1:
            self._apply(self._own_gradients(check)[1])
            return
        part, result, failure = None, None, None
        try:
            part, result = self._own_gradients(check)
        except Exception as error:  # in its place the others are told
            failure = error
        self._apply(self._joint(part, result, failure))

    def signal(self) -> int | None:
        """The one that has asked for an end by the last step: of several ranks, any one's, and the same on all."""
        return self.asked() if self.ranks.size == 1 else self.exchange.signal

    def last_signal(self) -> int | None:
        """The same, with what has come since; all ranks have to ask for it."""
        return max(self.ranks.told(self.asked()), key=lambda number: number or 0)

    def _own_gradients(self, check: bool) -> tuple[Part, Any]:
        """This rank's part of the next batch, and what comes of it."""
        state, part = self.state, self.parts.next()
        state.args, state.kwargs, state.elements = part.args, part.kwargs, part.elements
        if part.share == 0:
            return part, None
        with part.around:
            result = state.elbo.gradients(state.model, state.guide, *part.args, check=check, **part.kwargs)
        if self.ranks.size > 1 and any(gradient.is_sparse for gradient in result.gradients):
            raise SettingError("A parameter has sparse gradients, which ranks do not exchange: make them dense.")
        return part, result

    def _joint(self, part: Part | None, result: Any, failure: Exception | None) -> Any:
        """The step of all ranks, of which this is one's own part."""
        if self.ranks.size == 1:
            return result
        elbo, state = self.state.elbo, self.state
        if result is not None and any(id(parameter) not in self._known for parameter in result.parameters):
            everything = {id(p): p for p in (*state.parameters.values(), *result.parameters)}
            state.parameters = named_parameters(everything.values(), elbo, state.model, state.guide)
        adding = [p for _, e in elbo.estimators.items() if e.auxiliary_adds_up for p in e.parameters()]
        buffers = self._buffers()
        joint = self.exchange.of(
            OwnStep(
                0.0 if part is None else part.share,
                state.parameters,
                result,
                failure,
                adding=frozenset(map(id, adding if self.parts.divides else ())),
                learned=[*elbo.buffers(recurse=False), *elbo.estimators.learned_apart()],
                buffers=buffers,
                moved=frozenset(key for key, buffer in buffers.items() if self._has_moved(buffer)),
                signal=self.asked(),
            ),
            f"at step {state.step + 1}",
        )
        self._keep({key: buffer for key, buffer in buffers.items() if key not in self.exchange.moving})
        return joint

    def _keep(self, buffers: Mapping[Key, Tensor]) -> None:
        """Note what buffers hold, to see later whether a step has changed them."""
        small = (b for b in buffers.values() if b.numel() <= MOST_COMPARED)
        copies = {id(b): b.detach().clone() for b in small} if self.state.step < 4 or not self._accelerated else {}
        self._kept = {id(b): (b._version, copies.get(id(b))) for b in buffers.values()}

    def _has_moved(self, buffer: Tensor) -> bool:
        """By its version, and by its values where it is small: batch norm changes its averages under the same one."""
        if id(buffer) not in self._kept:
            return True
        version, copy = self._kept[id(buffer)]
        return buffer._version != version or (copy is not None and not torch.equal(buffer, copy))

    def _buffers(self) -> dict[Key, Tensor]:
        return {(i, name): b for i, module in enumerate(self.modules) for name, b in module.named_buffers()}

    def _apply(self, result: Any) -> None:
        optimizer, parameters = self.state.optimizer, result.parameters
        assert optimizer is not None
        for parameter, gradient in zip(parameters, result.gradients, strict=True):
            if id(parameter) not in self._known:
                self._take_in(parameter)
            parameter.grad = gradient
        if self.clip != (None, None):
            clip_gradients(parameters, *self.clip)
        make_step(optimizer)
        for parameter in parameters:
            parameter.grad = None
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self._total = result.loss if self._total is None else self._total + result.loss
        self._count += 1
        self.state.step += 1

    def _take_in(self, parameter: Tensor) -> None:
        """A parameter that has come into being since the first step."""
        state = self.state
        assert state.optimizer is not None
        self._known.add(id(parameter))
        if all(parameter is not p for group in state.optimizer.param_groups for p in group["params"]):
            state.optimizer.add_param_group({"params": [parameter]})  # not held yet, as by one that was given made
        everything = [*state.parameters.values(), parameter]
        state.parameters = named_parameters(everything, state.elbo, state.model, state.guide)

    def record(self) -> None:
        """Put the mean loss since the last record into the history; the one place that waits for an accelerator."""
        assert self._total is not None
        assert self.state.optimizer is not None
        loss = float(self._total) / self._count
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"The loss is {loss} in the steps up to {self.state.step}. Lower the rate, or clip gradients; go on "
                "from the last checkpoint, if there is one."
            )
        now = time.perf_counter()
        self.state.loss = loss
        self.state.records.append(
            {
                "step": self.state.step,
                "loss": loss,
                "lr": float(self.state.optimizer.param_groups[0]["lr"]),
                "ms_per_step": 1000 * (now - self._since) / self._count,
            }
        )
        self._total, self._count, self._since = None, 0, now

    @property
    def recorded(self) -> bool:
        """Whether there is nothing to record."""
        return self._count == 0

    def validate(self, data: Any, batch_size: int | None) -> None:
        """The mean discrete loss of batches, each once, on rank 0; random states stay as they are."""
        state, started = self.state, time.perf_counter()
        state.validation_loss = self.ranks.of_first(lambda: self._validation_loss(data, batch_size), "in a validation")
        state.validations.append({"step": state.step, "validation_loss": state.validation_loss})
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(state.validation_loss)
        self._since += time.perf_counter() - started  # not a part of the steps' time

    def _validation_loss(self, data: Any, batch_size: int | None) -> float:
        state, before = self.state, pyro.util.get_rng_state()
        pyro.set_rng_seed(VALIDATION_SEED)
        losses = []
        for batch in one_epoch(data, batch_size):
            args, kwargs = self.parts.prepare(batch)
            losses.append(state.elbo.loss(state.model, state.guide, *args, **kwargs))
        pyro.util.set_rng_state(before)
        if not losses:
            raise EmptyBatchError("validation_data gives no batch at all.")
        return math.fsum(losses) / len(losses)

    def judge(self, loss: float, patience: int | None, min_delta: float) -> None:
        """Keep the best parameters, and stop if the loss has not been better for `patience` times."""
        if loss < self.best["loss"] - min_delta:
            kept = {} if patience is None else {n: p.detach().clone() for n, p in self.state.parameters.items()}
            self.best = {"loss": loss, "step": self.state.step, "waited": 0, "parameters": kept}
            return
        self.best["waited"] += 1
        if patience is not None and self.best["waited"] >= patience:
            self.state.stop("early stopping")

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best parameters back, if they were kept."""
        for name, value in self.best["parameters"].items():
            self.state.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as tensors and plain values; all ranks have to ask for it."""
        state = self.state
        assert state.optimizer is not None
        random = _random_states()
        several: dict[str, Any] = {}
        if self.ranks.size > 1:
            self.ranks.same(checksum(state.parameters.values()), "parameters by now, of which these are checksums")
            alike = None if self.parts.random is None else _plain_states(self.parts.random)
            several = {"ranks": {"random": self.ranks.told(random), "alike": alike}}
        return {
            "step": state.step,
            "parameters": {name: parameter.detach() for name, parameter in state.parameters.items()},
            "buffers": [dict(module.named_buffers()) for module in self.modules],
            "elbo": state.elbo.state_dict(),
            "optimizer": {**state.optimizer.state_dict(), "names": self._names_in_groups()},
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "batches": self.parts.state_dict(),
            "random": random,
            "records": state.records,
            "validations": state.validations,
            "losses": [state.loss, state.validation_loss],
            "unrecorded": [self._total, self._count],
            "best": self.best,
            "callbacks": [c.state_dict() if hasattr(c, "state_dict") else None for c in self.callbacks],
            **several,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from there. Raises `CheckpointError` if it belongs to another program, or to a run set up otherwise."""
        state = self.state
        assert state.optimizer is not None
        self._check_fits(saved)
        for name, parameter in state.parameters.items():
            parameter.copy_(saved["parameters"][name])
        with _fitting("buffers"):
            for module, buffers in zip(self.modules, saved["buffers"], strict=True):
                for name, buffer in module.named_buffers():
                    buffer.copy_(buffers[name])
        with _fitting("state of the ELBO"):
            state.elbo.load_state_dict(saved["elbo"])
        with _fitting("state of the optimiser"):
            state.optimizer.load_state_dict(self._in_order(saved["optimizer"]))
        if self.scheduler is not None:
            with _fitting("state of the scheduler"):
                self.scheduler.load_state_dict(saved["scheduler"])
        with _fitting("place in the data"):
            self.parts.load_state_dict(saved["batches"])
        state.step, (state.loss, state.validation_loss) = saved["step"], saved["losses"]
        state.records, state.validations = list(saved["records"]), list(saved["validations"])
        self._total, self._count = saved["unrecorded"]
        self.best = dict(saved["best"])
        for callback, own in zip(self.callbacks, saved["callbacks"], strict=True):
            if own is not None:
                with _fitting(f"state of the callback {type(callback).__name__}"):
                    callback.load_state_dict(own)
        with _fitting("random states"):
            self._go_on_drawing(saved)

    def _names_in_groups(self) -> list[list[str]]:
        """The parameters in each group of the optimiser; empty for one that no step learns."""
        assert self.state.optimizer is not None
        names = {id(parameter): name for name, parameter in self.state.parameters.items()}
        return [[names.get(id(p), "") for p in group["params"]] for group in self.state.optimizer.param_groups]

    def _in_order(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's saved state with its parameters in the order of this run, which is that of the first step's
        graph: by their names, if it has these. Raises `ValueError` where a group has others."""
        if "names" not in saved:  # of an earlier version
            return dict(saved)
        groups = []
        for then, names, now in zip(saved["param_groups"], saved["names"], self._names_in_groups(), strict=True):
            if sorted(names) != sorted(now):
                differing = sorted({*names} ^ {*now}) or ["those without a name"]
                raise ValueError(f"its groups have other parameters: {', '.join(differing[:4])}")
            places = {name: [i for i, n in enumerate(names) if n == name] for name in names}
            order = [places[name].pop(0) for name in now]
            listed = {key: then[key] for key in ("params", "param_names") if key in then}  # by torch, where it has both
            groups.append({**then, **{key: [each[i] for i in order] for key, each in listed.items()}})
        own = {key: value for key, value in saved.items() if key != "names"}  # an optimiser may keep more of its own
        return {**own, "param_groups": groups}

    def _go_on_drawing(self, saved: Mapping[str, Any]) -> None:
        """Take up this rank's random state, or one of its own if there were more or fewer ranks."""
        several = saved.get("ranks") or {"random": [saved["random"]], "alike": None}
        if several["alike"] is not None or self.parts.random is not None:
            _set_random_states(several["alike"] or saved["random"])
            self.parts.random = pyro.util.get_rng_state()
        own = several["random"]
        _set_random_states(own[self.ranks.rank] if len(own) == self.ranks.size else saved["random"])
        if len(own) != self.ranks.size:
            pyro.set_rng_seed(self.ranks.seed(int(torch.randint(2**31, ()))))

    def _check_fits(self, saved: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` for another run's state, before anything is changed by it."""
        state = self.state
        assert state.optimizer is not None
        absent = [part for part in PARTS if part not in saved]
        if absent:
            raise CheckpointError(f"The checkpoint is none of fit's: it has no {absent[0]!r}.")
        then = {name: tuple(value.shape) for name, value in saved["parameters"].items()}
        now = {name: tuple(value.shape) for name, value in state.parameters.items()}
        if then != now:
            differing = sorted(n for n in then.keys() | now.keys() if then.get(n) != now.get(n))
            listed = ", ".join(f"{n} ({then.get(n, 'absent')} then, {now.get(n, 'absent')} now)" for n in differing[:4])
            raise CheckpointError(
                f"The checkpoint's parameters differ from those that the first step of this run meets: {listed}. It "
                "belongs to another program or estimator, or these came into being after its first step: have them "
                "made in that."
            )
        with _fitting("state of the optimiser"):
            old, new = (set(groups[0]) - {"params"} for groups in _groups(saved["optimizer"], state.optimizer))
            self._in_order(saved["optimizer"])
        if old - new and new - old:
            raise CheckpointError(
                f"The checkpoint was made with another optimiser, with settings such as {min(old - new)!r}; this run's "
                f"is {type(state.optimizer).__name__}. Resume with the optimiser of then."
            )
        if (saved["scheduler"] is None) != (self.scheduler is None):
            there = "without" if saved["scheduler"] is None else "with"
            raise CheckpointError(f"The checkpoint was made {there} a scheduler; resume {there} one.")
        if len(saved["callbacks"]) != len(self.callbacks):
            raise CheckpointError(
                f"The checkpoint was made with {len(saved['callbacks'])} callbacks, this run has "
                f"{len(self.callbacks)}; resume with those of then, in their order."
            )
        for callback, own in zip(self.callbacks, saved["callbacks"], strict=True):
            if own is not None and not hasattr(callback, "load_state_dict"):
                raise CheckpointError(
                    f"The checkpoint holds the state of a callback, in the place of which {shown(callback)} has none."
                )


PARTS = (
    "step",
    "parameters",
    "buffers",
    "elbo",
    "optimizer",
    "scheduler",
    "batches",
    "random",
    "records",
    "validations",
    "losses",
    "unrecorded",
    "best",
    "callbacks",
)
"""What the state of a loop consists of."""


@contextmanager
def _fitting(part: str) -> Iterator[None]:
    """Say of which part of a checkpoint it is that it does not fit this run."""
    try:
        yield
    except DiscreteInferenceError:
        raise
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        why = shown(str(error), 200) if isinstance(error, ValueError | RuntimeError) else type(error).__name__
        raise CheckpointError(
            f"The {part} in the checkpoint does not fit this run ({why}). Resume with the data, the estimator and the "
            "settings that it was made with."
        ) from error


def _groups(saved: Mapping[str, Any], optimizer: Optimizer) -> tuple[list[Any], list[Any]]:
    """The optimiser's groups then and now, equally many."""
    then, now = saved["param_groups"], optimizer.param_groups
    if len(then) != len(now):
        raise ValueError(f"{len(then)} groups of parameters then, {len(now)} now")
    return then, now


def _random_states() -> dict[str, Any]:
    """Those of torch, NumPy and Python, as what a checkpoint may hold."""
    return {**_plain_states(pyro.util.get_rng_state()), "cuda": torch.cuda.get_rng_state_all()}


def _plain_states(random: Mapping[str, Any]) -> dict[str, Any]:
    numpy = list(random["numpy"])
    return {
        "torch": random["torch"],
        "python": random["random"],
        "numpy": [numpy[0], torch.as_tensor(numpy[1].astype("int64")), *numpy[2:]],
    }


def _set_random_states(random: Mapping[str, Any]) -> None:
    numpy = list(random["numpy"])
    python = tuple(tuple(part) if isinstance(part, list | tuple) else part for part in random["python"])
    pyro.util.set_rng_state(
        {
            "torch": random["torch"],
            "random": python,
            "numpy": (numpy[0], numpy[1].numpy().astype("uint32"), *numpy[2:]),
        }
    )
    if "cuda" in random:
        torch.cuda.set_rng_state_all(random["cuda"])


def _outermost(modules: Sequence[nn.Module], elbo: nn.Module) -> list[nn.Module]:
    """Each module once, without those that are inside others, or the ELBO's own."""
    inner = {id(part) for module in modules for part in module.modules() if part is not module}
    inner |= {id(part) for part in elbo.modules()}
    return list({id(module): module for module in modules if id(module) not in inner}.values())
