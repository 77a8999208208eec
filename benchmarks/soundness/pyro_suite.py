"""Pyro's own inference tests with our ELBO in the place of `TraceEnum_ELBO`, `Trace_ELBO` and `TraceGraph_ELBO`.

    python -m benchmarks.soundness.pyro_suite --source pyro        # a checkout of pyro-ppl/pyro that you have
    python -m benchmarks.soundness.pyro_suite --source pyro --select "hmm"

Each test is run twice, by the Pyro that is installed: as it stands, and with our classes under Pyro's names. What came
of it is one of: passed by both; refused (passed by Pyro alone, ours an error of the package's own, whose reason is
counted); wrong (passed by Pyro alone, with any other error); passed by ours alone; failed by both; skipped. Ends with
status 1 if anything was wrong. Sites that say `infer={"enumerate": ...}` are summed out, all others get "reinforce".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["FILES", "compared", "ran"]

FILES = tuple(f"tests/infer/{name}.py" for name in ("test_enum", "test_gradient", "test_valid_models"))
ROOT = Path(__file__).parents[2]
Results = dict[str, dict[str, str]]


def ran(source: Path, files: tuple[str, ...], whose: str, select: str = "", timeout: float = 7200) -> Results:
    """Run files of a checkout's tests under the installed Pyro; what came of each test, by its name.

    The tests are copied, so that the checkout's own `pyro` is not what they import. Raises RuntimeError where pytest
    could not run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source / "tests", Path(folder) / "tests")
        (Path(folder) / "pytest.ini").write_text("[pytest]\nmarkers =\n    init\n    stage\n")
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["-p", "benchmarks.soundness.pyro_suite_plugin", "--whose", whose, "--suite-out", str(out)]
        command += ["-k", select] * bool(select) + list(files)
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if not out.exists():
            raise RuntimeError(
                f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return json.loads(out.read_text())


def compared(stock: Results, ours: Results) -> dict[str, tuple[str, str]]:
    """For each test the kind of result, and for one that Pyro alone passes the reason.

    >>> passed, refused = {"outcome": "passed"}, {"outcome": "failed", "error": "E: e", "refused": "SiteShapeError: s"}
    >>> compared({"a": passed, "b": passed}, {"a": passed, "b": refused})
    {'a': ('passed by both', ''), 'b': ('refused', 'SiteShapeError: s')}
    """
    found = {}
    for name in sorted(stock.keys() | ours.keys()):
        one, other = (r.get(name, {"outcome": "missing"}) for r in (stock, ours))
        then, now = one["outcome"], other["outcome"]
        if then == now and then in ("passed", "failed"):
            found[name] = (f"{then} by both", "")
        elif now == "passed":
            found[name] = ("passed by ours alone", one.get("error", ""))
        elif then == "passed" and now == "failed":
            kind = "refused" if "refused" in other else "wrong"
            found[name] = (kind, other.get("refused") or other.get("error", ""))
        elif then == "passed":  # not run with ours: nothing may pass unseen
            found[name] = ("wrong", f"{now} with ours")
        else:
            found[name] = ("skipped", "")
    return found


def reason(text: str) -> str:
    """A reason without names and numbers, to be counted."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", text))[:170]


def main(
    source: Annotated[Path, typer.Option(help="A checkout of Pyro, which holds tests/.", exists=True, file_okay=False)],
    file: Annotated[list[str] | None, typer.Option(help="A file of tests, from the checkout's root.")] = None,
    select: Annotated[str, typer.Option(help="Which tests, as pytest's -k.")] = "",
    out: Annotated[Path | None, typer.Option(help="A JSON file for the results.")] = None,
) -> None:
    """Run the tests as they are and with our ELBO, and print a table."""
    files = tuple(file or FILES)
    missing = [f for f in files if not (source / f).is_file()]
    if missing:
        raise typer.BadParameter(f"{source} has no {', '.join(missing)}: a checkout of pyro-ppl/pyro is expected.")
    stock, ours = (ran(source, files, whose, select) for whose in ("stock", "ours"))
    found = compared(stock, ours)
    kinds = Counter(kind for kind, _ in found.values())
    reasons = Counter((kind, reason(text)) for kind, text in found.values() if kind in ("refused", "wrong"))
    for (kind, text), count in reasons.most_common():
        print(f"{kind} {count:4d}: {text}")
    for name, (kind, text) in found.items():
        if kind == "wrong":
            print(f"wrong: {name}\n    {text.splitlines()[0] if text else ''}")
    print(f"{len(found)} tests: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    if out is not None:
        out.write_text(json.dumps({"results": found, "stock": stock, "ours": ours}, indent=1))
    raise typer.Exit(bool(kinds["wrong"]))


if __name__ == "__main__":
    typer.run(main)
