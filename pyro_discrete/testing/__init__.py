"""The contract that every estimator must keep, for ours and for yours.

`check_estimator` runs an estimator on small generated programs and compares the mean of its gradients (every parameter
of the guide and of the model) and of its losses with exact ones, found by running the pair on every joint assignment.

>>> from pyro_discrete.testing import assert_contract, check_estimator, programs
>>> report = check_estimator("reinforce", programs=programs()[:2], draws=2_000, false_alarm=1e-6)
>>> assert_contract(report)
>>> report.unbiased
True
"""

from pyro_discrete.diagnostics.exact import Exact, Oracle, exact_gradient, exact_loss
from pyro_discrete.testing.check import (
    assert_contract,
    bound_programs,
    check_elbo,
    check_estimator,
    count_programs,
    discover_estimators,
    programs,
    structure_programs,
)
from pyro_discrete.testing.contract import BiasVariance, Comparison, Report, bias_and_variance
from pyro_discrete.testing.extremes import LOGITS, Extreme, SharedNoise, compare_precisions
from pyro_discrete.testing.small_programs.program import Pair, Program, program
from pyro_discrete.testing.structures import StructureReport, check_structure, discover_structures

__all__ = [
    "LOGITS",
    "BiasVariance",
    "Comparison",
    "Exact",
    "Extreme",
    "Oracle",
    "Pair",
    "Program",
    "Report",
    "SharedNoise",
    "StructureReport",
    "assert_contract",
    "bias_and_variance",
    "bound_programs",
    "check_elbo",
    "check_estimator",
    "check_structure",
    "compare_precisions",
    "count_programs",
    "discover_estimators",
    "discover_structures",
    "exact_gradient",
    "exact_loss",
    "program",
    "programs",
    "structure_programs",
]
