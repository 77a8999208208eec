"""A model and a guide, and how they are run: traced, replayed, on kept subsamples, with all left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.messenger import Messenger, block_messengers
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_discrete.errors import SettingError, shown
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.sites import is_deterministic, is_kind, is_latent

__all__ = [
    "KeepSubsamples",
    "Pair",
    "Program",
    "RowsPlate",
    "SiteMessenger",
    "Substitute",
    "UnconditionSites",
    "hidden_from_traces",
    "on_trial",
    "python_random_position",
    "random_state",
    "set_python_random_state",
    "set_random_state",
    "set_torch_random_state",
    "torch_random_state",
    "trace_pair",
    "trace_sites",
]


class SiteMessenger(Messenger):
    """A messenger that acts on sample statements, and lets all others go by at the least cost."""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_post_sample(msg)

    def _pyro_sample(self, msg: Any) -> None: ...
    def _pyro_post_sample(self, msg: Any) -> None: ...


class _TraceSites(SiteMessenger, TraceMessenger):
    """Pyro's trace of the sample statements, which is made as it is entered."""

    def __init__(self) -> None:
        Messenger.__init__(self)
        self.graph_type, self.param_only = "flat", False

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["infer"].get("_do_not_trace"):
            TraceMessenger._pyro_post_sample(self, msg)
        else:
            self.trace.add_node(msg["name"], **msg)


class _ReplaySites(SiteMessenger, ReplayMessenger):
    """Pyro's replay of the sample statements."""

    def _pyro_sample(self, msg: Any) -> None:
        ReplayMessenger._pyro_sample(self, msg)


DISTRIBUTIONS = (TorchDistributionMixin,)


class RowsPlate(SiteMessenger, IndepMessenger):
    """The leading plate of a run's rows, as `pyro.plate` around a program has it.

    It draws no subsample, lets params go by, makes its frame once, and leaves a distribution that has the rows already
    as it is: with bits drawn from logits before these are repeated (`drawn`), a step of a belief network takes 0.95 of
    the time that it takes with Pyro's.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(ROWS_PLATE, size, dim)
        self.frame: CondIndepStackFrame = CondIndepStackFrame(ROWS_PLATE, dim, size, 0, size)
        self.rows: tuple[int, int] = (size, dim)

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = (self.frame, *msg["cond_indep_stack"])
        self.spread(msg)

    def spread(self, msg: Any) -> None:
        """Have a site's distribution of one element for each row."""
        fn = msg["fn"]
        if msg["done"] or not is_kind(type(fn), DISTRIBUTIONS):
            return
        size, dim = self.rows
        shape = tuple(fn.batch_shape)
        shape = (1,) * (-dim - len(shape)) + shape
        if shape[dim] not in (1, size):
            raise ValueError(
                f"Shape mismatch inside plate('{ROWS_PLATE}') at site {msg['name']} dim {dim}, {size} vs {shape[dim]}"
            )
        if shape[dim] != size or len(shape) != len(fn.batch_shape):
            msg["fn"] = fn.expand(torch.Size((*shape[:dim], size, *shape[len(shape) + dim + 1 :])))
            if msg["fn"].has_rsample != fn.has_rsample:
                msg["fn"].has_rsample = fn.has_rsample  # Pyro lets an instance have its own

    def has_room(self, fn: Any) -> bool:
        """Whether a distribution has no dim for the rows yet, or all of them in it."""
        size, dim = self.rows
        dims = len(fn.batch_shape)
        return dims < -dim or (dims == -dim and fn.batch_shape[0] == size)

    def beside(self, fn: Any) -> tuple[int, ...]:
        """The leading dims of draws, one for each row, from a distribution that has no dim for the rows yet."""
        size, dim = self.rows
        missing = -dim - len(fn.batch_shape)
        return (size, *(1,) * (missing - 1)) if missing > 0 else ()


class UnconditionSites(SiteMessenger, UnconditionMessenger):
    """Draws observed sites anew. Pyro's own would draw `pyro.deterministic` too, and expand it into its plates."""

    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg):
            UnconditionMessenger._pyro_sample(self, msg)


def trace_sites(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, replayed: Trace | None = None
) -> Trace:
    """The trace of a run of the program, without its params; with the values of `replayed`, if that is given."""
    if replayed is not None:
        program = _ReplaySites(replayed)(program)
    traced = TraceHandler(_TraceSites(), program)
    traced(*args, **kwargs)
    return traced.trace


class KeepSubsamples(SiteMessenger):
    """Lets every run of a program see the subsamples of the first one, of plates that have its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, int], Tensor] = {}

    @staticmethod
    def of(*traces: Trace | None) -> KeepSubsamples:
        """For the runs that follow these ones."""
        kept = KeepSubsamples()
        for trace in traces:
            for msg in trace.nodes.values() if trace is not None else ():
                if site_is_subsample(msg):
                    kept.keep(msg)
        return kept

    @property
    def indices(self) -> dict[str, Tensor]:
        """Of each plate, the elements that it had first."""
        return {name: seen for (name, *_), seen in reversed(self._seen.items())}

    def keep(self, msg: Any) -> None:
        """Keep the subsample of a plate."""
        self._seen.setdefault((msg["name"], msg["fn"].size, len(msg["value"])), msg["value"])

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and not msg["done"] and msg["value"] is None:
            size, part = msg["fn"].size, msg["fn"].subsample_size
            msg["value"] = self._seen.get((msg["name"], size, size if part is None else min(size, part)))

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self.keep(msg)


Program = Callable[..., Any]


Around = Callable[[Program], Program]


Rows = tuple[int, int]
"""The size of a leading plate, and its dim."""


def _over_rows(program: Program, rows: Rows | None) -> Program:
    return program if rows is None else RowsPlate(*rows)(program)


@dataclass(frozen=True)
class Pair:
    """A model and a guide with the arguments of a call."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __post_init__(self) -> None:
        for what, program in (("model", self.model), ("guide", self.guide)):
            if not callable(program):
                raise SettingError(f"The {what} is {shown(program)}; a function that is a Pyro program is expected.")

    @property
    def guide_runs_model(self) -> bool:
        """Whether the guide is a messenger that runs the model itself, as Pyro's `AutoMessenger`s are."""
        return isinstance(poutine.unwrap(self.guide), Messenger)

    def replayed(self, guide_trace: Trace, around: Around | None = None, rows: Rows | None = None) -> Program:
        """The model, to be run with the guide's draws; `around` is put around it, and `rows` inside of that."""
        model = _over_rows(self.model, rows)
        return poutine.replay(model if around is None else around(model), trace=guide_trace)


class Substitute(Messenger):
    """Gives latent sites the values it holds."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and msg["name"] in self.values and not msg["done"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def hidden_from_traces() -> AbstractContextManager[Any]:
    """Hides runs from the traces around (SVI's, which collects parameters); other handlers stay in force."""
    return block_messengers(lambda messenger: isinstance(messenger, TraceMessenger))


@contextmanager
def on_trial() -> Iterator[Callable[[], None]]:
    """Hides runs from the traces around, and leaves every random state (torch, NumPy, Python) as it was.

    Gives what puts these back for one more run.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        start = random_state()
        try:
            with hidden_from_traces(), torch.inference_mode(False):
                yield partial(set_random_state, start)
        finally:
            set_rng_state(start[0])


def trace_pair(
    pair: Pair,
    subsamples: KeepSubsamples,
    values: Mapping[str, Tensor] | None = None,
    rows: Rows | None = None,
    around: Around | None = None,
) -> tuple[Trace, Trace]:
    """Run the guide, then the model against it: with these values, over a leading plate of rows, the model inside of
    `around`. A program that differentiates something by itself is run with gradients on, whatever is around."""
    try:
        return _traced(pair, subsamples, values, rows, around)
    except RuntimeError as error:
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise
        with torch.enable_grad():
            return _traced(pair, subsamples, values, rows, around)


def _traced(
    pair: Pair,
    subsamples: KeepSubsamples,
    values: Mapping[str, Tensor] | None,
    rows: Rows | None,
    around: Around | None,
) -> tuple[Trace, Trace]:
    guide = _over_rows(pair.guide, rows)
    with subsamples:
        if pair.guide_runs_model:
            guide(*pair.args, **pair.kwargs)
            model_trace, guide_trace = poutine.unwrap(guide).get_traces()
            return guide_trace, model_trace
        with Substitute(values or {}):
            guide_trace = poutine.trace(guide).get_trace(*pair.args, **pair.kwargs)
            replayed = pair.replayed(guide_trace, around, rows)
            return guide_trace, poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)


def torch_random_state() -> tuple[Tensor, list[Tensor]]:
    """The state of torch's random number generators, the only ones that a graph draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_torch_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Put torch's random number generators back into a state."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def random_state() -> Any:
    """The states of torch's, NumPy's and Python's generators."""
    return get_rng_state(), torch_random_state()


def python_random_position() -> tuple[Any, ...]:
    """Where Python's and NumPy's global generators stand, to be compared."""
    state = get_rng_state()
    name, keys, *rest = state.get("numpy", ("", b""))
    return state["random"], name, bytes(keys), *rest


def set_random_state(state: Any) -> None:
    """Put all of them back into a state."""
    set_rng_state(state[0])
    set_torch_random_state(state[1])


def set_python_random_state(state: Any) -> None:
    """Put Python's and NumPy's alone back into a state of all of them."""
    set_rng_state({**state[0], "torch": torch.get_rng_state()})
