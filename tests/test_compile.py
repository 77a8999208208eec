"""When steps are captured, captured anew, or not: never silently wrong."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_discrete import TraceELBO
from pyro_discrete.compile import Captures
from pyro_discrete.errors import NonFiniteError, SettingError
from pyro_discrete.gradients import StepGradients


class Pair:
    """A small amortised program; `change` acts on the mean of x in the model."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda mean: mean) -> None:
        torch.manual_seed(0)
        self.encoder, self.decoder, self.change = nn.Linear(3, 2), nn.Linear(2, 3), change

    def model(self, x: Tensor, *_: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.4)).expand([len(x), 2]).to_event(1))
            mean = self.change(self.decoder(z.to(self.decoder.weight.dtype)))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, *_: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def data(size: int = 4) -> Tensor:
    return torch.linspace(-1, 1, 3 * size).reshape(size, 3)


def graph_elbo(**settings: Any) -> TraceELBO:
    return TraceELBO("rloo", num_particles=2, compile="graph", **settings)


def captures_of(elbo: TraceELBO) -> Captures:
    assert elbo.captures is not None
    return elbo.captures


def same_as_eager(elbo: TraceELBO, model: Any, guide: Any, *args: Any, seed: int = 5) -> bool:
    """Whether a step of `elbo` gives what one without capture gives."""
    results = []
    for each in (elbo, TraceELBO("rloo", num_particles=2)):
        each.loss(model, guide, *args)  # plans
        torch.manual_seed(seed)
        step = each.gradients(model, guide, *args)
        results.append((step.loss, {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}))
    (loss, gradients), (expected, wanted) = results
    return torch.equal(loss, expected) and all(torch.equal(gradients[key], wanted[key]) for key in wanted)


def steps(elbo: TraceELBO, pair: Pair, *args: Any, count: int = 4) -> None:
    for _ in range(count):
        elbo.loss_and_grads(pair.model, pair.guide, *args)


def test_new_batch_shapes_are_captured_and_kept():
    elbo, pair = graph_elbo(), Pair()
    for _ in range(4):
        for size in (4, 7):
            assert same_as_eager(elbo, pair.model, pair.guide, data(size))
    assert captures_of(elbo).made == captures_of(elbo).count == 2


def test_a_changed_dtype_is_captured_anew():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    pair.encoder.double()
    pair.decoder.double()
    for _ in range(5):
        assert same_as_eager(elbo, pair.model, pair.guide, data().double())
    assert captures_of(elbo).made == 2


def test_train_and_eval_have_a_graph_each():
    elbo = graph_elbo()
    dropout = nn.Dropout(0.5)
    pair = Pair(dropout)
    for _ in range(4):
        for training in (True, False):
            dropout.train(training)
            assert same_as_eager(elbo, pair.model, pair.guide, data())
    assert captures_of(elbo).count == 2


def test_a_replaced_parameter_is_seen():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    pair.decoder.weight = nn.Parameter(torch.ones(3, 2))
    assert same_as_eager(elbo, pair.model, pair.guide, data())
    pair.encoder = nn.Linear(3, 2)
    assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_params_created_anew_are_seen():
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4).expand([len(x)]))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.5)) * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3)) * x))

    elbo = graph_elbo()
    for _ in range(3):
        pyro.clear_param_store()
        for _ in range(4):
            assert same_as_eager(elbo, model, guide, torch.linspace(-1, 1, 5))
            assert set(pyro.get_param_store()) == {"loc", "logit"}


def test_params_created_later_are_found_at_the_next_check():
    started = [False]

    def model(x: Tensor) -> None:
        loc = pyro.param("late", torch.tensor(0.0)) if started[0] else torch.tensor(0.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4).expand([len(x)]))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3)) * x))

    elbo = graph_elbo()
    x = torch.linspace(-1, 1, 5)
    for _ in range(4):
        elbo.loss_and_grads(model, guide, x)
    started[0] = True  # seen, as a list that the program names
    for _ in range(4):
        elbo.loss_and_grads(model, guide, x)
    assert pyro.get_param_store()["late"].grad is not None


class Hidden:
    """A number where no look at Python finds it."""

    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = number


def test_a_hidden_number_that_changes_is_found_by_the_comparison():
    hidden = Hidden(1.0)
    pair = Pair(lambda mean: mean * hidden.number)
    elbo = graph_elbo()
    captures_of(elbo).check_every = 8
    steps(elbo, pair, data(), count=12)  # the comparison after the 8th use comes with the 16th
    hidden.number = 2.0
    with pytest.warns(UserWarning, match="no longer gives what its captured step gives"):
        steps(elbo, pair, data(), count=8)
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_a_number_that_changes_each_step_ends_capture():
    hidden = Hidden(1.0)

    def grow(mean: Tensor) -> Tensor:
        hidden.number += 1
        return mean * hidden.number

    pair, elbo = Pair(grow), graph_elbo()
    with pytest.warns(UserWarning, match="no longer gives"):
        steps(elbo, pair, data(), count=12)
    assert "changed unseen" in captures_of(elbo).reason


@pytest.mark.parametrize("kind", ["closure", "attribute", "list", "dict"])
def test_a_number_that_python_shows_is_seen_at_once(kind: str) -> None:
    number, box, table = 1.0, [1.0], {"number": 1.0}

    def change(mean: Tensor) -> Tensor:
        return mean * {"closure": number, "attribute": pair.number, "list": box[0], "dict": table["number"]}[kind]

    pair = Pair(change)
    pair.number = 1.0  # type: ignore[attr-defined]
    elbo = graph_elbo()
    steps(elbo, pair, data())
    number, box[0], table["number"], pair.number = 3.0, 3.0, 3.0, 3.0  # type: ignore[attr-defined]
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mean: mean if mean.sum() > 0 else -mean, "decides in Python by a tensor's value"),
        (lambda mean: mean * float(mean.mean()), "decides in Python by a tensor's value"),
        (lambda mean: mean + torch.from_numpy(mean.detach().numpy() * 0.1), r"\.numpy\(\)"),
        (lambda mean: mean + random.random(), "random numbers from NumPy or Python"),
        (lambda mean: mean + float(np.random.rand()), "random numbers from NumPy or Python"),  # noqa: NPY002
        (lambda mean: mean * (mean[mean > 0].numel() + 1), "shape of a tensor depends on values"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly(change: Callable[[Tensor], Tensor], reason: str) -> None:
    elbo, pair = graph_elbo(), Pair(change)
    with pytest.warns(UserWarning, match=reason) as caught:
        steps(elbo, pair, data())
    assert sum("compile" in str(each.message) for each in caught) == 1
    assert captures_of(elbo).count == 0
    assert captures_of(elbo).reason
    assert elbo.loss_and_grads(pair.model, pair.guide, data()) != 0


def test_a_draws_value_in_python_is_refused():
    def guide() -> None:
        if pyro.sample("a", dist.Bernoulli(logits=pyro.param("a_logit", torch.tensor(0.2)))).item() > 0:
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_logit", torch.tensor(0.1))))

    def model() -> None:
        if pyro.sample("a", dist.Bernoulli(0.5)).item() > 0:
            pyro.sample("b", dist.Bernoulli(0.3))

    elbo = TraceELBO("reinforce", compile="graph")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            elbo.loss_and_grads(model, guide)
    assert sum("cannot be captured" in str(each.message) for each in caught) == 1


def test_a_value_read_from_outside_data_holds_while_it_is_not_written():
    threshold = torch.tensor(1.0)
    pair = Pair(lambda mean: mean * threshold.item())
    elbo = graph_elbo()
    steps(elbo, pair, data(), count=5)
    assert captures_of(elbo).count == 1
    threshold.fill_(2.0)
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_arguments_that_are_no_tensors():
    def model(x: Tensor, options: dict[str, Any], factor: int) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (options["weight"] * factor * x).sum())

    def guide(x: Tensor, options: dict[str, Any], factor: int) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for weight in (0.1, 0.2, 0.3, 0.4):
        for factor in (1, 2):
            assert same_as_eager(elbo, model, guide, data(), {"weight": weight}, factor)
    assert captures_of(elbo).count == 2  # floats are a graph's inputs, other numbers choose it


def test_a_float_that_decides_is_a_part_of_the_key():
    def model(x: Tensor, weight: float) -> None:
        Pair.model(pair, x)
        if weight > 0.5:
            pyro.factor("more", x.sum() * weight)

    def guide(x: Tensor, weight: float) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for _ in range(4):
        for weight in (0.4, 0.6):
            assert same_as_eager(elbo, model, guide, data(), weight)
    assert captures_of(elbo).count == 2


def test_numpy_arguments_run_eagerly():
    elbo, pair = graph_elbo(), Pair()
    with pytest.warns(UserWarning, match="give a tensor"):
        elbo.loss_and_grads(pair.model, pair.guide, data(), np.ones(3))


def test_the_same_tensor_twice_is_two_arguments():
    def model(x: Tensor, y: Tensor) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (x - y).square().sum())

    def guide(x: Tensor, y: Tensor) -> None:
        Pair.guide(pair, x)

    pair, elbo, x = Pair(), graph_elbo(), data()
    for _ in range(3):
        assert same_as_eager(elbo, model, guide, x, x)
    assert same_as_eager(elbo, model, guide, x, 2 * x)


def test_an_argument_that_the_program_also_closes_over():
    x = data()

    def model(y: Tensor) -> None:
        Pair.model(pair, x)
        pyro.factor("more", (x - y).square().sum())

    def guide(y: Tensor) -> None:
        Pair.guide(pair, x)

    pair, elbo = Pair(), graph_elbo()
    for _ in range(3):
        assert same_as_eager(elbo, model, guide, x)
    assert same_as_eager(elbo, model, guide, x + 1)


def test_the_gradient_of_an_argument():
    elbo, pair, weight = graph_elbo(), Pair(), torch.tensor(0.7, requires_grad=True)
    for _ in range(5):
        found = []
        for each in (elbo, TraceELBO("rloo", num_particles=2)):
            each.loss(pair.model, pair.guide, data())
            weight.grad = None
            torch.manual_seed(2)
            loss = each.loss_and_grads(pair.model, pair.guide, data() * weight)
            found.append((loss, weight.grad))
        assert found[0] == found[1]
    assert captures_of(elbo).count == 1


def test_differentiable_loss_and_module():
    elbo, pair = graph_elbo(), Pair()
    module = elbo(pair.model, pair.guide)
    for _ in range(4):
        torch.manual_seed(4)
        loss = 2 * module(data())
        pair.encoder.weight.grad = None
        loss.backward()
        got = pair.encoder.weight.grad
        torch.manual_seed(4)
        expected = 2 * TraceELBO("rloo", num_particles=2).differentiable_loss(pair.model, pair.guide, data())
        pair.encoder.weight.grad = None
        expected.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(got, pair.encoder.weight.grad)
    assert captures_of(elbo).count == 1


def test_gradients_add_up():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data(), count=6)
    whole = pair.encoder.weight.grad
    pair.encoder.weight.grad = None
    assert whole is not None
    before = whole.clone()
    torch.manual_seed(0)
    steps(elbo, pair, data(), count=1)
    assert pair.encoder.weight.grad is not None
    once = pair.encoder.weight.grad.clone()
    torch.manual_seed(0)
    steps(elbo, pair, data(), count=1)
    assert torch.equal(pair.encoder.weight.grad, 2 * once)
    assert torch.equal(whole, before)


def test_a_loss_that_is_not_finite_is_an_error_and_teaches_nothing():
    pair = Pair()
    elbo = TraceELBO("nvil", compile="graph")
    steps(elbo, pair, data(), count=6)
    state = copy.deepcopy({k: v for k, v in elbo.state_dict().items() if torch.is_tensor(v)})
    bad = data()
    bad[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="'z' of the guide"):
        elbo.loss_and_grads(pair.model, pair.guide, bad)
    assert all(torch.equal(value, elbo.state_dict()[key]) for key, value in state.items())


def test_a_handler_around_the_step_is_obeyed():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    with pytest.warns(UserWarning, match="handler is around"), poutine.scale(scale=2.0):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pyro_discrete.compile.MOST_CAPTURES", 2)
    elbo, pair = graph_elbo(), Pair()
    for size in (3, 4):
        steps(elbo, pair, data(size), count=2)
    with pytest.warns(UserWarning, match="captured already"):
        steps(elbo, pair, data(5), count=2)
    assert captures_of(elbo).count == 2


def test_another_pair_has_graphs_of_its_own():
    elbo, first, second = graph_elbo(), Pair(), Pair(torch.tanh)
    for pair in (first, second, first):
        for _ in range(4):
            assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_copies_and_saved_state():
    pair, plain = Pair(), graph_elbo()
    elbo = TraceELBO("nvil", compile="graph")
    steps(elbo, pair, data())
    steps(plain, pair, data())
    for copied in (copy.deepcopy(elbo), pickle.loads(pickle.dumps(plain))):
        assert captures_of(copied).count == 0
        assert captures_of(copied).mode == "graph"
        steps(copied, pair, data())
        assert captures_of(copied).count == 1
    fresh = TraceELBO("nvil", compile="graph")
    fresh.load_state_dict(elbo.state_dict())
    steps(elbo, pair, data())
    elbo.load_state_dict(fresh.state_dict())  # into a captured one: its graph reads what was loaded
    torch.manual_seed(0)
    expected = fresh.loss_and_grads(pair.model, pair.guide, data())
    torch.manual_seed(0)
    assert elbo.loss_and_grads(pair.model, pair.guide, data()) == expected


def test_says_what_it_holds():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    assert str(elbo.captures) == "1 captured step(s), 1 made so far, run by graph"
    assert TraceELBO("rloo", num_particles=2).captures is None
    with pytest.raises(SettingError, match='"graph"'):
        TraceELBO("rloo", num_particles=2, compile="inductor")  # type: ignore[arg-type]


def test_exact_sums_of_a_program_that_decides_say_that_they_are_not_captured():
    pair, elbo = Pair(lambda mean: mean if mean.sum() > 0 else -mean), TraceELBO("enumerate", compile="graph")
    with pytest.warns(UserWarning, match="exact enumeration: it decides in Python"):
        steps(elbo, pair, data())
    assert captures_of(elbo).count == 0


@pytest.mark.slow
def test_a_compiled_step_has_the_draws_of_the_eager_one():
    """By inductor sums are rounded otherwise; random numbers are the same."""
    results = []
    for compile in (False, True):
        pair, elbo = Pair(), TraceELBO("rloo", num_particles=2, compile=compile)
        for seed in range(8):  # the graph itself runs at the uses 1, 2, 4 ...
            torch.manual_seed(seed)
            step = elbo.gradients(pair.model, pair.guide, data())
            results.append(torch.cat([step.loss.reshape(1), *(g.flatten() for g in _in_order(pair, step))]))
    assert str(elbo.captures) == "1 captured step(s), 1 made so far, run by inductor"
    torch.testing.assert_close(results[:8], results[8:])


def _in_order(pair: Pair, step: StepGradients) -> list[Tensor]:
    found = {id(p): g for p, g in zip(step.parameters, step.gradients, strict=True)}
    return [found[id(p)] for p in [*pair.encoder.parameters(), *pair.decoder.parameters()]]
