"""Every estimator's step on a device, eager and captured, against the CPU's: `python tests/device.py cuda`.

Each estimator takes three steps on every small program here that it serves, in float64 and float32, eager and as a
graph (`compile="graph"`). Loss and gradients are compared with those of eager steps in float64 on the CPU. Devices have
random numbers of their own, so all draws are made by the CPU's generator in float64 and moved to where they are asked
for (`DrawnOnCPU`): what is compared is the same step of the same draws. On `cpu` itself this compares precisions, and
captured steps with eager ones. A device that is not there is skipped, with status 0; a difference ends with status 1.

    python tests/device.py cpu
    python tests/device.py cuda rloo gumbel_softmax    # these estimators alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyro_discrete import TraceELBO, TraceIWELBO, available_estimators
from pyro_discrete.families import Family

STEPS = 3
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Of `distance`: sums are added up in another order, or in float32."""

BITS, CATEGORIES = frozenset((Family.BERNOULLI,)), frozenset((Family.ONE_HOT,))


class DrawnOnCPU(TorchDispatchMode):
    """Has every random number made by the CPU's generator, in float64, whatever device and type it is for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [a for a in args if isinstance(a, Tensor)]
        device = torch.device(kwargs.get("device") or (given[0].device if given else "cpu"))
        if torch.Tag.nondeterministic_seeded not in func.tags or device.type == "meta":
            return func(*args, **kwargs)

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype, copy=True)
            return value

        wanted = kwargs.get("dtype") or (given[0].dtype if given else torch.get_default_dtype())
        settings = (
            {name: moved(value) for name, value in kwargs.items()} | {"device": "cpu"} if not given else dict(kwargs)
        )
        if func.overloadpacket in (torch.ops.aten.rand, torch.ops.aten.randn):
            settings["dtype"] = torch.float64
        made = func(*tree_map(moved, args), **settings)
        if func._schema.is_mutable:
            return args[0].copy_(made)
        return made.to(device, wanted if made.is_floating_point() else made.dtype)


Program = tuple[Callable[..., None], Callable[..., None], tuple[Tensor, ...]]


def bits(device: torch.device, dtype: torch.dtype) -> Program:
    """Two layers of bits for each of five data, beside a weight of all and a class that the model alone has."""
    at = {"device": device, "dtype": dtype}
    inner, outer = (torch.linspace(-1.0, a, 6, **at).reshape(2, 3).requires_grad_() for a in (0.9, 0.4))
    loc = torch.tensor(0.3, **at).requires_grad_()
    x = torch.linspace(-1.0, 2.0, 5, **at)

    def model(x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(torch.zeros((), **at), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4, **at)).expand([len(x), 2]).to_event(1))
            h = pyro.sample("h", dist.Bernoulli(logits=z @ inner).to_event(1))
            kind = pyro.sample("kind", dist.Categorical(torch.full((3,), 1 / 3, **at)))
            middle = torch.tensor([-1.0, 0.0, 1.0], **at)[kind]
            pyro.sample("x", dist.Normal(middle + weight * h.sum(-1) + (z * h[..., :2]).sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("weight", dist.Normal(loc, 0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=x[:, None] * outer[:, 0]).to_event(1))
            pyro.sample("h", dist.Bernoulli(logits=z @ outer).to_event(1))

    return model, guide, (x,)


def categories(device: torch.device, dtype: torch.dtype) -> Program:
    """A one-hot vector for each of five data."""
    at = {"device": device, "dtype": dtype}
    table = torch.linspace(-1.0, 1.5, 4, **at).requires_grad_()
    logits = torch.linspace(-0.5, 0.5, 20, **at).reshape(5, 4).requires_grad_()
    x = torch.linspace(-1.0, 2.0, 5, **at)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.full((4,), 0.25, **at)))
            pyro.sample("x", dist.Normal((z * table).sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    return model, guide, (x,)


PROGRAMS = {"bits": (bits, BITS), "categories": (categories, CATEGORIES)}


def steps(
    name: str, program: Callable[..., Program], device: torch.device, dtype: torch.dtype, compile: bool | str
) -> list[list[Tensor]]:
    """Loss and gradients of each step, on the CPU in float64."""
    torch.set_default_dtype(dtype)
    pyro.set_rng_seed(0)
    model, guide, args = program(device, dtype)
    info = available_estimators()[name]
    particles = max(2, info.cls.min_particles)
    objective = TraceIWELBO if info.cls.importance_weighted else TraceELBO
    found = []
    with DrawnOnCPU():  # what an estimator's own networks start from is drawn, too
        elbo = objective(name, num_particles=particles, compile=compile).to(device)
        elbo.loss(model, guide, *args)
        for seed in range(STEPS):
            pyro.set_rng_seed(seed)
            step = elbo.gradients(model, guide, *args)
            found.append([t.detach().to("cpu", torch.float64) for t in (step.loss, *step.gradients)])
    if compile and not elbo.captures.count:
        raise AssertionError(f"the step was not captured: {elbo.captures.reason}")
    return found


def differences(device: torch.device, names: list[str]) -> Iterator[tuple[str, float, float]]:
    """What was compared, how far apart it is, and how far it may be."""
    for name in names:
        for title, (program, families) in PROGRAMS.items():
            if not families <= available_estimators()[name].families:
                continue
            expected = steps(name, program, torch.device("cpu"), torch.float64, False)
            for dtype, tolerance in TOLERANCES.items():
                for compile in (False, "graph"):
                    label = f"{name}, {title}, {str(dtype).removeprefix('torch.')}, {compile or 'eager'}"
                    found = steps(name, program, device, dtype, compile)
                    yield label, max(map(distance, found, expected)), tolerance


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of the differences of a step's loss and gradients, relative to the loss, and the largest gradient."""
    size = max(float(t.abs().max()) for t in expected[1:])
    apart = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    return max(apart[0] / (1 + abs(float(expected[0]))), max(apart[1:]) / size)


def available(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError, NotImplementedError):
        return False
    return device.type != "meta"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", help="cpu, cuda, cuda:1, mps ...")
    parser.add_argument("estimator", nargs="*", help="their names; all, if none")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if not available(device):
        print(f"skipped: there is no {given.device} here")
        return 0
    wrong = compared = 0
    for label, apart, tolerance in differences(device, given.estimator or sorted(available_estimators())):
        compared += 1
        wrong += not apart <= tolerance
        print(f"{'ok   ' if apart <= tolerance else 'WRONG'} {label}: {apart:.1e}", flush=True)
    print(f"{compared} compared with the CPU's, {wrong} beyond their tolerance")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
