"""`fit` with settings and data that mean nothing: one line that names them, and no step is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_discrete import (
    NVIL,
    AutoDiscreteMeanField,
    GumbelSoftmax,
    Reinforce,
    TraceELBO,
    TraceExpectation,
    TraceIWELBO,
    fit,
    relax,
)
from pyro_discrete.errors import DiscreteInferenceError, SettingError
from tests.support.training_pairs import DATA, QUIET, Pair, run

WRONG: list[tuple[dict[str, Any], str]] = [
    *[({name: value}, rf"{name}=.*whole number of at least 1") for name in ("steps", "log_every", "validate_every",
      "checkpoint_every", "patience", "batch_size") for value in (2.5, 0, -3, "3", True, math.nan)],
    *[({name: value}, rf"{name}=.*given; a (rate|positive number|number)") for name in ("lr", "clip_norm", "clip_value",
      "min_delta") for value in (-1.0, math.nan, "0.1", -math.inf, [0.1])],
    ({"lr": math.inf}, "lr=inf"),
    ({"lr": torch.tensor(-0.1)}, "lr="),
    ({"clip_norm": 0.0}, "clip_norm=0.0"),
    ({"rates": 0.1}, "rates=0.1 given; a dict"),
    ({"rates": {"*": -0.1}}, r"rates\['\*'\]=-0.1"),
    ({"rates": {"*": {"lr": math.nan}}}, r"rates\['\*'\]"),
    ({"rates": {"*": {"weight_deacy": 0.1}}}, r"'weight_deacy', which Adam does not. Did you mean 'weight_decay'"),
    ({"seed": -1}, "seed=-1 given; a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, "seed=4294967296"),
    ({"seed": 1e23}, r"seed=1e\+23"),
    ({"seed": 10**23}, "seed=100000000000000000000000"),
    ({"device": "gpu0"}, "device='gpu0' given; a torch device of this machine"),
    ({"resume": "yes"}, "resume='yes' given; True, False or 'auto'"),
    ({"checkpoint": 3}, "checkpoint=3 given; the path"),
    ({"callbacks": print}, "callbacks=<built-in function print> given; a list"),
    ({"callbacks": ["loss"]}, "callbacks has 'loss'; functions"),
    ({"transform": 2.0}, "transform=2.0"),
    ({"scheduler": "cosine"}, "scheduler='cosine'"),
    ({"optimizer": 3}, "optimizer=3 given"),
    ({"optimizer": None}, "optimizer=None given"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_settings_out_of_their_range(wrong: dict[str, Any], words: str) -> None:
    pyro.clear_param_store()
    pair = Pair()
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    with pytest.raises(SettingError, match=words) as caught:
        fit(pair.model, pair.guide, DATA, **{"steps": 2, **QUIET, **wrong})
    assert len(str(caught.value)) < 400
    assert all(torch.equal(p, before[name]) for name, p in pair.named_parameters())


class Every:
    every = 2.5

    def __call__(self, state: Any) -> None: ...


def test_a_callback_that_is_due_at_no_step() -> None:
    with pytest.raises(SettingError, match=r"with every=2.5; .* whole number"):
        run(steps=2, callbacks=[Every()])


@pytest.mark.parametrize("call", [lambda: run(steps=2, batchsize=3), lambda: run(steps=2, learning_rate=0.1)])
def test_a_name_that_fit_does_not_have(call: Any) -> None:
    with pytest.raises(
        SettingError, match=r"fit has no argument '(batchsize'. Did you mean 'batch_size|learning_rate')"
    ):
        call()


@pytest.mark.parametrize("objective", [TraceELBO, TraceIWELBO, TraceExpectation])
def test_a_name_that_an_objective_does_not_have(objective: Any) -> None:
    name = objective.__name__
    with pytest.raises(SettingError, match=rf"{name} has no argument 'num_particle'. Did you mean 'num_particles'"):
        objective(num_particle=2)
    with pytest.raises(SettingError, match=rf"{name} has no argument 'kl_wieght'"):
        objective("rloo", num_particles=2, kl_wieght=2)
    with pytest.raises(SettingError, match=rf"{name}: too many positional arguments; by place it takes estimator"):
        objective("rloo", 2)
    assert objective("reinforce", num_particles=2).num_particles == 2


@pytest.mark.parametrize(
    ("elbo", "words"),
    [
        (torch.zeros(40), r"elbo is a tensor of shape \(40,\): data\?.*data=\(X, y\)"),
        (np.zeros((40, 3)), r"elbo is a NumPy array of shape \(40, 3\)"),
        (TraceELBO, r"elbo=TraceELBO is a class.*TraceELBO\(\)"),
        (Trace_ELBO(), "Pyro's Trace_ELBO"),
        (list(range(500)), r"estimator=\[0, 1, 2.* \.\.\. given"),
        (3, "estimator=3 given"),
    ],
)
def test_what_is_no_objective(elbo: Any, words: str) -> None:
    pair = Pair()
    with pytest.raises(SettingError, match=words) as caught:
        fit(pair.model, pair.guide, DATA, elbo, steps=2, **QUIET)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NVIL(hiden=3), "NVIL has no argument 'hiden'. Did you mean 'hidden'"),
        (
            lambda: GumbelSoftmax(temprature=0.5),
            "GumbelSoftmax has no argument 'temprature'. Did you mean",
        ),
        (lambda: Reinforce(baseline=True), "Reinforce has no argument 'baseline'"),
        (lambda: relax(temprature=0.5), "relax has no argument 'temprature'. Did you mean 'temperature'"),
        (lambda: AutoDiscreteMeanField(scalar, amortise=True), "no argument 'amortise'. Did you mean 'amortize'"),
        (lambda: AutoDiscreteMeanField(None), "model=None given"),
        (lambda: AutoDiscreteMeanField(scalar, init_scale="a"), "init_scale='a' given"),
        (lambda: AutoDiscreteMeanField(scalar, amortize=True, input=DATA), r"input=a tensor of shape \(40, 3\) given"),
        (lambda: TraceELBO(num_particles=DATA), r"num_particles=a tensor of shape \(40, 3\) given"),
        (lambda: TraceELBO(compile=DATA), r"compile=a tensor of shape"),
        (lambda: TraceELBO(max_plate_nesting="2"), "max_plate_nesting='2' given"),
        (lambda: TraceELBO(kl_weight=[1.0] * 500), r"kl_weight=\[1.0, 1.0, .* \.\.\. given"),
        (lambda: TraceIWELBO("vimco", num_outer_samples=DATA), "num_outer_samples=a tensor of shape"),
    ],
)
def test_settings_of_other_things(call: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": lambda optimizer: 3}, "scheduler= made 3; one of torch.optim.lr_scheduler"),
        ({"transform": lambda x: None}, "transform returned None"),
        ({"validation_data": [], "validate_every": 1}, "validation_data gives no batch"),
        ({"checkpoint": "."}, r"checkpoint=\. is a folder"),
        ({"data": (DATA, DATA)}, "The model does not take the arguments of this call: too many positional"),
        ({"data": None}, "The model does not take the arguments of this call: missing a required argument: 'x'"),
        ({"data": {"y": DATA}}, "The model does not take the arguments of this call: .*'(x|y)'"),
    ],
)
def test_what_is_found_out_at_the_first_step(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DiscreteInferenceError, match=words):
        run(steps=3, **settings)


@pytest.mark.parametrize("estimator", ["nvil", "enumerate", "auto"])
def test_model_and_guide_swapped(estimator: str) -> None:
    pair = Pair()
    with pytest.raises(SettingError, match=r"The guide has observed sites \('x'\) and the model has none.*swapped"):
        fit(pair.guide, pair.model, DATA, estimator, steps=2, **QUIET)


def test_gradients_that_are_off() -> None:
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(SettingError, match="gradients off"):
            run(steps=2)


def scalar(x: Any) -> None:
    """A model of any argument."""
    seen.append(tuple(x.shape))
    x = torch.as_tensor(x).float()
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
    pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(x.dim()), obs=x)


def scalar_guide(x: Any) -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.0))))


seen: list[tuple[int, ...]] = []
ARRAY = np.arange(18, dtype="float32").reshape(6, 3)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("form", ["array", "transposed", "read-only", "reversed", "tuple", "dict", "integers"])
def test_an_array_is_what_a_tensor_is(form: str, size: int | None) -> None:
    array = {"transposed": ARRAY.T.copy().T, "reversed": ARRAY[::-1], "integers": ARRAY.astype("int64")}.get(
        form, ARRAY
    )
    if form == "read-only":
        array = array.copy()
        array.flags.writeable = False
    pack = {"tuple": lambda x: (x,), "dict": lambda x: {"x": x}}.get(form, lambda x: x)
    losses = []
    for data in (torch.tensor(array.copy()), array):
        seen.clear()
        pyro.clear_param_store()
        losses.append(
            fit(scalar, scalar_guide, pack(data), "reinforce", steps=3, batch_size=size, seed=0, **QUIET).loss
        )
        assert set(seen) == {(size or 6, 3)}
    assert losses[0] == losses[1]


def test_arrays_as_batches_and_for_validation() -> None:
    seen.clear()
    fit(
        scalar,
        scalar_guide,
        [ARRAY[:2], ARRAY[2:]],
        "reinforce",
        steps=2,
        validation_data=ARRAY,
        validate_every=1,
        **QUIET,
    )
    assert set(seen) == {(2, 3), (4, 3), (6, 3)}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([0.3, 1.2], r"one is 0.3\. Numbers in a list.*torch.tensor\(data\)"),
        ({"x": DATA, "y": [1, 2]}, r"data\['y'\] is \[1, 2\]; tensors"),
        ((DATA, 3.0), r"data\[1\] is 3.0; tensors"),
        (np.array(["a", "b"]), "array of dtype <U1; numbers"),
        (np.array([None, 1]), "array of dtype object; numbers"),
        (["x", "y"], "one is 'x'"),
    ],
)
def test_data_that_are_no_batches(data: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        run(data=data, steps=2)


OPTIMISERS: dict[str, Any] = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05, "betas": (0.9, 0.99)}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.05, "momentum": 0.5}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_of_pyro(name: str) -> None:
    optimizer = run(steps=30, optimizer=OPTIMISERS[name](), lr=None).optimizer
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ("LBFGS", "LBFGS evaluates the loss by itself"),
        (torch.optim.LBFGS, "LBFGS evaluates the loss by itself"),
        (lambda groups, **_: torch.optim.LBFGS([p for g in groups for p in g["params"]]), "LBFGS evaluates"),
        ("SparseAdam", "SparseAdam could not make a step.*dense gradients"),
        (lambda groups, **_: None, "made None; a torch.optim.Optimizer"),
        (
            pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}),
            "schedule",
        ),
        (pyro.optim.Adam(lambda name: {"lr": 0.1}), "settings depend on the parameter"),
        (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), "clips gradients.*clip_norm"),
        (pyro.optim.Adam({"learning_rate": 0.1}), "could not be made"),
    ],
)
def test_optimisers_that_cannot_be_had(optimizer: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        run(steps=2, optimizer=optimizer, lr=None)


def test_sparse_gradients_under_a_dense_optimiser() -> None:
    table = nn.Embedding(5, 1, sparse=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("table", table)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=table(torch.arange(5))[:, 0]))

    with pytest.raises(SettingError, match=r"Adam could not make a step.*[Ss]parse"):
        fit(model, guide, torch.randn(5), "enumerate", steps=2, **QUIET)
    assert fit(model, guide, torch.randn(5), "enumerate", "SparseAdam", steps=2, **QUIET).step == 2
