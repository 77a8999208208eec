"""What a test program is: a small pair whose exact answer the oracle can give, in any floating dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_discrete.diagnostics.exact import Exact, Oracle
from pyro_discrete.families import Family, Need

__all__ = [
    "Pair",
    "Program",
    "leaf",
    "linear",
    "program",
]


BERNOULLI, CATEGORICAL, ONE_HOT, COUNT = Family.BERNOULLI, Family.CATEGORICAL, Family.ONE_HOT, Family.COUNT
STRUCTURE = Family.STRUCTURE


@dataclass(frozen=True)
class Pair:
    """A model and a guide, ready to run.

    - `parameters`: name -> leaf tensor, of those that are not in Pyro's param store (the others are found there).
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = ()
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """A test program: a pair that can be built in any floating dtype, and what an estimator must serve to run it.

    - `build(dtype)`: a fresh `Pair`, with the same parameter values every time.
    - `families`: of its sites that are not reparameterised. `relaxable`: whether it takes soft values at those.
    - `vectorizable`: whether it takes rows, as leading dims of its values.
    - `nodes`: quadrature nodes that its `Normal` sites need. `oracle`: gives the exact answer, by default of the ELBO.
    - `meets`: what all its structures can do of what an estimator may need.
    """

    name: str
    build: Callable[[torch.dtype], Pair]
    families: frozenset[Family]
    relaxable: bool = True
    vectorizable: bool = True
    nodes: int = 20
    oracle: Callable[..., Exact] | None = None
    meets: frozenset[Need] = frozenset(Need)

    @contextmanager
    def running(self, dtype: torch.dtype = torch.float64) -> Iterator[Pair]:
        """The pair inside a param store of its own, with all its parameters, from wherever they live.

        Runs on one thread, since tensors this small only wait for others, and leaves the random state as it was.
        """
        with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(0)
            pair = self.build(dtype)
            pyro.poutine.trace(pair.guide).get_trace(*pair.args)
            pyro.poutine.block(pair.model)(*pair.args)
            stored = dict(pyro.get_param_store().named_parameters())
            yield Pair(pair.model, pair.guide, pair.args, {**pair.parameters, **stored})

    @cached_property
    def exact(self) -> Exact:
        """The oracle's answer in float64, gradients by the names that `running` gives; zero where nothing depends."""
        with self.running() as pair:
            oracle = self.oracle or Oracle(nodes=self.nodes)
            exact = oracle(pair.model, pair.guide, *pair.args)
            found = {id(leaf): exact.gradients[name] for name, leaf in exact.parameters.items()}
            gradients = {
                name: found.get(id(leaf), torch.zeros(leaf.shape, dtype=torch.float64))
                for name, leaf in pair.parameters.items()
            }
            return Exact(exact.loss, gradients, dict(pair.parameters), exact.assignments)


def program(
    *families: Family,
    relaxable: bool = True,
    vectorizable: bool = True,
    nodes: int = 20,
    meets: frozenset[Need] = frozenset(Need),
) -> Callable[[Callable[[torch.dtype], Pair]], Program]:
    """Make a `Program` of a function `dtype -> Pair`."""

    def decorate(build: Callable[[torch.dtype], Pair]) -> Program:
        return Program(build.__name__, build, frozenset(families), relaxable, vectorizable, nodes, meets=meets)

    return decorate


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def leaf(values: Any, dtype: torch.dtype) -> Tensor:
    """A parameter: a leaf tensor that wants a gradient."""
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def linear(features: int, outputs: int, dtype: torch.dtype) -> torch.nn.Linear:
    """A linear layer with the same weights in every dtype."""
    return torch.nn.Linear(features, outputs, dtype=torch.float64).to(dtype)
