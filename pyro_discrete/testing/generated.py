"""The net: whether what the engine says of a generated pair is what a run for every joint value says.

`random_pair` draws a small pair from a seed, `source` writes it as a program to read, `check` compares the engine with
an oracle that runs the plain program once for every joint value, and `shrink` makes a pair smaller as long as something
disagrees.

>>> from pyro_discrete.testing.generated import check
>>> from pyro_discrete.testing.generated_programs.random_pairs import random_pair
>>> check(random_pair(3)).kind
'passed'
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyro
import torch

from pyro_discrete.errors import DiscreteInferenceError
from pyro_discrete.testing.generated_programs.case import Case, DisagreementError, Engine, SkippedError
from pyro_discrete.testing.generated_programs.checks import CHECKS, EVERY
from pyro_discrete.testing.generated_programs.description import Description
from pyro_discrete.testing.generated_programs.oracle import NoAnswerError, answers
from pyro_discrete.testing.generated_programs.source import build

__all__ = ["Finding", "Verdict", "check", "reason"]


@dataclass(frozen=True)
class Finding:
    """What a check found: `kind` is "passed", "refused", "skipped" or "wrong"."""

    check: str
    kind: str
    text: str = ""


@dataclass
class Verdict:
    """All findings of a program."""

    description: Description
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What disagreed."""
        return [f for f in self.findings if f.kind == "wrong"]

    @property
    def kind(self) -> str:
        """The worst of it: "wrong", "refused" (the exact loss was) or "passed"."""
        kinds = Counter(f.kind for f in self.findings)
        return next((k for k in ("wrong", "refused", "passed") if kinds[k]), "skipped")


def check(
    description: Description,
    engine: Engine | None = None,
    only: tuple[str, ...] | None = None,
    every: bool = False,
) -> Verdict:
    """Run the checks on a program.

    - `only`: names of `CHECKS`; all by default. `every`: also those that are else run on every third or tenth seed.
    """
    engine = Engine() if engine is None else engine
    verdict = Verdict(description)
    with _on_its_own(description.seed):
        try:
            pair = build(description)
            right = answers(pair)
        except NoAnswerError as reason:
            verdict.findings.append(Finding("oracle", "skipped", str(reason)))
            return verdict
        except Exception as error:  # the program is no Pyro program: the generator's fault
            verdict.findings.append(Finding("oracle", "wrong", f"the oracle failed: {_brief(error)}"))
            return verdict
        case = Case(description, engine, pair, right)
        for name, run in CHECKS.items():
            if (only is not None and name not in only) or (not every and description.seed % EVERY.get(name, 1)):
                continue
            torch.manual_seed(description.seed)
            try:
                run(case)
                verdict.findings.append(Finding(name, "passed"))
            except SkippedError as reason:
                verdict.findings.append(Finding(name, "skipped", str(reason)))
            except DisagreementError as found:
                verdict.findings.append(Finding(name, "wrong", str(found)))
            except DiscreteInferenceError as error:
                verdict.findings.append(Finding(name, "refused", _brief(error)))
            except Exception as error:
                verdict.findings.append(Finding(name, "wrong", f"raised {_brief(error)}"))
    return verdict


@contextmanager
def _on_its_own(seed: int) -> Iterator[None]:
    """Float64, a param store and a random state of its own, and no warnings."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            torch.set_num_threads(threads)


def _brief(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def reason(finding: Finding) -> str:
    """A refusal without its names and numbers, to be counted."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'...'", finding.text))[:160]
