"""Estimators with several rows, alone and beside others: upstream copied, downstream drawn anew, costs of their own.

Each report alarms falsely with a probability of at most 1.5e-6, all 16 of them together of 2.4e-5.
"""

from __future__ import annotations

import pytest
import torch

from pyro_discrete import NVIL, TraceELBO
from pyro_discrete.testing import assert_contract, check_elbo, programs

PROGRAMS = {p.name: p for p in programs()}
ESTIMATORS = {"nvil": NVIL(variance_normalisation=False)}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "by_site"),
    [
        ("two_layers", {"z1": "disarm", "z2": "rloo"}),
        ("two_layers", {"z1": "rloo", "z2": "disarm"}),
        ("two_layers", {"z1": "nvil", "z2": "enumerate"}),
        ("mixed_chain", {"a": "disarm", "b": "rloo", "c": "enumerate"}),
        ("mixed_chain", {"a": "enumerate", "b": "enumerate", "c": "rloo"}),
        ("mixed_chain", {"a": "arms", "b": "coupled", "c": "carms"}),
        ("crossing_plates", {"u": "disarm", "v": "rloo", "w": "reinforce"}),
        ("nested_plates", {"topic": "disarm", "word": "enumerate"}),
        ("local_feeds_global", {"z": "disarm", "h": "enumerate", "w": "rloo"}),
        ("words_feed_documents", {"z": "disarm", "h": "enumerate"}),
        ("auxiliary_site", {"a": "enumerate", "z": "disarm"}),
        ("subsampled", {"g": "disarm", "z": "enumerate"}),
        ("masked_distributions", {"a": "disarm", "b": "enumerate"}),
        ("not_reparameterised", {"z": "disarm", "y": "rloo"}),
        ("reused_plate", {"a": "disarm", "g": "enumerate", "b": "rloo"}),
        ("sequential_plate", {"g": "enumerate", "z_*": "disarm", "h": "rloo"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x.values()),
)
def test_a_mixture_of_estimators(name, by_site):
    def make(particles, vectorize):
        chosen = {site: ESTIMATORS.get(estimator, estimator) for site, estimator in by_site.items()}
        return TraceELBO(chosen, num_particles=particles, vectorize_particles=vectorize)

    report = check_elbo(
        make, name="mixture", min_particles=2, programs=[PROGRAMS[name]], dtypes=(torch.float64,), false_alarm=1.5e-6
    )
    print(report)
    assert_contract(report)
    assert not report.refused
