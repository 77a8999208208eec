"""A plugin of pytest: Pyro's tests with our ELBO in the place of Pyro's, and a file of what came of each test.

`pytest -p benchmarks.soundness.pyro_suite_plugin --whose ours --suite-out found.json tests/infer`. See `pyro_suite`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
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
_RAISED: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def _own_error(error: BaseException | None) -> str:
    """The text of the package's own error behind an error, or nothing."""
    while error is not None:
        if isinstance(error, DiscreteInferenceError):
            return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        error = error.__cause__ or error.__context__
    return ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note what comes of each `pytest.raises`: a test may expect an error of Pyro's, by its type and its words."""
    noted = item.stash[_RAISED] = {}
    kind = type(pytest.raises(KeyError))
    leave = kind.__exit__

    def noting(self: Any, of: Any, error: BaseException | None, trace: Any) -> Any:
        noted["raised"] = _own_error(error) if error is not None else "nothing"
        return leave(self, of, error, trace)

    kind.__exit__ = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__exit__ = leave  # type: ignore[method-assign]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Note the outcome of each test, with the error and whether one was expected."""
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.outcome == "passed":
        return
    found = {"outcome": "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome}
    if call.excinfo is not None and report.outcome == "failed":
        error = call.excinfo.value
        found["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        raised = item.stash.get(_RAISED, {}).get("raised", "")
        if isinstance(error, pytest.fail.Exception) and raised == "nothing":
            found["answered"] = "yes"
        elif refused := _own_error(error):
            found["refused"] = refused
            if raised == refused:
                found["expected"] = "yes"
    item.config.stash[_FOUND][item.nodeid] = found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file."""
    out = session.config.getoption("--suite-out")
    if out:
        Path(out).write_text(json.dumps(session.config.stash[_FOUND], indent=1))
