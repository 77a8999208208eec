"""The Python of Markdown texts runs as it is printed: README's and every page's, by one mechanism."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["OPTIONAL", "blocks", "needs", "run_in_order"]

OPTIONAL = {"lightning": ["lightning"], "numpyro": ["numpyro", "funsor"], "pymc": ["pymc"]}
"""Packages that some blocks import, and what these need: such a block runs where they are.

Lightning is in the extra `docs`.
"""


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a language; `python` has those that are laid out as a console session (`pycon`), too."""
    fences = "python|pycon" if language == "python" else language
    return re.findall(rf"^```(?:{fences})\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def needs(block: str) -> list[str]:
    """The optional packages that a block needs.

    >>> needs("import numpyro.distributions as dist"), needs("import torch")
    (['numpyro', 'funsor'], [])
    """
    imported = [name for name in OPTIONAL if re.search(rf"^\s*(?:import|from) {name}\b", block, flags=re.MULTILINE)]
    return [package for name in imported for package in OPTIONAL[name]]


def run_in_order(blocks: Iterable[str], name: str) -> dict[str, object]:
    """Run the blocks in one namespace; a console session has to print what it shows, with `...` for what may differ."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, start=1):
        where = f"{name}, Python block {number}"
        if block.startswith(">>> "):
            _run_session(block, namespace, where)
        else:
            exec(compile(block, where, "exec"), namespace)
    return namespace


def _run_session(block: str, namespace: dict[str, object], where: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    session = doctest.DocTestParser().get_doctest(block, namespace, where, where, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    runner.report_failure = lambda out, test, example, got: said.append(  # type: ignore[method-assign]
        f"{where}: {example.source.strip()} printed\n{got}\ninstead of\n{example.want}"
    )
    runner.report_unexpected_exception = lambda out, test, example, exc_info: said.append(  # type: ignore[method-assign]
        f"{where}: {example.source.strip()} raised {exc_info[1]!r}"
    )
    runner.run(session, clear_globs=False)
    namespace.update(session.globs)
    assert not said, "\n".join(said)
