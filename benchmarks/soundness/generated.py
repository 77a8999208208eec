"""Generated pairs of programs: what the package says of each, against a run of the plain program for every joint value.

    python -m benchmarks.soundness.generated --programs 2000 --seed 0
    python -m benchmarks.soundness.generated --programs 1 --seed 17 --show        # one program, printed
    python -m benchmarks.soundness.generated --without scale:drawn --workers 2

Program i of a run is that of seed + i, whatever the number of programs and workers. Each disagreement is made smaller
as long as it stays one, and printed as a program that runs by itself. Ends with status 1 if anything was wrong. A
refusal (an error of the package's own) is no fault; the reasons are counted. An interrupt ends it with what was found.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from pyro_discrete.testing.generated import Finding, check, reason
from pyro_discrete.testing.generated_programs.checks import CHECKS
from pyro_discrete.testing.generated_programs.description import Description
from pyro_discrete.testing.generated_programs.random_pairs import random_pair
from pyro_discrete.testing.generated_programs.shrinking import shrink
from pyro_discrete.testing.generated_programs.source import source

__all__ = ["Found", "Task", "examined"]


@dataclass(frozen=True)
class Found:
    """What came of a program; `small` is the source of a smaller one for which the first disagreement stays."""

    seed: int
    findings: list[Finding]
    features: frozenset[str]
    small: str = ""
    small_findings: tuple[Finding, ...] = ()

    @property
    def wrong(self) -> list[Finding]:
        """What disagreed."""
        return [f for f in self.findings if f.kind == "wrong"]


def sort_of(finding: Finding) -> str:
    """What kind of disagreement: an error's class, or what of an answer was off."""
    return finding.text.split(":")[0] if finding.text.startswith("raised") else finding.text.split()[0]


@dataclass(frozen=True)
class Task:
    """A program to look at: its seed, globs of features that it may not have or has to have, names of checks."""

    seed: int
    without: tuple[str, ...] = ()
    having: tuple[str, ...] = ()
    checks: tuple[str, ...] = tuple(CHECKS)
    shrinking: bool = True

    def takes(self, description: Description) -> bool:
        """Whether the program is one of those to look at."""

        def has(glob: str) -> bool:
            return any(fnmatchcase(f, glob) for f in description.features)

        return not any(map(has, self.without)) and (not self.having or any(map(has, self.having)))


def examined(task: Task) -> Found | None:
    """Check the program of a seed, None if it is left out, and shrink what disagrees."""
    seed = task.seed
    torch.set_num_threads(1)
    description = random_pair(seed)
    if not task.takes(description):
        return None
    found = check(description, only=task.checks)
    if not found.wrong or not task.shrinking:
        return Found(seed, found.findings, description.features)
    first = found.wrong[0]

    def disagrees(smaller: Description) -> bool:
        again = check(smaller, only=(first.check,), every=True).wrong
        return any(sort_of(f) == sort_of(first) and "oracle" not in f.check for f in again)

    small = shrink(description, disagrees) if first.check != "oracle" else description
    again = tuple(check(small, only=(first.check,), every=True).wrong)
    return Found(seed, found.findings, small.features, source(small), again)


def _all(tasks: list[Task], workers: int) -> Iterator[Found | None]:
    if workers == 1:
        yield from map(examined, tasks)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(examined, tasks, chunksize=4)


def main(
    programs: Annotated[int, typer.Option(help="How many.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the first program; the next has the next.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out programs with such a feature (a glob; see `Description.features`)."),
    ] = None,
    having: Annotated[list[str] | None, typer.Option(help="Only programs with one of these features.")] = None,
    checks: Annotated[list[str] | None, typer.Option(help=f"Only these checks, of {', '.join(CHECKS)}.")] = None,
    shrinking: Annotated[bool, typer.Option(help="Make what disagrees smaller.")] = True,
    show: Annotated[bool, typer.Option(help="Print every program.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file for what disagreed.")] = None,
) -> None:
    """Run the net over generated programs."""
    settings = (tuple(without or ()), tuple(having or ()), tuple(checks or CHECKS), shrinking)
    tasks = [Task(seed + i, *settings) for i in range(programs)]
    kinds: dict[str, Counter[str]] = {name: Counter() for name in ("oracle", *CHECKS)}
    reasons: Counter[str] = Counter()
    wrong: list[Found] = []
    started, examples, verdicts = time.perf_counter(), {}, Counter()
    with suppress(KeyboardInterrupt), tqdm(total=programs, unit="program", mininterval=1.0, disable=None) as bar:
        for found in _all(tasks, workers):
            bar.update()
            if found is None:
                verdicts["left out"] += 1
                continue
            if show:
                tqdm.write(f"# program {found.seed}\n{source(random_pair(found.seed))}")
            for finding in found.findings:
                kinds[finding.check][finding.kind] += 1
                if finding.kind == "refused":
                    reasons[reason(finding)] += 1
                    examples.setdefault(reason(finding), found.seed)
            of_it = {f.kind for f in found.findings}
            verdicts[next((k for k in ("wrong", "refused", "passed") if k in of_it), "skipped")] += 1
            if found.wrong:
                wrong.append(found)
                tqdm.write(_report(found))
            bar.set_postfix(wrong=len(wrong))
    took = time.perf_counter() - started
    for text, count in reasons.most_common():
        print(f"refused {count:5d} (first by program {examples[text]}): {text}")
    for name, counted in kinds.items():
        if counted:
            print(f"{name:15s} " + ", ".join(f"{n} {k}" for k, n in sorted(counted.items())))
    print(
        f"{sum(verdicts.values())} programs in {took:.0f} s: "
        + ", ".join(f"{n} {k}" for k, n in sorted(verdicts.items()))
    )
    if out is not None:
        out.write_text(json.dumps([_as_json(f) for f in wrong], indent=1))
    raise typer.Exit(bool(wrong))


def _report(found: Found) -> str:
    lines = [f"\nprogram {found.seed}: " + "; ".join(f"{f.check}: {f.text}" for f in found.wrong)]
    if found.small:
        lines += ["smaller: " + "; ".join(f"{f.check}: {f.text}" for f in found.small_findings), found.small]
    return "\n".join(lines)


def _as_json(found: Found) -> dict[str, object]:
    return {
        "seed": found.seed,
        "wrong": [f"{f.check}: {f.text}" for f in found.wrong],
        "features": sorted(found.features),
        "small": found.small,
        "small_wrong": [f"{f.check}: {f.text}" for f in found.small_findings],
    }


if __name__ == "__main__":
    typer.run(main)
