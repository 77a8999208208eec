"""After a step nothing of its run is left: neither draws nor what the graph has saved for a backward pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_discrete import TraceELBO, TraceExpectation, TraceIWELBO

ELBOS: dict[str, Callable[[], Any]] = {
    "rloo": lambda: TraceELBO("rloo", num_particles=3),
    "reinforce": lambda: TraceELBO("reinforce"),
    "nvil": lambda: TraceELBO("nvil", num_particles=2),
    "one after the other": lambda: TraceELBO("rloo", num_particles=2, vectorize_particles=False),
    "in chunks": lambda: TraceELBO("rloo", num_particles=4, row_chunk=2),
    "nvil in chunks": lambda: TraceELBO("nvil", num_particles=4, row_chunk=2),
    "relax in chunks": lambda: TraceELBO("relax", num_particles=2, row_chunk=3),
    "a bound in chunks": lambda: TraceIWELBO("vimco", num_particles=4, row_chunk=2, dreg=True),
    "disarm": lambda: TraceELBO("disarm"),
    "relax": lambda: TraceELBO("relax"),
    "gumbel_softmax": lambda: TraceELBO("gumbel_softmax"),
    "enumerate": lambda: TraceELBO("enumerate"),
    "auto": lambda: TraceELBO(),
    "vimco": lambda: TraceIWELBO("vimco", num_particles=3),
    "reward": lambda: TraceExpectation("rloo", num_particles=3),
}


CAPTURED: dict[str, Callable[[], Any]] = {
    "rloo, captured": lambda: TraceELBO("rloo", num_particles=3, compile="graph"),
    "nvil, captured": lambda: TraceELBO("nvil", num_particles=2, compile="graph"),
    "relax, captured": lambda: TraceELBO("relax", compile="graph"),
    "vimco, captured": lambda: TraceIWELBO("vimco", num_particles=3, compile="graph"),
    "enumerate, captured": lambda: TraceELBO("enumerate", compile="graph"),
}


IN_CIRCLES = ("relax", "gumbel_softmax", "relax in chunks")
"""Relaxed values and the messages of their sites refer to each other: gone once Python has collected its garbage."""


class Saved:
    """Holds a tensor for as long as a graph holds this."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that is saved would hold its own graph


class NotesAll(TorchDispatchMode):
    """Refers weakly to whatever is computed: draws, log-probabilities, costs, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func._schema.is_mutable:
            self.met += [
                weakref.ref(t) for t in (out if isinstance(out, list | tuple) else [out]) if torch.is_tensor(t)
            ]
        return out


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", ELBOS)
def test_nothing_of_a_step_is_kept_alive(name: str, no_collector: None) -> None:
    met: list[weakref.ref[Any]] = []
    x = torch.randn(6)

    def noted(value: Tensor) -> Tensor:
        met.append(weakref.ref(value))
        return value

    def model() -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = noted(pyro.sample("z", dist.Bernoulli(0.3)))
            pyro.sample("x", dist.Normal(noted(loc[0] + loc[1] * z), 1.0), obs=x)

    def guide() -> None:
        logits = noted(pyro.param("q", torch.zeros(len(x))) * 2)
        with pyro.plate("data", len(x)):
            noted(pyro.sample("z", dist.Bernoulli(logits=logits)))

    def packed(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        met.append(weakref.ref(saved))
        return saved

    pyro.clear_param_store()
    elbo = ELBOS[name]()
    elbo.loss_and_grads(model, guide)  # plans
    elbo.loss_and_grads(model, guide)
    gc.collect()
    assert not [ref for ref in met if ref() is not None], "planning, or a first step"
    met.clear()
    twice = name.startswith("relax")  # it differentiates through its gradient, for which what is saved has to have one
    with nullcontext() if twice else torch.autograd.graph.saved_tensors_hooks(packed, lambda saved: saved.tensor):
        elbo.loss_and_grads(model, guide)
    if name in IN_CIRCLES:
        gc.collect()
    assert len(met) > 3
    assert not [ref for ref in met if ref() is not None], "a later step"


@pytest.mark.parametrize("name", [*ELBOS, *CAPTURED])
def test_nothing_that_a_step_computes_is_kept_alive(name: str, no_collector: None) -> None:
    x = torch.randn(6)

    def model() -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(loc[0] + loc[1] * z, 1.0), obs=x)

    def guide() -> None:
        logits = pyro.param("q", torch.zeros(len(x))) * 2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    pyro.clear_param_store()
    elbo = (ELBOS | CAPTURED)[name]()
    for _ in range(5):  # the first one plans, the second is captured, the third and the fourth are compared
        elbo.loss_and_grads(model, guide)
    assert name in ELBOS or elbo.captures.count == 1
    for _ in range(2):  # the first time some of Python's modules are loaded
        gc.collect()
        with NotesAll() as noting:
            elbo.loss_and_grads(model, guide)
        for parameter in [*pyro.get_param_store()._params.values(), *elbo.parameters()]:
            parameter.grad = None
    if name in IN_CIRCLES:
        gc.collect()
    assert len(noting.met) > 10
    assert not [ref() for ref in noting.met if ref() is not None]
