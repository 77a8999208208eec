"""What changes between steps is captured anew: a graph is never silently wrong."""

from __future__ import annotations

import os
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_discrete.capture.captured_step import Call
from pyro_discrete.capture.watch import Watch
from pyro_discrete.programs.pair import Pair as Arguments
from tests.support.captured_pairs import Pair, captures_of, data, graph_elbo, same_as_eager, steps


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
    """A number."""

    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = number


def test_a_hidden_number_that_changes_is_found_by_the_comparison(monkeypatch):
    monkeypatch.setattr(Watch, "holds", lambda self: True)
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


class Numbers:
    number = 1.0


class Slots:
    __slots__ = ("number",)


def labelled() -> None: ...


@pytest.mark.parametrize("kind", ["class", "module", "function", "slot", "array", "private", "method", "tensor"])
def test_a_number_is_seen_at_once_wherever_python_keeps_it(kind: str) -> None:
    module, slots, array, tensor = types.ModuleType("settings"), Slots(), np.array([1.0]), torch.zeros(())
    places = {"class": Numbers, "module": module, "function": labelled, "slot": slots, "tensor": tensor}
    for place in places.values():
        place.number = 1.0

    class Private(nn.Module):
        _number = 1.0

        def forward(self, mean: Tensor) -> Tensor:
            return mean * self._number

    private = Private()
    change = {
        "class": lambda mean: mean * Numbers.number,
        "module": lambda mean: mean * module.number,
        "function": lambda mean: mean * labelled.number,
        "slot": lambda mean: mean * slots.number,
        "tensor": lambda mean: mean * tensor.number,
        "array": lambda mean: mean * float(array[0]),
        "private": private,
        "method": private,
    }[kind]
    elbo, pair = graph_elbo(), Pair(change)
    steps(elbo, pair, data(), count=6)  # five by the graph: the next comparison is at the eighth
    assert captures_of(elbo).count == 1
    if kind == "method":
        Private.forward = lambda self, mean: mean * 3.0  # type: ignore[method-assign]
    elif kind == "array":
        array[0] = 3.0
    else:
        setattr(places.get(kind, private), "_number" if kind == "private" else "number", 3.0)
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_a_number_from_the_environment_is_not_captured(monkeypatch):
    monkeypatch.setenv("NUMBER", "1.0")
    pair, elbo = Pair(lambda mean: mean * float(os.environ["NUMBER"])), graph_elbo()
    with pytest.warns(UserWarning, match="cannot be captured.*module os"):
        steps(elbo, pair, data(), count=6)
    monkeypatch.setenv("NUMBER", "3.0")
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_a_value_read_from_outside_data_holds_while_it_is_not_written():
    threshold = torch.tensor(1.0)
    pair = Pair(lambda mean: mean * threshold.item())
    elbo = graph_elbo()
    steps(elbo, pair, data(), count=5)
    assert captures_of(elbo).count == 1
    threshold.fill_(2.0)
    for _ in range(3):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_a_changed_plate_size_is_captured_anew():
    """Of a subsampled plate, whose sizes the program takes from Python: no argument changes its shape."""
    sizes = {"whole": 12, "part": 4}
    x = torch.linspace(-1, 1, 12)

    def model() -> None:
        with pyro.plate("data", sizes["whole"], subsample_size=sizes["part"]) as i:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)).expand([len(i)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide() -> None:
        with pyro.plate("data", sizes["whole"], subsample_size=sizes["part"]) as i:
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(12))[i]))

    elbo = graph_elbo()
    for changed in ({"whole": 12, "part": 4}, {"part": 6}, {"whole": 9}):
        sizes.update(changed)
        for _ in range(4):
            assert same_as_eager(elbo, model, guide)
    assert captures_of(elbo).made == 3


def test_another_default_dtype_is_another_kind_of_call():
    elbo = graph_elbo()
    pair = Pair(lambda mean: mean * torch.ones(()).to(mean.dtype) + torch.tensor(0.1).sin())
    for _ in range(4):
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            assert same_as_eager(elbo, pair.model, pair.guide, data().float())
    assert captures_of(elbo).count == 2


def test_a_graph_is_of_one_device():
    """No step runs on the second device: what tells calls apart is looked at."""
    pair = Pair()
    calls = [Arguments(pair.model, pair.guide, (data().to(device),), {}) for device in ("cpu", "meta", "cpu")]
    keys = [Call(arguments, register=True, float_dtype=None).key for arguments in calls]
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]
