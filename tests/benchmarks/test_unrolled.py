"""The benchmark of unrolled chains measures what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.chains import unrolled


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_loss_by_hand_is_that_of_the_program() -> None:
    elbo, (model, guide), graph, x, seconds = unrolled.captured("hidden:7:3")
    eager, _, parameters = unrolled.by_hand(3, x)
    step = elbo.gradients(model, guide, x)
    torch.testing.assert_close(eager().detach(), step.loss)
    by_shape = {g.shape: g for g in step.gradients}
    for parameter, gradient in zip(parameters, torch.autograd.grad(eager(), parameters), strict=True):
        torch.testing.assert_close(by_shape[parameter.shape], gradient)
    assert seconds["start-up"] >= seconds["grouping"] > 0
    assert graph.operations <= len(graph.graph)


def test_the_curve_is_flat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Mean-field bits: as many operations for twenty steps as for forty, which score them alike both."""
    monkeypatch.setattr(unrolled, "LENGTHS", (20, 40))
    monkeypatch.setattr(unrolled, "CURVES", (("bits", 2),))
    unrolled.curve()
    row = capsys.readouterr().out.splitlines()[-1]
    before, after = ([int(cell.split(" to ")[i].replace(",", "")) for cell in row.split("|")[2:4]] for i in (0, 1))
    assert before[1] > 1.7 * before[0]
    assert after[1] <= 1.1 * after[0]


def test_ways_are_timed_in_turns() -> None:
    calls: list[str] = []
    found = unrolled.medians({name: lambda name=name: calls.append(name) for name in "ab"}, 0.0)
    assert set(found) == {"a", "b"}
    assert calls[:4] == ["a", "a", "b", "b"]
