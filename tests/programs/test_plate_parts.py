"""A plate of which a step sees a part is what Pyro's own subsample of a larger one is."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import TraceELBO, TraceExpectation, TraceIWELBO
from pyro_discrete.programs.plate_parts import PlateParts

X = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
WHOLE = 12


class Bits:
    """A global bit and one a datum; in a plate of its own size, or a subsample of a larger one."""

    def __init__(self, subsampled: bool, sequential: bool = False) -> None:
        self.subsampled, self.sequential = subsampled, sequential

    def each(self, x: Tensor) -> Any:
        size = {"size": WHOLE, "subsample": torch.arange(len(x))} if self.subsampled else {"size": len(x)}
        plate = pyro.plate("data", **size)
        if self.sequential:
            for i in plate:
                yield f"_{int(i)}", x[int(i)]
            return
        with plate:
            yield "", x

    def model(self, x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.3, 0.9], dtype=torch.float64))
        g = pyro.sample("g", dist.Bernoulli(w[0].sigmoid()))
        for name, data in self.each(x):
            z = pyro.sample(f"z{name}", dist.Bernoulli(0.3 + 0.4 * g))
            pyro.sample(f"x{name}", dist.Normal(w[1] * z + g, 1.0), obs=data)

    def guide(self, x: Tensor) -> None:
        pyro.sample("g", dist.Bernoulli(logits=pyro.param("c", torch.tensor(0.2, dtype=torch.float64))))
        for name, data in self.each(x):
            pyro.sample(f"z{name}", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.5).double()) * data))


ELBOS: dict[str, Any] = {
    "enumerate": lambda: TraceELBO("enumerate"),
    "rloo": lambda: TraceELBO("rloo", num_particles=3),
    "nvil": lambda: TraceELBO("nvil"),
    "rebar": lambda: TraceELBO("rebar"),
    "gumbel_softmax": lambda: TraceELBO("gumbel_softmax"),
    "vimco": lambda: TraceIWELBO("vimco", num_particles=4),
    "reward": lambda: TraceExpectation("rloo", num_particles=2),
    "closed terms": lambda: TraceELBO("disarm", analytic_kl=True),
    "row by row": lambda: TraceELBO("rloo", num_particles=2, vectorize_particles=False),
    "captured": lambda: TraceELBO("nvil", compile="graph"),
}


def steps(elbo: Any, pair: Bits, around: Any) -> list[tuple[float, dict[str, Tensor]]]:
    """Three steps' losses and gradients."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    found = []
    for _ in range(3):
        with around():
            result = elbo.gradients(pair.model, pair.guide, X)
        names = {id(p): n for n, p in pyro.get_param_store().named_parameters()}
        by_name = {names[id(p)]: g for p, g in zip(result.parameters, result.gradients, strict=True) if id(p) in names}
        found.append((float(result.loss), by_name))
    return found


@pytest.mark.parametrize(("name", "sequential"), [*((name, False) for name in ELBOS), ("enumerate", True)])
def test_it_is_a_subsample(name: str, sequential: bool) -> None:
    """One by one, what is exact: a subsample's indices are read in Python there, and signals noisier for it."""
    part = steps(ELBOS[name](), Bits(False, sequential), lambda: PlateParts(["data"], len(X), WHOLE))
    subsample = steps(ELBOS[name](), Bits(True, sequential), lambda: PlateParts([], 1, 1))
    for (loss, gradients), (other, others) in zip(part, subsample, strict=True):
        assert loss == pytest.approx(other, rel=1e-9)
        for parameter, gradient in others.items():
            torch.testing.assert_close(gradients[parameter], gradient)


def test_a_captured_step_knows_its_part_from_others() -> None:
    elbo, eager, pair = TraceELBO("enumerate", compile="graph"), TraceELBO("enumerate"), Bits(False)
    pyro.clear_param_store()
    for whole in (6, 6, 6, 12, 12, 12, 6):
        with PlateParts(["data"], len(X), whole):
            found, right = (float(each.gradients(pair.model, pair.guide, X).loss) for each in (elbo, eager))
        assert found == pytest.approx(right, rel=1e-9)
    assert elbo.captures is not None
    assert elbo.captures.count == 2
