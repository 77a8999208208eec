"""A plugin of pytest: Pyro's tests with our ELBO in the place of Pyro's, and a file of what came of each test.

`pytest -p benchmarks.soundness.pyro_suite_plugin --whose ours --suite-out found.json tests/infer`. See `pyro_suite`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyro.infer
import pytest

from pyro_discrete import Enumerate, Reinforce, TraceELBO
from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.programs.sites import Site

__all__ = ["OURS", "marked_or_sampled"]

NAMES = ("TraceEnum_ELBO", "Trace_ELBO", "TraceGraph_ELBO")
MODULES = {"TraceEnum_ELBO": "traceenum_elbo", "Trace_ELBO": "trace_elbo", "TraceGraph_ELBO": "tracegraph_elbo"}


def marked_or_sampled(site: Site) -> Estimator:
    """What `TraceEnum_ELBO` does: sites with the mark are summed out, others sampled."""
    return Enumerate() if site.message["infer"].get("enumerate") else Reinforce()


def _standing_for(name: str) -> type[TraceELBO]:
    """Our ELBO under the name and with the arguments of one of Pyro's."""

    class Standing(TraceELBO):
        def __init__(
            self,
            num_particles: int = 1,
            max_plate_nesting: float = math.inf,
            vectorize_particles: bool = False,
            strict_enumeration_warning: bool = True,
            retain_graph: bool | None = None,
            **unused: Any,
        ) -> None:
            super().__init__(
                marked_or_sampled if name == "TraceEnum_ELBO" else "reinforce",
                num_particles=num_particles,
                max_plate_nesting=max_plate_nesting,
                vectorize_particles=vectorize_particles,
                strict_enumeration_warning=strict_enumeration_warning,
                retain_graph=retain_graph,
            )

    Standing.__name__ = Standing.__qualname__ = name
    return Standing


OURS = {name: _standing_for(name) for name in NAMES}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Whose ELBO, and where the results go."""
    parser.addoption("--whose", default="stock", choices=("stock", "ours"))
    parser.addoption("--suite-out", required=False)


def pytest_configure(config: pytest.Config) -> None:
    """Put our classes into Pyro's modules before any test is imported."""
    config.stash[_FOUND] = {}
    if config.getoption("--whose") == "ours":
        for name, standing in OURS.items():
            setattr(pyro.infer, name, standing)
            setattr(getattr(pyro.infer, MODULES[name]), name, standing)


_FOUND: pytest.StashKey[dict[str, dict[str, str]]] = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note the outcome of each test, with the error and whether it is one of the package's own."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.outcome == "passed":
        return
    found = {"outcome": "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome}
    if call.excinfo is not None and report.outcome == "failed":
        error: BaseException | None = call.excinfo.value
        found["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        while error is not None:
            if isinstance(error, DiscreteInferenceError):
                found["refused"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                break
            error = error.__cause__ or error.__context__
    item.config.stash[_FOUND][item.nodeid] = found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file."""
    out = session.config.getoption("--suite-out")
    if out:
        Path(out).write_text(json.dumps(session.config.stash[_FOUND], indent=1))
