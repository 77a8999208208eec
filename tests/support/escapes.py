"""Programs in which a model's term depends on a draw in a way that is hard to see, or seems to and does not."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import dlpack

Channel = Callable[[Tensor], Tensor]
BUFFER = torch.zeros(())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Hidden(torch.autograd.Function):
    """Leaves torch inside."""

    @staticmethod
    def forward(ctx, value):
        return torch.as_tensor(value.numpy().copy() * 2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.jit.script
def scripted(value: Tensor) -> Tensor:
    return value * 2


def item(a: Tensor) -> Tensor:
    return torch.tensor(a.item(), dtype=a.dtype)


def branch(a: Tensor) -> Tensor:
    return torch.ones_like(a.detach()) if a > 0.5 else torch.zeros((), dtype=a.dtype)


def numpy(a: Tensor) -> Tensor:
    return torch.from_numpy(a.detach().numpy().copy())


def to_list(a: Tensor) -> Tensor:
    return torch.tensor(a.tolist(), dtype=a.dtype)


def dl_pack(a: Tensor) -> Tensor:
    return dlpack.from_dlpack(dlpack.to_dlpack(a.detach())).clone()


def memory_from_before(a: Tensor) -> Tensor:
    BUFFER.copy_(a)
    return BUFFER.to(a.dtype)


def memory_of_its_own(a: Tensor) -> Tensor:
    buffer = torch.zeros((), dtype=a.dtype)
    buffer += a
    return buffer


def view(a: Tensor) -> Tensor:
    buffer = torch.zeros(2, 2, dtype=a.dtype)
    row = buffer[1]
    row[0] = a
    return buffer.sum()


def out_argument(a: Tensor) -> Tensor:
    buffer = torch.zeros((), dtype=a.dtype)
    torch.mul(a, 2.0, out=buffer)
    return buffer


def custom_function(a: Tensor) -> Tensor:
    return Doubled.apply(a)


def custom_function_with_numpy(a: Tensor) -> Tensor:
    return Hidden.apply(a.detach())


def script(a: Tensor) -> Tensor:
    return scripted(a)


def vmapped(a: Tensor) -> Tensor:
    return torch.vmap(lambda v: v * 2)(a.reshape(1)).sum()


def gradient(a: Tensor) -> Tensor:
    w = torch.ones((), dtype=a.dtype, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(a * w, w)[0]


def one_hot(a: Tensor) -> Tensor:
    return functional.one_hot(a.long(), 2).argmax(-1).to(a.dtype)


def table(a: Tensor) -> Tensor:
    return torch.tensor([0.3, 1.2], dtype=a.dtype)[a.long().reshape(1)].sum()


def index_of_one_number(a: Tensor) -> Tensor:
    """Torch reads the index of a tensor without dims, as Python would."""
    return torch.tensor([0.3, 1.2], dtype=a.dtype)[a.long()]


def number_of_nonzeros(a: Tensor) -> Tensor:
    return torch.tensor(len(a.reshape(1).nonzero()), dtype=a.dtype)


def number_of_chosen(a: Tensor) -> Tensor:
    return torch.tensor(len(torch.ones(1)[a.reshape(1) > 0]), dtype=a.dtype)


def caught_error(a: Tensor) -> Tensor:
    try:
        return torch.zeros(1, dtype=a.dtype)[a.long()]
    except IndexError:
        return torch.ones((), dtype=a.dtype)


def deterministic(a: Tensor) -> Tensor:
    return pyro.deterministic("copy", a * 2)


def delta(a: Tensor) -> Tensor:
    return pyro.sample("copy", dist.Delta(a), obs=a)


def thread(a: Tensor) -> Tensor:
    found: list[Tensor] = []
    worker = threading.Thread(target=lambda: found.append(a * 2))
    worker.start()
    worker.join()
    return found[0]


def at_random(a: Tensor) -> Tensor:
    return a * (random.random() < 0.5)


FOLLOWED = [
    memory_of_its_own,
    view,
    out_argument,
    custom_function,
    script,
    vmapped,
    one_hot,
    table,
    deterministic,
    delta,
]
ESCAPES = [
    item,
    branch,
    numpy,
    to_list,
    dl_pack,
    memory_from_before,
    custom_function_with_numpy,
    gradient,
    index_of_one_number,
    number_of_nonzeros,
    number_of_chosen,
    caught_error,
    thread,
    at_random,
]


class Two:
    """Two independent bits of the guide, drawn b first; the model meets a first, and x by way of a channel.

    By the order of drawing nothing can be left out of b's cost. What a's draw changes comes by the channel.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.phi = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)

    def model(self) -> None:
        half = torch.tensor(0.3, dtype=torch.float64)
        a = pyro.sample("a", dist.Bernoulli(half))
        c = self.channel(a)
        b = pyro.sample("b", dist.Bernoulli(half))
        pyro.sample("x", dist.Normal(b + c, 0.8), obs=torch.tensor(1.3, dtype=torch.float64))
        pyro.sample("y", dist.Normal(b, 0.5), obs=torch.tensor(0.9, dtype=torch.float64))

    def guide(self) -> None:
        pyro.sample("b", dist.Bernoulli(logits=self.phi[1]))
        pyro.sample("a", dist.Bernoulli(logits=self.phi[0]))
