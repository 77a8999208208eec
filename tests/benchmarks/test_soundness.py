"""The nets over Pyro's own programs: its examples come out equal, its tests are run with either ELBO and compared."""

from __future__ import annotations

import pytest
import torch

from benchmarks.examples.catalogue import names
from benchmarks.soundness import pyro_examples
from benchmarks.soundness.generated import Task, examined
from benchmarks.soundness.pyro_suite import judged
from benchmarks.steps.eager_steps import timed
from pyro_discrete import TraceELBO

SUITE = """
import pytest, torch, pyro, pyro.distributions as dist
from pyro.infer import TraceEnum_ELBO, Trace_ELBO, config_enumerate


@pytest.mark.parametrize("ELBO", [TraceEnum_ELBO, Trace_ELBO])
def test_both(ELBO):
    def program():
        pyro.sample("z", dist.Bernoulli(0.3))
    assert abs(ELBO(max_plate_nesting=0).loss(program, config_enumerate(program))) < 1e-4


def test_refused():
    def program():
        with pyro.plate("p", 2):
            pyro.sample("z", dist.Bernoulli(0.3).expand([3, 2]))
    try:
        TraceEnum_ELBO(max_plate_nesting=1).loss(program, program)
    except ValueError as error:
        assert type(error).__name__ != "SiteShapeError", error


def test_answered():
    def program():
        pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
    with pytest.raises(NotImplementedError):  # Pyro's, for a site of the model alone
        TraceEnum_ELBO(max_plate_nesting=0).loss(program, lambda: None)


def test_refused_by_both():
    def program():
        for _ in range(2):
            pyro.sample("z", dist.Bernoulli(0.3))
    with pytest.raises(RuntimeError, match="Multiple sample sites named 'z'"):
        Trace_ELBO().loss(program, program)


def test_shapes():
    def program():
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        assert z.shape == (2,)
    loss = TraceEnum_ELBO(max_plate_nesting=0).loss(program, program)
    assert abs(loss) < 1e-4


def test_wrong():
    assert TraceEnum_ELBO.__module__.startswith("pyro.")


def test_ours_alone():
    assert not TraceEnum_ELBO.__module__.startswith("pyro.")


def test_neither():
    raise AssertionError


@pytest.mark.xfail
def test_known():
    raise AssertionError
"""


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", names())
def test_the_loss_of_an_example_is_pyros(name, doubles):
    """And its gradients."""
    kind, text = pyro_examples.verdict(name)
    assert kind == "equal", text


def test_an_example_whose_loss_differs_is_seen(monkeypatch, doubles):
    """By a relative 1e-6."""

    class Off(TraceELBO):
        def loss_and_grads(self, *args, **kwargs):
            return super().loss_and_grads(*args, **kwargs) * (1 + 1e-6)

    monkeypatch.setattr(pyro_examples, "TraceELBO", Off)
    assert pyro_examples.verdict("mixture")[0] == "wrong"


def test_an_example_is_timed_beside_pyro():
    ours, theirs, ratio = timed("looked_up", 3)
    assert min(ours, theirs) > 0
    assert 0.1 < ratio[1] <= ratio[0] <= ratio[2] < 10


def test_programs_are_chosen_by_their_features():
    """One that is left out is not run."""
    assert examined(Task(3, without=("role:*",))) is None
    assert examined(Task(3, having=("role:*",), checks=("exact",))).seed == 3


@pytest.mark.slow
def test_a_suite_is_run_with_either_elbo(tmp_path):
    """What comes of each kind of test."""
    folder = tmp_path / "tests" / "infer"
    folder.mkdir(parents=True)
    (folder / "test_small.py").write_text(SUITE)
    results = judged(tmp_path, ("tests/" + "infer/test_small.py",))
    found = {name.split("::")[1]: kind for name, (kind, _) in results.items()}
    assert found == {
        "test_both[TraceEnum_ELBO]": "passed by both",
        "test_both[Trace_ELBO]": "passed by both",
        "test_refused": "refused",
        "test_answered": "answered",
        "test_refused_by_both": "refused by both",
        "test_shapes": "passed but for shapes",
        "test_wrong": "wrong",
        "test_ours_alone": "passed by ours alone",
        "test_neither": "failed by both",
        "test_known": "skipped",
    }
