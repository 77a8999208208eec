"""Gradients of the importance-weighted bound: every estimator that it admits against brute force over all K-tuples.

The statistical tests alarm falsely with a probability below 4e-5 in all, under fixed seeds.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from pyro_discrete import NVIL, RODEO, VIMCO, Coupled, SparseGumbelSoftmax, TraceIWELBO
from pyro_discrete.estimators.base import Draw, Estimator, Surrogate
from pyro_discrete.objectives.importance import ImportanceBound
from pyro_discrete.testing import assert_contract, check_elbo, check_estimator, discover_estimators
from pyro_discrete.testing.small_programs.bounds import bounded
from tests.support.bounds import CATEGORIES, CORE, PROGRAMS

F64 = (torch.float64,)
ALARM = 1e-6


def as_measured(cls):
    """NVIL rescales its gradient unless told not to; the sparse relaxation's bias is soon seen where it is warm.

    RODEO, whose network sees each pair of particles, has one of few units.
    """
    settings = {
        NVIL: {"variance_normalisation": False},
        SparseGumbelSoftmax: {"temperature": 2.0},
        RODEO: {"hidden": 10},
    }
    return cls(**settings.get(cls, {}))


CASES = [*map(as_measured, discover_estimators()), VIMCO("arithmetic"), Coupled("tree")]


@pytest.mark.statistical
def test_gradients_are_those_of_brute_force():
    report = check_estimator(VIMCO(), programs=CORE, draws=1_600, dtypes=F64, false_alarm=ALARM, inner=3)
    print(report)
    assert_contract(report)
    assert not report.refused


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("estimator", CASES, ids=lambda e: f"{e.name}-{e.extra_repr()}")
def test_estimators_keep_their_claims_on_the_bound(estimator):
    """On all programs of the bound, both paths and both dtypes for VIMCO; the core ones for the others.

    Biased estimators of the lower bound are biased here too, and that shows soon, on one program.
    """
    whole = repr(estimator) == "VIMCO()"
    binary = PROGRAMS["one_bernoulli"].families <= estimator.families
    chosen = CATEGORIES if not binary else CORE if estimator.unbiased else CORE[1:2]
    report = check_estimator(
        estimator,
        programs=None if whole else chosen,
        draws=3_200 if estimator.unbiased else 800,
        dtypes=(torch.float64, torch.float32) if whole else F64,
        false_alarm=ALARM,
        inner=3,
        batch=64 if isinstance(estimator, RODEO) else None,
    )
    print(report)
    assert_contract(report)
    assert not report.refused


@pytest.mark.statistical
@pytest.mark.parametrize("exact", ["enumerate", "indecater", "sum_and_sample", "unordered_set"])
def test_what_the_words_of_a_document_share_is_not_in_the_way_of_the_document(exact):
    """The documents' site is served beside another estimator of the words, without rows for each element."""

    def make(particles, vectorize):
        spec = {"topic": exact, "word": "vimco"}
        return TraceIWELBO(spec, num_particles=3, num_outer_samples=particles, vectorize_particles=vectorize)

    report = check_elbo(
        make, name=exact, programs=bounded(CATEGORIES[1:], 3), dtypes=F64, draws=1_600, false_alarm=ALARM
    )
    print(report)
    assert_contract(report)
    assert not report.refused


class LeavesOutOfTheInnerOnes(Estimator):
    """The planted error: the mean of the other inner particles' costs, each of which is the bound itself."""

    name, summary, reference = "planted", "leave-one-out over inner particles", "none"

    def surrogate(self, draw: Draw, cost: torch.Tensor) -> Surrogate:
        signal = cost[0].detach()
        others = (signal.sum(1, keepdim=True) - signal) / max(1, signal.shape[1] - 1)
        return Surrogate(draw.score * (signal - others))


class ScaledInside(ImportanceBound):
    """The planted error: the plate's scale stays in the weights."""

    def evaluate(self, guide_trace, model_trace, chosen, layout, *args, **kwargs):
        for trace in (guide_trace, model_trace):
            for msg in trace.nodes.values():
                if msg["type"] == "sample" and "data" in {f.name for f in msg["cond_indep_stack"]}:
                    msg["cond_indep_stack"] = tuple(f._replace(full_size=f.size) for f in msg["cond_indep_stack"])
                    if msg["name"] == "z":
                        msg["scale"] = msg["scale"] * (1 + 1e-4)  # so that no scale is common
        return super().evaluate(guide_trace, model_trace, chosen, layout, *args, **kwargs)


def planted(objective=None, plates=None):
    def make(particles, vectorize):
        elbo = TraceIWELBO("vimco", num_particles=3, num_outer_samples=particles, datum_plates=plates)
        if objective is not None:
            elbo.objective.__class__ = objective
        return elbo

    return make


@pytest.mark.statistical
@pytest.mark.slow
def test_planted_errors_are_seen():
    def alarms(report):
        print(report)
        assert not report.violations
        return any(c.alarm for c in report.comparisons)

    options = {"dtypes": F64, "draws": 3_200, "false_alarm": ALARM}
    ragged = bounded([PROGRAMS["ragged_subsample"]], 3)
    assert alarms(check_estimator(LeavesOutOfTheInnerOnes(), programs=CORE[1:2], inner=3, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = check_elbo(
            planted(plates=()), name="joint bound", programs=bounded([PROGRAMS["nested_plates"]], 3), **options
        )
    assert alarms(joint)
    assert alarms(check_elbo(planted(ScaledInside), name="scale inside", programs=ragged, **options))
    assert not alarms(check_elbo(planted(), name="right", programs=ragged, **options))
