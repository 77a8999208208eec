"""Draws of rows that share their parameters, and of bits: the law, the shape, and what is left to Pyro."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_discrete import TraceELBO
from pyro_discrete.programs.sites import drawn
from pyro_discrete.testing.extremes import ForcedDraws, SharedNoise

PROBS = torch.tensor([[0.2, 0.0, 0.3, 0.5], [0.7, 0.1, 0.15, 0.05], [1.0, 0.0, 0.0, 0.0]])
ROWS = 20_000

DISTRIBUTIONS: dict[str, Any] = {
    "probs": dist.Categorical(PROBS),
    "logits": dist.Categorical(logits=PROBS.double().log()),
    "one_hot": dist.OneHotCategorical(logits=PROBS.log()),
    "event": dist.OneHotCategorical(3 * PROBS).to_event(1),
    "masked": dist.Categorical(PROBS).mask(torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_are_independent_draws_of_the_distribution(name: str) -> None:
    """Chi-squared of pairs of neighbouring rows, 5 cells of two elements: false alarms one in 1e5 for each of both."""
    torch.manual_seed(3)
    fn = DISTRIBUTIONS[name].expand([ROWS, *DISTRIBUTIONS[name].batch_shape])
    value, like = drawn(fn), fn()
    assert value.shape == like.shape
    assert value.dtype == like.dtype
    assert value.is_contiguous()
    index = value.argmax(-1) if "one_hot" in name or name == "event" else value
    assert index[:, 2].eq(0).all()
    for element in range(2):
        probs = PROBS[element].double()
        pairs = torch.bincount(4 * index[0::2, element] + index[1::2, element], minlength=16).double()
        expected = ROWS / 2 * torch.outer(probs, probs).flatten()
        assert pairs[expected == 0].sum() == 0
        there = expected > 0
        statistic = ((pairs - expected).square() / expected)[there].sum()
        assert statistic < {8: 37.3, 15: 50.5}[int(there.sum()) - 1]  # quantiles 1 - 1e-5


def test_what_shares_no_parameters_is_drawn_by_itself() -> None:
    class Own(dist.Categorical):
        def sample(self, sample_shape: Any = ()) -> torch.Tensor:
            return torch.full((2, 3), 7)

    for fn in (dist.Categorical(PROBS.repeat(2, 1, 1)), dist.Poisson(torch.ones(2, 3)), dist.Categorical(PROBS[0])):
        torch.manual_seed(0)
        value = drawn(fn)
        torch.manual_seed(0)
        assert torch.equal(value, fn())
    own = Own(PROBS.expand(2, 3, 4))
    assert torch.equal(drawn(own), own.sample())


class Operations(TorchDispatchMode):
    """Names of what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layouts(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Probabilities, exact zeros and ones among them, of many shapes and strides."""
    wide = torch.rand(60, 400, generator=torch.Generator().manual_seed(1), dtype=dtype)
    wide[:, ::7], wide[:, 1::7] = 0.0, 1.0
    small = {"one": wide[0, 2], "none": wide[:0], "few": wide[0, :3]}
    odd = {"transposed": wide.T, "every second": wide[:, ::2], "expanded": wide.expand(3, 60, 400)}
    return {"wide": wide, **small, **odd, "one row": wide[:1].expand(50, 400), "swapped": wide.unflatten(1, (8, 50)).mT}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_torch_bernoulli(dtype: torch.dtype) -> None:
    for probs in layouts(dtype).values():
        torch.manual_seed(5)
        expected, state = torch.bernoulli(probs), torch.get_rng_state()
        plain = dist.Bernoulli(probs)
        for fn in (plain, plain.mask(probs < 0.5), plain.to_event(probs.dim()), plain.expand(probs.shape)):
            torch.manual_seed(5)
            with Operations() as seen:
                value = drawn(fn)
            assert torch.equal(value, expected)
            assert (value.dtype, value.stride()) == (dtype, expected.stride())
            assert torch.equal(torch.get_rng_state(), state)
            assert "bernoulli" not in seen.names
        assert (value[probs == 0] == 0).all()
        assert (value[probs == 1] == 1).all()


@pytest.mark.parametrize("validated", [True, False])
def test_bits_of_logits_are_those_of_torch_bernoulli(validated: bool) -> None:
    """Also of logits that are repeated, which are made probabilities once, and where nothing is validated."""
    for probs in layouts(torch.float32).values():
        logits = probs.clamp(1e-6, 1 - 1e-6).logit()
        for shaped in (
            lambda fn: fn,
            lambda fn: fn.to_event(fn.logits.dim()),
            lambda fn: fn.expand((4, *fn.batch_shape)),
        ):
            with pyro.validation_enabled(validated):
                fn = shaped(dist.Bernoulli(logits=logits))
                torch.manual_seed(5)
                with Operations() as seen:
                    value = drawn(fn)
                assert "bernoulli" not in seen.names
                state = torch.get_rng_state()
                torch.manual_seed(5)
                assert torch.equal(value, fn())
                assert torch.equal(torch.get_rng_state(), state)


def test_bits_of_logits_carry_no_gradient() -> None:
    logits = torch.linspace(-60, 60, 500).requires_grad_()
    for fn in (dist.Bernoulli(logits=logits), dist.Bernoulli(logits=logits).expand([4, 500])):
        torch.manual_seed(0)
        value = drawn(fn)
        torch.manual_seed(0)
        assert torch.equal(value, fn())
        assert not value.requires_grad


def test_bits_of_a_traced_graph_are_left_to_torch_bernoulli() -> None:
    """No value is read there, and alike draws can be made one operation."""
    with pyro.validation_enabled(False):
        graph = make_fx(lambda logits: drawn(dist.Bernoulli(logits=logits)))(torch.randn(4))
    assert any(node.target is torch.ops.aten.bernoulli.default for node in graph.graph.nodes)
    assert all(node.target is not torch.ops.aten.aminmax.default for node in graph.graph.nodes)


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_probabilities_that_are_none_are_refused(wrong: float) -> None:
    probs = torch.tensor([0.5, wrong])
    with pytest.raises(ValueError, match="invalid values"):
        dist.Bernoulli(probs)
    for unchecked in (
        dist.Bernoulli(probs, validate_args=False),
        dist.Bernoulli(probs, validate_args=False).to_event(1),
    ):
        with pytest.raises(RuntimeError, match="p_in"):
            drawn(unchecked)
    with pyro.validation_enabled(False), pytest.raises(RuntimeError, match="p_in"):
        drawn(dist.Bernoulli(probs))
    if math.isnan(wrong):
        with pyro.validation_enabled(False), pytest.raises(RuntimeError, match="p_in"):
            drawn(dist.Bernoulli(logits=probs))


def test_bits_of_other_types_are_left_to_torch() -> None:
    for fn in (dist.Bernoulli(torch.rand(50).half()), dist.Bernoulli(torch.rand(50).bfloat16())):
        torch.manual_seed(0)
        value = drawn(fn)
        torch.manual_seed(0)
        assert torch.equal(value, fn())


@pytest.mark.parametrize("validated", [True, False])
def test_draws_can_be_forced_and_turned_around(validated: bool) -> None:
    probs = torch.rand(2, 40, dtype=torch.float64)
    with pyro.validation_enabled(validated):
        fn = dist.Bernoulli(logits=probs.logit())
    with ForcedDraws((1, 0)) as draws:
        value = drawn(fn)
    assert draws.forced == 1
    assert torch.equal(value, torch.tensor([[1.0], [0.0]]).double().expand(2, 40))
    found = []
    for unlikely, dtype in ((False, torch.float64), (True, torch.float64), (False, torch.float32)):
        narrow = dist.Bernoulli(probs.to(dtype), validate_args=validated)
        torch.manual_seed(0)
        with SharedNoise(unlikely):
            found.append(drawn(narrow).double())
    assert torch.equal(found[1], 1 - found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("made_before", [True, False])
def test_a_captured_step_draws_the_bits_of_an_eager_one(made_before: bool) -> None:
    """Also where a distribution was made, and validated, before the step was captured."""
    made = dist.Bernoulli(logits=torch.linspace(-3, 3, 600).reshape(30, 20)).to_event(1)
    phi = torch.zeros(30, 20, requires_grad=True)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", 30):
            z = pyro.sample("z", made)
            pyro.sample("x", dist.Normal(z + phi, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", 30):
            pyro.sample("z", made if made_before else dist.Bernoulli(logits=phi).to_event(1))

    losses = []
    for elbo in (TraceELBO("reinforce", num_particles=2), TraceELBO("reinforce", num_particles=2, compile="graph")):
        for seed in range(3):
            torch.manual_seed(seed)
            losses.append(elbo.loss_and_grads(model, guide, torch.ones(30, 20)))
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3
    assert elbo.captures is not None
    assert elbo.captures.count == 1
