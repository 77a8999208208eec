"""`fit`: what it trains, and what it says when something is wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_discrete import FitState, TraceELBO, fit
from pyro_discrete.errors import SettingError
from tests.support.training_pairs import DATA, QUIET, Pair, Streamed, assert_same, run


@pytest.mark.slow
def test_captured_steps_learn_what_eager_ones_do() -> None:
    eager = run("enumerate", (DATA,), steps=30)
    captured = run(lambda: TraceELBO("enumerate", compile=True), (DATA,), steps=30)
    assert captured.loss == pytest.approx(eager.loss, rel=1e-4)


def test_it_is_svi_with_another_optimiser() -> None:
    """With exact sums nothing is random: the same steps as SVI's, up to rounding (the kernels differ)."""
    pair = Pair()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss=TraceELBO("enumerate"))
    losses = [svi.step(DATA) for _ in range(20)]
    expected = {name: p.detach().clone() for name, p in pair.named_parameters()}
    result = run("enumerate", (DATA,), steps=20, log_every=1)
    del expected["encoder.0.bias"]  # its gradient is zero but for rounding, as its output is centred
    assert result.history["loss"].values == pytest.approx(losses, rel=1e-5)
    assert result.parameters.keys() == {f"pair.{name}" for name in [*expected, "encoder.0.bias"]}
    for name, value in expected.items():
        torch.testing.assert_close(result.parameters[f"pair.{name}"].detach(), value, atol=1e-4, rtol=1e-4)


def test_a_fused_optimiser_is_seen_to_train_the_estimator(recwarn: pytest.WarningsRecorder) -> None:
    run(steps=55)
    assert not [warning for warning in recwarn if "no optimiser has" in str(warning.message)]


def test_the_history() -> None:
    result = run(steps=25, validation_data=DATA, validate_every=10)
    assert result.history["step"].values.tolist() == [10, 20, 25]
    assert result.history["validation_step"].values.tolist() == [10, 20]
    assert result.history["validation_loss"].values[-1] == result.validation_loss
    assert result.history["loss"].values[-1] == result.loss
    assert (result.history["ms_per_step"] > 0).all()
    assert result.stopped == "steps"
    assert result.best_loss == result.history["validation_loss"].min()


def test_without_a_checkpoint_the_seed_decides() -> None:
    assert_same(dict(run(steps=12).parameters), dict(run(steps=12).parameters))
    assert not torch.equal(
        run(steps=12).parameters["pair.decoder.weight"], run(steps=12, seed=2).parameters["pair.decoder.weight"]
    )


def test_early_stopping_puts_the_best_parameters_back() -> None:
    seen: list[tuple[float, dict[str, Tensor]]] = []

    class Look:
        every = 1

        def __call__(self, state: FitState) -> None:
            assert state.validation_loss is not None
            seen.append((state.validation_loss, {n: p.detach().clone() for n, p in state.parameters.items()}))

    result = run(
        "enumerate",
        optimizer="sgd",
        lr=0.2,
        steps=500,
        validation_data=DATA,
        validate_every=1,
        patience=3,
        callbacks=[Look()],
    )
    assert result.stopped == "early stopping"
    assert result.best_step is not None
    assert result.step == result.best_step + 3
    loss, parameters = min(seen, key=lambda pair: pair[0])
    assert loss == result.best_loss
    assert_same(parameters, {n: p.detach() for n, p in result.parameters.items()})


def test_a_callback_may_stop_and_change_rates() -> None:
    def callback(state: FitState) -> None:
        assert state.optimizer is not None
        state.optimizer.param_groups[0]["lr"] = 0.5
        if state.step == 20:
            state.stop("enough")

    result = run(steps=100, callbacks=[callback])
    assert (result.step, result.stopped) == (20, "enough")
    assert result.history["lr"].values.tolist() == pytest.approx([0.01, 0.5])


def test_rates_by_name() -> None:
    result = run(steps=3, rates={"estimators.*": 0.1, "pair.decoder.*": {"lr": 0.0}})
    rates = {id(p): group["lr"] for group in result.optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for n, p in result.parameters.items() if n.startswith("estimators.z.")} == {0.1}
    assert {rates[id(p)] for n, p in result.parameters.items() if n.startswith("pair.encoder.")} == {0.01}
    torch.testing.assert_close(result.parameters["pair.decoder.weight"], Pair().decoder.weight, atol=0, rtol=0)
    with pytest.raises(SettingError, match=r"'pair.dekoder' in rates matches no parameter"):
        run(steps=3, rates={"pair.dekoder": 0.1})


def test_optimisers_of_every_kind() -> None:
    assert run(steps=2, optimizer=torch.optim.RMSprop).step == 2
    partly = partial(torch.optim.AdamW, weight_decay=0.1)
    assert run(steps=2, optimizer=partly).optimizer.defaults["weight_decay"] == 0.1
    assert run(steps=2, optimizer="AdamW").optimizer.defaults["fused"] is True
    with pytest.raises(SettingError, match=r"no torch optimiser named 'adamm'.*'adam'"):
        run(steps=2, optimizer="adamm")
    with pytest.raises(SettingError, match="could not be made"):
        run(steps=2, optimizer=partial(torch.optim.Adam, momentum=1))
    pyro.clear_param_store()
    pair = Pair()
    made = torch.optim.SGD(pair.decoder.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"does not hold .*pair\.encoder\.0\.weight"):
        result = fit(pair.model, pair.guide, DATA, "reinforce", made, steps=2, **QUIET)
    assert result.optimizer is made
    torch.testing.assert_close(pair.encoder[0].weight, Pair().encoder[0].weight, atol=0, rtol=0)
    with pytest.raises(SettingError, match="made already"):
        run(steps=2, optimizer=made)


def test_clipping_bounds_the_step() -> None:
    before = {n: p.detach().clone() for n, p in Pair().named_parameters()}
    result = run("reinforce", steps=1, optimizer="sgd", lr=1.0, clip_norm=0.01)
    moved = [result.parameters[f"pair.{n}"].detach() - value for n, value in before.items()]
    assert float(torch.stack([m.norm() for m in moved]).norm()) == pytest.approx(0.01, rel=1e-3)
    result = run("reinforce", steps=1, optimizer="sgd", lr=1.0, clip_value=0.001)
    moved = [result.parameters[f"pair.{n}"].detach() - value for n, value in before.items()]
    assert max(float(m.abs().max()) for m in moved) == pytest.approx(0.001, rel=1e-3)


def test_a_parameter_that_comes_later_is_trained() -> None:
    steps = 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        nonlocal steps
        steps += 1
        logits = pyro.param("first", torch.tensor(0.0))
        if steps > 8:
            logits = logits + pyro.param("second", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    result = fit(model, guide, DATA, "reinforce", steps=20, **QUIET)
    assert result.parameters.keys() == {"first", "second"}
    assert float(result.parameters["second"].detach()) != 0.0


def test_data_of_every_kind() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z * pyro.param("slope", torch.tensor(0.0)) + y, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("at", torch.tensor(0.0)) * x))

    x, y = DATA[:, 0], DATA[:, 1]
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    found = [
        fit(model, guide, data, "enumerate", steps=4, **QUIET, **more).loss
        for data, more in (
            ((x, y), {"batch_size": 20, "shuffle": False}),
            ({"y": y, "x": x}, {"batch_size": 20, "shuffle": False}),
            (batches, {}),
            (DataLoader(TensorDataset(x, y), 20), {}),
        )
        if pyro.clear_param_store() is None
    ]
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)
    assert fit(lambda: model(x, y), lambda: guide(x, y), None, "enumerate", steps=2, **QUIET).step == 2
    assert fit(model, guide, batches, "enumerate", epochs=3, **QUIET).step == 6
    for wrong, message in (
        ({"data": iter(batches)}, "iterator"),
        ({"data": "x"}, "data is str"),
        ({"data": (x, y[:3]), "batch_size": 2}, r"lengths \[3, 40\]"),
        ({"data": (x, y), "batch_size": 41}, "1 to 40"),
        ({"data": batches, "batch_size": 2}, "makes its batches by itself"),
    ):
        with pytest.raises(SettingError, match=message):
            fit(model, guide, elbo="enumerate", steps=2, **QUIET, **wrong)


def test_validation_changes_nothing() -> None:
    plain = run(steps=20)
    watched = run(steps=20, validation_data=DATA, validate_every=3)
    assert_same(dict(plain.parameters), dict(watched.parameters))
    again = run(steps=3, lr=0.0, validation_data=DATA, validate_every=1, optimizer="sgd", batch_size=40, shuffle=False)
    losses = again.history["validation_loss"].values
    assert losses[1:] == pytest.approx([losses[1]] * 2, rel=0.2)  # the buffer moves, the random numbers are the same


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "either steps or epochs"),
        ({"steps": 2, "epochs": 2}, "either steps or epochs"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2, "log_every": 0}, "log_every=0"),
        ({"steps": 2, "patience": 0}, "patience=0"),
        ({"epochs": 2, "data": Streamed()}, "do not say how many"),
        ({"steps": 2, "validation_data": Streamed(), "validate_every": 1}, "has no end"),
    ],
)
def test_settings_that_contradict_each_other(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run(**wrong)
