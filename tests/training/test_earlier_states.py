"""What an earlier version saved is read, and training goes on from it as it would have gone on then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.earlier_states import BROKEN_OFF, CASES, FILES, STEPS, fitted, next_steps, numbers_of, state_file

TOLERANCE = 1e-5


def saved(case: str) -> dict[str, Any]:
    return torch.load(state_file(case), weights_only=True)


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return json.loads((FILES / "elbo_numbers.json").read_text())["cases"]


def assert_near(now: Any, then: Any, where: str) -> None:
    """Numbers agree, those of a list relative to its largest; keys agree."""
    if isinstance(then, dict):
        assert now.keys() == then.keys(), where
        for key in then:
            assert_near(now[key], then[key], f"{where}, {key}")
        return
    expected, found = (torch.as_tensor(each, dtype=torch.float64) for each in (then, now))
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * largest, msg=lambda m: f"{where}: {m}")


def test_each_case_has_its_files(numbers: dict[str, Any]) -> None:
    assert {file.stem for file in FILES.glob("elbo_states/*.pt")} == numbers.keys() == CASES.keys()
    assert sum(file.stat().st_size for file in FILES.rglob("*.*")) < 200_000


@pytest.mark.parametrize("case", CASES)
def test_an_elbo_goes_on(case: str, numbers: dict[str, Any]) -> None:
    """The state is read whole before the first call, and again after it; the next steps are those of then."""
    elbo = CASES[case]()
    for _ in range(2):
        state = saved(case)  # anew: an optimiser goes on in the very tensors that it loads
        result = elbo.load_state_dict(state)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert elbo.state_dict().keys() == state.keys()
        for step, (now, then) in enumerate(zip(next_steps(elbo, case), numbers[case], strict=True)):
            assert_near(now, then, f"{case}, step {step}")
        assert elbo.state_dict().keys() == state.keys()
        assert elbo.plan.sites


def test_auto_chooses_what_it_had_chosen() -> None:
    elbo, state = CASES["auto"](), saved("auto")
    elbo.load_state_dict(state)
    next_steps(elbo, "auto")
    assert {site.name: site.estimator for site in elbo.plan.sites} == state["_extra_state"]["chosen"]


def test_fit_goes_on(tmp_path: Path) -> None:
    """A resumed run records the losses of the uninterrupted one, and ends at its parameters."""
    shutil.copy(FILES / "fit_checkpoint.pt", tmp_path)
    before = torch.load(FILES / "fit_checkpoint.pt", weights_only=True)
    assert before["step"] == BROKEN_OFF
    then = json.loads((FILES / "fit_numbers.json").read_text())["run"]
    resumed = fitted(STEPS, tmp_path / "fit_checkpoint.pt", resume=True)
    assert resumed.step == STEPS
    assert_near(numbers_of(resumed), then, "fit")
    after = torch.load(tmp_path / "fit_checkpoint.pt", weights_only=True)
    assert after.keys() == before.keys()
    assert after["elbo"].keys() == before["elbo"].keys()
    assert after["metadata"] == {"of": "the tests"}
