"""Checkpoints of `fit`: a run that was broken off goes on bit for bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import NVIL, FitState, TraceELBO, fit
from pyro_discrete.checkpoints import load_checkpoint, save_checkpoint
from pyro_discrete.errors import CheckpointError, NonFiniteError, SettingError
from pyro_discrete.interrupts import Interrupted
from tests.support.training_pairs import DATA, QUIET, Streamed, assert_same, loader, noisy, run

RUNS: dict[str, dict[str, Any]] = {
    "nvil": {"elbo": "nvil", "transform": noisy},
    "its own optimiser": {"elbo": lambda: TraceELBO(NVIL(learning_rate=0.01))},
    "particles": {"elbo": lambda: TraceELBO("rloo", num_particles=2, vectorize_particles=False), "clip_norm": 1.0},
    "schedule": {
        "elbo": "disarm",
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60),
        "clip_value": 0.5,
        "optimizer": "sgd",
    },
    "validation": {
        "elbo": "gumbel_softmax",
        "validation_data": DATA[:10],
        "validate_every": 7,
        "patience": 50,
        "scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    },
    "loader": {"elbo": "nvil", "data": lambda: loader(None)},
    "seeded loader": {"elbo": "nvil", "data": lambda: loader(5), "transform": noisy},
    "graph": {"elbo": lambda: TraceELBO("nvil", compile="graph"), "transform": noisy},
    "stream": {"elbo": "reinforce", "data": Streamed},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    settings = dict(RUNS[name])
    data = settings.pop("data", lambda: DATA)
    run(data=data(), steps=47, checkpoint=tmp_path / "whole.pt", **settings)
    run(data=data(), steps=23, checkpoint=tmp_path / "halves.pt", **settings)
    pyro.set_rng_seed(99)  # what happens in between has no influence
    resumed = run(data=data(), steps=47, checkpoint=tmp_path / "halves.pt", resume=True, **settings)
    assert resumed.step == 47
    assert_same(load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "halves.pt"))


def test_an_interrupt_waits_for_the_step_and_saves(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background

    class Interrupting:
        every = 13

        def __call__(self, state: FitState) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at step 13 by SIGINT") as caught:
        run(steps=40, checkpoint=tmp_path / "run.pt", callbacks=[Interrupting()])
    assert caught.value.result.step == 13
    assert load_checkpoint(tmp_path / "run.pt")["step"] == 13
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(steps=40, checkpoint=tmp_path / "run.pt", resume="auto", callbacks=[print])
    run(steps=40, checkpoint=tmp_path / "whole.pt", callbacks=[print])
    assert_same(load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "run.pt"))


def test_a_callback_with_state_is_saved(tmp_path: Path) -> None:
    class Counting:
        count = 0

        def __call__(self, state: FitState) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    run(steps=20, checkpoint=tmp_path / "run.pt", callbacks=[Counting()])
    counting = Counting()
    run(steps=50, checkpoint=tmp_path / "run.pt", resume=True, callbacks=[counting])
    assert counting.count == 5


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint .*run\.pt"):
        run(steps=2, checkpoint=path, resume=True)
    with pytest.raises(SettingError, match="give checkpoint"):
        run(steps=2, resume=True)
    run(steps=2, checkpoint=path, metadata={"of": "a test"})
    assert load_checkpoint(path)["metadata"] == {"of": "a test"}
    with pytest.raises(SettingError, match="exists already"):
        run(steps=2, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"parameters differ from .* meets: estimators.z.network.0.bias"):
        run("reinforce", steps=4, checkpoint=path, resume=True)
    whole = path.read_bytes()
    for content in (b"", b"neither torch nor zip", whole[:100]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            run(steps=4, checkpoint=path, resume=True)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="its format is 99"):
        run(steps=4, checkpoint=path, resume=True)


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "c.pt", {"step": 2, "unsaveable": lambda: None})
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run(steps=60, lr=1e37, optimizer="sgd", checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    assert "keeps the last checkpoint" in caught.value.__notes__[0]
    assert load_checkpoint(tmp_path / "run.pt")["step"] >= 1


def test_the_optimiser_finds_its_parameters_by_their_names(tmp_path: Path) -> None:
    """The first step after resuming meets them in another order; they are of one shape, and sums of two the same."""
    swapped = [False]

    def model(x: torch.Tensor) -> None:
        a, b = (
            pyro.param(name, lambda value=value: torch.tensor([value, 1.0])) for name, value in (("a", 0.3), ("b", 2))
        )
        total = b.square() + a.sin() if swapped[0] else a.sin() + b.square()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0).to_event(1), obs=x[:, :2])

    def fitted(steps: int, file: str, **settings: Any) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
        pyro.clear_param_store()
        result = fit(model, lambda x: None, DATA, "enumerate", steps=steps, checkpoint=tmp_path / file, **settings)
        names = load_checkpoint(tmp_path / file)["optimizer"]["names"]
        return {name: value.detach().clone() for name, value in result.parameters.items()}, names

    settings: dict[str, Any] = {**QUIET, "lr": 0.05, "batch_size": 8, "seed": 1}
    whole, order = fitted(20, "whole.pt", **settings)
    fitted(9, "halves.pt", **settings)
    swapped[0] = True
    resumed, other = fitted(20, "halves.pt", resume=True, **settings)
    assert order != other == [order[0][::-1]]
    assert_same({name: resumed[name] for name in whole}, whole)


class Slowing(torch.optim.Adam):
    """One that keeps more than torch's in its state."""

    taken = 0

    def step(self, closure: Any = None) -> Any:
        self.taken += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.taken
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "taken"})


def test_what_an_optimiser_keeps_beside_torchs_state_is_given_back(tmp_path: Path) -> None:
    whole = run(steps=9, optimizer=Slowing, lr=None)
    run(steps=5, optimizer=Slowing, lr=None, checkpoint=tmp_path / "run.pt")
    resumed = run(steps=9, optimizer=Slowing, lr=None, checkpoint=tmp_path / "run.pt", resume=True)
    assert_same(dict(resumed.parameters), dict(whole.parameters))


def test_an_optimiser_that_names_its_parameters_names_them_as_it_holds_them(tmp_path: Path) -> None:
    swapped = [False]

    def model() -> None:
        a, b = pyro.param("a", lambda: torch.tensor(0.3)), pyro.param("b", lambda: torch.tensor(2.0))
        pyro.sample("x", dist.Normal(b * a.exp() if swapped[0] else a.exp() * b, 1.0), obs=torch.tensor(1.0))

    def naming(groups: Any) -> torch.optim.Optimizer:
        names = {id(value): name for name, value in pyro.get_param_store().named_parameters()}
        return torch.optim.Adam([(names[id(p)], p) for group in groups for p in group["params"]])

    def fitted(steps: int, **settings: Any) -> list[str]:
        pyro.clear_param_store()
        file = tmp_path / "run.pt"
        found = fit(model, lambda: None, elbo="enumerate", optimizer=naming, steps=steps, checkpoint=file, **settings)
        (group,) = found.optimizer.param_groups
        held = {id(value): name for name, value in found.parameters.items()}
        assert group["param_names"] == [held[id(p)] for p in group["params"]]
        return group["param_names"]

    order = fitted(2, progress=False)
    swapped[0] = True
    assert fitted(4, progress=False, resume=True) == order[::-1]


def test_an_optimiser_that_is_given_made_may_hold_what_comes_later() -> None:
    class Growing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.tensor(value)) for value in (0.3, 0.5))

        def forward(self, x: torch.Tensor) -> None:
            loc = self.a + self.b if x[0] > 0 else self.a
            pyro.sample("x", dist.Normal(loc, 1.0).expand([2]).to_event(1), obs=x)

    model, data = Growing(), [torch.zeros(2), torch.ones(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = fit(model, lambda x: None, data, "enumerate", optimizer, steps=2, **QUIET)
    a = 0.3 - 0.1 * 2 * 0.3
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]
    assert float(found.parameters["model.a"].detach()) == pytest.approx(a - 0.2 * (a + 0.5 - 1))
    assert float(found.parameters["model.b"].detach()) == pytest.approx(0.5 - 0.2 * (a + 0.5 - 1))


def test_an_optimiser_of_other_groups_is_refused(tmp_path: Path) -> None:
    run(steps=3, checkpoint=tmp_path / "run.pt", rates={"pair.decoder.*": 0.1})
    with pytest.raises(CheckpointError, match=r"its groups have other parameters: pair\.decoder\.bias"):
        run(steps=6, checkpoint=tmp_path / "run.pt", resume=True, rates={"pair.encoder.*": 0.1})
