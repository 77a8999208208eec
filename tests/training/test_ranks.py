"""Several processes train as one: their joint step is that of the joint batch, and what fails in one is told in all.

Real processes on loopback, two unless it says otherwise; cases that end well share their processes.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_discrete.checkpoints import load_checkpoint
from tests.support import rank_cases
from tests.support.rank_cases import EXACT, LEARNED, REFUSED, SAMPLED, run
from tests.support.training_pairs import assert_same

Z = 5.0
"""Standard errors: by chance one of the 49 numbers is farther off in one of 30,000 runs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of `two` leave what they leave."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What came of all cases that end in both processes."""
    names = [f"exact: {name}" for name in EXACT] + [f"learned: {name}" for name in LEARNED]
    names += [f"sampled: {name}" for name in SAMPLED] + [f"refused: {name}" for name in REFUSED]
    names += ["learned again: its own optimiser", "stopped by: a callback", "exact checkpoint: 8", "signal: SIGTERM"]
    return run(names, folder)


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_is_as_in_one_process(name: str, two: list[dict[str, Any]]) -> None:
    alone = rank_cases.parameters(EXACT[name]())
    for found in (each[f"exact: {name}"] for each in two):
        assert not isinstance(found, str), found
        assert found["step"] == alone["step"]
        assert found["parameters"].keys() == alone["parameters"].keys()
        for key, value in alone["parameters"].items():
            torch.testing.assert_close(found["parameters"][key], value, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found["loss"], alone["loss"], rtol=1e-6, atol=0)


@pytest.mark.statistical
@pytest.mark.parametrize("name", SAMPLED)
def test_the_mean_of_a_sampled_gradient_is_the_exact_one(name: str, two: list[dict[str, Any]]) -> None:
    exact = rank_cases.gradients("enumerate", 2)
    found = two[0][f"sampled: {name}"]
    assert not isinstance(found, str), found
    for key, (mean, error) in found.items():
        assert (((mean - exact[key][0]).abs() / error) < Z).all(), key


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_is_the_same_everywhere_and_random_numbers_are_not(
    name: str, two: list[dict[str, Any]]
) -> None:
    first, second = (each[f"learned: {name}"] for each in two)
    assert not isinstance(first, str), first
    assert_same(first["state"], second["state"])
    assert_same(first["parameters"], second["parameters"])
    assert not torch.equal(first["random"], second["random"])


def test_it_is_reproducible(two: list[dict[str, Any]]) -> None:
    """Whatever the same processes have trained before."""
    for found in two:
        assert_same(found["learned: its own optimiser"], found["learned again: its own optimiser"])


SAID: dict[str, str] = {
    "data": "The ranks differ in data.* on rank 1",
    "settings": "The ranks differ in their settings: .*'steps': 30.* on rank 0, .*'steps': 31.* on rank 1",
    "program": "The ranks differ in their programs: .*34.3144 on rank 0 and 59.8221 on rank 1",
    "parameter": r"The ranks differ in .*\(2,\).* on rank 1",
    "late parameter": "'late' .* on rank 1 alone",
    "a rank without data": "Rank 1 of 2 would have no data: a batch has 1 element",
    "a param a datum": "'logits' has elements for each datum",
    "a site outside": "Site 'y' of the model grows with the data",
    "no plate": "No plate follows the data",
    "unknown plate": "'dato' is no plate.*Did you mean 'data'",
    "failing": "the disk of rank 1 is full",
    "failing callback": "nothing to report",
    "particles": "3 repetitions a step cannot be split over 2",
    "too few particles": "needs num_particles >= 2",
    "several lengths": "2 and 23 elements",
    "unwritable": "run.pt could not be written",
    "nothing to resume": "There is no checkpoint",
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_stop_and_say_why(name: str, two: list[dict[str, Any]]) -> None:
    for found in (each[f"refused: {name}"] for each in two):
        assert isinstance(found, str), found
        assert re.search(SAID[name], found, re.DOTALL), found


def test_the_others_say_which_rank_failed(two: list[dict[str, Any]]) -> None:
    for name, step in (("failing", "at step 8"), ("failing callback", "in a callback at step 10")):
        here, there = (each[f"refused: {name}"] for each in two)
        assert here.startswith(f"RanksError: Rank 1 failed {step}: ")
        assert f"This was rank 1 of 2, {step}" in there


def test_a_callback_of_one_rank_stops_all(two: list[dict[str, Any]]) -> None:
    assert [each["stopped by: a callback"] for each in two] == ["rank 1 has had enough"] * 2


def test_a_signal_to_one_stops_all_at_a_step_with_a_checkpoint(two: list[dict[str, Any]]) -> None:
    assert [each["signal: SIGTERM"] for each in two] == [f"Interrupted: 11 {int(signal.SIGTERM)}"] * 2


def test_a_killed_rank_is_named_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    processes = rank_cases.start(["whole: x", "killed: x"], tmp_path)
    assert rank_cases.ended(processes) == [0, -signal.SIGKILL]
    said = torch.load(tmp_path / "rank0.pt")["killed: x"]
    assert "Rank 1 of 2 is gone" in said
    assert load_checkpoint(tmp_path / "killed.pt")["step"] == 7  # the last one before
    run(["goes on: killed"], tmp_path)
    whole, resumed = (load_checkpoint(tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    assert resumed["step"] == whole["step"] == 30
    assert_same(whole, resumed)


def test_a_checkpoint_goes_on_with_more_and_fewer_processes(folder: Path, two: list[dict[str, Any]]) -> None:
    assert not isinstance(two[0]["exact checkpoint: 8"], str)
    three = run(["exact checkpoint: 19"], folder, ranks=3)
    assert_same(three[0]["exact checkpoint: 19"]["parameters"], three[2]["exact checkpoint: 19"]["parameters"])
    last = rank_cases.case("exact checkpoint: 30", folder)
    alone = rank_cases.parameters(EXACT["plain, global"]())
    for key, value in alone["parameters"].items():
        torch.testing.assert_close(last["parameters"][key], value, rtol=1e-6, atol=1e-9)
