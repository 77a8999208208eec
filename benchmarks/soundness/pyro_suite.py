"""Pyro's own inference tests with our ELBO in the place of `TraceEnum_ELBO`, `Trace_ELBO` and `TraceGraph_ELBO`.

    python -m benchmarks.soundness.pyro_suite --source pyro        # a checkout of pyro-ppl/pyro that you have
    python -m benchmarks.soundness.pyro_suite --source pyro --select "hmm"
    python -m benchmarks.soundness.pyro_suite --source pyro --stock stock.json    # keeps what Pyro's own runs gave

Each test is run twice, by the Pyro that is installed: as it stands, and with our classes under Pyro's names. What came
of it is one of:

- passed by both; passed by ours alone; failed by both; skipped;
- passed but for shapes: the test's program asserts which shape a value has while Pyro enumerates it, and the test is
  passed once the asserts inside of programs are taken out;
- refused by both: the test expects an error of Pyro's, and ours is an error of the package's own, in other words;
- answered: the test expects an error or a warning of Pyro's, and ours gives a result without;
- other way: the test asks how Pyro goes about it, for a reason listed in `OTHER_WAY`;
- refused: passed by Pyro alone, ours an error of the package's own, whose reason is counted;
- wrong: passed by Pyro alone, with any other error.

Ends with status 1 if anything was wrong. Sites that say `infer={"enumerate": ...}` are summed out, all others get
"reinforce".
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["FILES", "OTHER_WAY", "compared", "judged", "ran", "without_asserts_in_programs"]

NAMES = ("discrete", "elbo_mapdata", "enum", "gradient", "multi_sample_elbos", "valid_models")
FILES = tuple(f"tests/infer/test_{name}.py" for name in NAMES)
FORMULA = "asks for one draw's estimate by Pyro's formula, which holds log q's own slope, of mean zero, as well"
OTHER_WAY = {
    "*::test_enumerate_sequential_guide": "counts the runs of the program: ours tries it before the first step",
    "*::test_particle_gradient?TraceEnum_ELBO-nonreparam?": FORMULA,
    "*::test_particle_gradient?TraceEnum_ELBO-reparam-False?": FORMULA,
}
"""Tests that look at how Pyro goes about it, and not at a result, with what they look at."""

ROOT = Path(__file__).parents[2]
Results = dict[str, dict[str, str]]


class _Without(ast.NodeTransformer):
    """Takes the asserts out of functions inside of functions."""

    depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.depth += 1
        found = self.generic_visit(node)
        self.depth -= 1
        return found

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if self.depth > 1 else node


def without_asserts_in_programs(text: str) -> str:
    """A test module's text without the asserts in functions that its tests define: their models and guides.

    >>> print(without_asserts_in_programs("def test():\\n    def model():\\n        assert 0\\n    assert model"))
    def test():
    <BLANKLINE>
        def model():
            pass
        assert model
    """
    return ast.unparse(_Without().visit(ast.parse(text)))


def ran(
    source: Path, tests: Sequence[str], whose: str, select: str = "", timeout: float = 7200, asserts: bool = True
) -> Results:
    """Run tests of a checkout (files, or names of tests) under the installed Pyro; what came of each, by its name.

    The tests are copied, so that the checkout's own `pyro` is not what they import; with `asserts=False` their programs
    assert nothing. Raises RuntimeError where pytest could not run them.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source / "tests", Path(folder) / "tests")
        for file in {test.split("::")[0] for test in tests if not asserts}:
            path = Path(folder) / file
            path.write_text(without_asserts_in_programs(path.read_text()))
        (Path(folder) / "pytest.ini").write_text("[pytest]\nmarkers =\n    init\n    stage\n")
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["-p", "benchmarks.soundness.pyro_suite_plugin", "--whose", whose, "--suite-out", str(out)]
        command += ["-k", select] * bool(select) + list(tests)
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
            found[name] = _failed(name, other)
        elif then == "passed":  # not run with ours: nothing may pass unseen
            found[name] = ("wrong", f"{now} with ours")
        else:
            found[name] = ("skipped", "")
    return found


def _failed(name: str, ours: dict[str, str]) -> tuple[str, str]:
    """The kind of a test that Pyro alone passes, and the reason."""
    why = next((text for pattern, text in OTHER_WAY.items() if fnmatchcase(name, pattern)), "")
    if "answered" in ours or ours.get("error", "").startswith("AssertionError: No warnings were raised"):
        return "answered", ours["error"]
    if why:
        return "other way", why
    if "refused" in ours:
        return "refused by both" if "expected" in ours else "refused", ours["refused"]
    return "wrong", ours.get("error", "")


def judged(
    source: Path, tests: Sequence[str], select: str = "", stock: Results | None = None
) -> dict[str, tuple[str, str]]:
    """For each test the kind of result and its reason, by all of the runs. `stock`: results of Pyro's own, if known."""
    ours = ran(source, tests, "ours", select)
    stock = ran(source, tests, "stock", select) if stock is None else {n: stock[n] for n in ours if n in stock}
    found = compared(stock, ours)
    left = [name for name, (kind, _) in found.items() if kind in ("wrong", "refused")]
    if left:
        again = ran(source, left, "ours", asserts=False)
        for name, (kind, text) in compared({n: stock[n] for n in left}, again).items():
            found[name] = ("passed but for shapes", "") if kind == "passed by both" else (kind, text)
    return found


def reason(text: str) -> str:
    """A reason without names and numbers, to be counted."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", text))[:170]


def main(
    source: Annotated[Path, typer.Option(help="A checkout of Pyro, which holds tests/.", exists=True, file_okay=False)],
    file: Annotated[list[str] | None, typer.Option(help="A file of tests, or its name: enum, gradient ...")] = None,
    select: Annotated[str, typer.Option(help="Which tests, as pytest's -k.")] = "",
    stock: Annotated[Path | None, typer.Option(help="A JSON file of Pyro's own results, written if new.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the results.")] = None,
) -> None:
    """Run the tests as they are and with our ELBO, and print a table."""
    files = tuple(f if "/" in f else f"tests/infer/test_{f}.py" for f in file or FILES)
    missing = [f for f in files if not (source / f).is_file()]
    if missing:
        raise typer.BadParameter(f"{source} has no {', '.join(missing)}: a checkout of pyro-ppl/pyro is expected.")
    if stock is not None and not stock.exists():
        stock.write_text(json.dumps(ran(source, files, "stock", select)))
    found = judged(source, files, select, None if stock is None else json.loads(stock.read_text()))
    kinds = Counter(kind for kind, _ in found.values())
    reasons = Counter((kind, reason(text)) for kind, text in found.values() if text and kind != "failed by both")
    for (kind, text), count in reasons.most_common():
        print(f"{kind} {count:4d}: {text}")
    for name, (kind, text) in found.items():
        if kind == "wrong":
            print(f"wrong: {name}\n    {text.splitlines()[0] if text else ''}")
    print(f"{len(found)} tests: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    if out is not None:
        out.write_text(json.dumps(found, indent=1))
    raise typer.Exit(bool(kinds["wrong"]))


if __name__ == "__main__":
    typer.run(main)
