"""How a plan is shown: alike sites in one line, and a drawing of the pair, as Mermaid text or by graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_discrete.inspection.pair_graph import PairGraph, SiteNode
from pyro_discrete.tables.alike_names import grouped, in_one, pattern_of

__all__ = [
    "FILLS",
    "MermaidText",
    "Sketch",
    "Treatment",
    "alike_lines",
    "sketch",
]


FILLS = {
    "summed out": ("#b9e6d6", "#00795a"),
    "sampled": ("#fbe1b0", "#a86f00"),
    "relaxed": ("#efcfe2", "#a3487c"),
    "pathwise": ("#cbe5f6", "#005c93"),
    "observed": ("#e2e2e2", "#555555"),
    "not in the plan": ("#ffffff", "#555555"),
}
"""What a site got: fill and line, after Okabe and Ito's palette, which colour-blind readers can tell apart."""


Treatment = tuple[str, str]
"""What a site got, a key of `FILLS`, and the name of its estimator."""


Line = tuple[str, ...]


Plates = frozenset[tuple[str, str]]
"""Names of plates, and their sizes in words."""


def alike_lines(lines: Sequence[Line]) -> list[Line]:
    """A table (name, ..., words) in which sites that differ by numbers alone share a line, where the first of them was.

    Numbers in the words that are not the same for all of them become a range.

    >>> alike_lines([(f"z_{t}", "rloo", f"leaves out {t} of 9 terms") for t in range(5)])
    [('z_0 ... z_4 (5)', 'rloo', 'leaves out 0 to 4 of 9 terms')]
    """

    def alike(line: Line) -> Line:
        return (pattern_of(line[0]), *line[1:-1], NUMBER.sub("#", line[-1]))

    return [
        lines[group[0]]
        if len(group) == 1
        else (in_one([lines[i][0] for i in group]), *lines[group[0]][1:-1], _ranged([lines[i][-1] for i in group]))
        for group in grouped([alike(line) for line in lines])
    ]


NUMBER = re.compile(r"(?<![\w.+\-])\d+(?!\w|\.\d)")


def _ranged(words: Sequence[str]) -> str:
    """Words that are the same but for numbers."""
    columns = zip(*(NUMBER.findall(w) for w in words), strict=True)
    shown = iter([c[0] if len(set(c)) == 1 else f"{min(c, key=int)} to {max(c, key=int)}" for c in columns])
    return NUMBER.sub(lambda _: next(shown), words[0])


class MermaidText(str):
    """Mermaid's text of a drawing, which JupyterLab, GitHub and Sphinx's Mermaid extensions draw."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return f"```mermaid\n{self}\n```"


@dataclass(frozen=True)
class Box:
    """A node of a drawing: its lines of words, its key in `FILLS`, and the plates around it."""

    lines: Sequence[str]
    got: str
    plates: Plates


@dataclass(frozen=True)
class Sketch:
    """A drawing before it is one: boxes, arrows (from, to, words) of the model and of the guide, and what to say of it.

    - `plates`: of each set of plates that boxes stand in, the set that it is drawn in (None: no other), and its title.
    """

    boxes: Sequence[Box]
    model: Sequence[tuple[int, int, str]]
    guide: Sequence[tuple[int, int, str]]
    plates: Mapping[Plates, tuple[Plates | None, str]]
    notes: Sequence[str]

    def mermaid(self) -> MermaidText:
        """As text for Mermaid (version 10 or newer)."""
        lines = ["flowchart TB"]

        def inside(plates: Plates | None, indent: str) -> None:
            for number, box in enumerate(self.boxes):
                if (box.plates or None) == plates:
                    opening, closing = ("[", "]") if box.got == "observed" else ("([", "])")
                    words = _quoted(box.lines)
                    lines.append(f"{indent}s{number}{opening}{words}{closing}:::{_class(box.got)}")
            for number, (own, (parent, title)) in enumerate(self.plates.items()):
                if parent == plates:
                    lines.append(f"{indent}subgraph p{number}[{_quoted([title])}]")
                    inside(own, indent + "  ")
                    lines.append(f"{indent}end")

        inside(None, "  ")
        for arrow, arrows in (("-->", self.model), ("-.->", self.guide)):
            for start, end, words in arrows:
                lines.append(f"  s{start} {arrow}{f'|{_quoted([words])}|' if words else ''} s{end}")
        for number, note in enumerate(self.notes):
            lines.append(f"  note{number}[{_quoted([note])}]:::note")
        for got in dict.fromkeys(box.got for box in self.boxes):
            fill, line = FILLS[got]
            lines.append(f"  classDef {_class(got)} fill:{fill},stroke:{line},color:#111111")
        if self.plates:
            numbers = ",".join(f"p{number}" for number in range(len(self.plates)))
            lines += ["  classDef plate fill:none,stroke:#888888", f"  class {numbers} plate"]
        if self.notes:
            lines.append("  classDef note fill:none,stroke:none")
        return MermaidText("\n".join(lines))

    def graphviz(self) -> Any:
        """As a `graphviz.Digraph`: needs the Python package graphviz, and to be drawn Graphviz' own `dot`."""
        import graphviz  # of the extra "plots"

        def label(lines: Sequence[str]) -> str:
            return graphviz.nohtml("\\n".join(str(graphviz.escape(line)) for line in lines))

        whole = graphviz.Digraph(
            node_attr={"style": "filled", "fontcolor": "#111111", "fontname": "sans-serif", "fontsize": "11"}
        )
        whole.attr("edge", fontname="sans-serif", fontsize="9")

        def inside(graph: Any, plates: Plates | None) -> None:
            for number, box in enumerate(self.boxes):
                if (box.plates or None) == plates:
                    fill, line = FILLS[box.got]
                    shape = "box" if box.got == "observed" else "ellipse"
                    graph.node(f"s{number}", label(box.lines), fillcolor=fill, color=line, shape=shape)
            for number, (own, (parent, title)) in enumerate(self.plates.items()):
                if parent == plates:
                    with graph.subgraph(name=f"cluster_{number}") as below:
                        below.attr(label=label([title]), color="#888888", fontname="sans-serif", fontsize="10")
                        inside(below, own)

        inside(whole, None)
        for style, arrows in (("solid", self.model), ("dashed", self.guide)):
            for start, end, words in arrows:
                whole.edge(f"s{start}", f"s{end}", label([words]) if words else None, style=style)
        if self.notes:
            whole.attr(label=label(self.notes), fontname="sans-serif", fontsize="10")
        return whole


def sketch(graph: PairGraph, got: Mapping[str, Treatment]) -> Sketch:
    """The drawing of a pair whose sites got what is given for each latent one; alike sites share a box."""
    nodes = graph.nodes or [SiteNode(name, "", (), False, "both") for name in got]
    treatments = [_treatment(node, got) for node in nodes]
    keys = [
        (pattern_of(node.name), node.law, node.plates, node.where, treatment)
        for node, treatment in zip(nodes, treatments, strict=True)
    ]
    groups = grouped(keys)
    boxes = [
        Box(_words([nodes[i].name for i in group], nodes[group[0]], treatments[group[0]]), treatments[group[0]][0],
            frozenset(nodes[group[0]].plates))
        for group in groups
    ]  # fmt: skip
    places = {nodes[i].name: (box, place) for box, group in enumerate(groups) for place, i in enumerate(group)}
    sizes = [len(group) for group in groups]
    notes = []
    if graph.guide:
        notes.append("solid arrows: the model, dashed: the guide")
    if graph.unknown:
        notes.append(f"arrows may be missing: {graph.unknown}")
    return Sketch(
        boxes,
        _joined(graph.model, places, sizes),
        _joined(graph.guide, places, sizes),
        _nested(frozenset(node.plates) for node in nodes),
        notes,
    )


def _treatment(node: SiteNode, got: Mapping[str, Treatment]) -> Treatment:
    if node.observed:
        return "observed", ""
    return got.get(node.name, ("not in the plan", ""))


def _words(names: Sequence[str], node: SiteNode, treatment: Treatment) -> list[str]:
    what, estimator = treatment
    if node.law == "factor":
        return [in_one(names), "factor"]
    alone = " (the guide's alone)" if node.where == "guide" else ""
    how = f"{what}: {estimator}" if estimator and what in ("sampled", "relaxed") else what
    return [line for line in (in_one(names), node.law, how + alone) if line]


def _joined(
    arrows: frozenset[tuple[str, str]], places: Mapping[str, tuple[int, int]], sizes: Sequence[int]
) -> list[tuple[int, int, str]]:
    """Arrows between boxes, each with words for which of their sites it joins, where that is not plain."""
    found: dict[tuple[int, int], list[int]] = {}
    for start, end in arrows:
        (one, first), (other, second) = places[start], places[end]
        found.setdefault((one, other), []).append(second - first)
    return [(one, other, _which(sorted(steps), sizes[one], sizes[other], one == other))
            for (one, other), steps in sorted(found.items())]  # fmt: skip


def _which(steps: Sequence[int], starts: int, ends: int, own: bool) -> str:
    if own:
        if set(steps) == {1} and len(steps) == starts - 1:
            return "each on the one before"
        if min(steps) > 0 and len(steps) == starts * (starts - 1) // 2:
            return "each on all before"
        return f"{len(steps)} arrows, {min(steps)} to {max(steps)} apart"
    if starts == ends and starts > 1 and set(steps) == {0} and len(steps) == starts:
        return "one to one"
    if len(steps) == starts * ends:
        return "" if len(steps) == 1 else "each on all" if starts > 1 and ends > 1 else ""
    return f"{len(steps)} arrow{'s' * (len(steps) > 1)} of {starts} x {ends}"


def _nested(sets: Iterable[Plates]) -> dict[Plates, tuple[Plates | None, str]]:
    """How sets of plates are drawn in each other: plates that cross have a box of their own where they do."""
    known = sorted({plates for plates in sets if plates}, key=lambda plates: (len(plates), sorted(plates)))
    found: dict[Plates, tuple[Plates | None, str]] = {}
    for plates in known:
        within = [other for other in known if other < plates]
        around = [other for other in within if all(other <= top for top in within if not any(top < o for o in within))]
        parent = max(around, key=len, default=None)
        own = sorted(plates - (parent or frozenset()))
        found[plates] = parent, " x ".join(f"{name} ({size})" for name, size in own)
    return found


def _class(got: str) -> str:
    return got.replace(" ", "_")


def _quoted(lines: Sequence[str]) -> str:
    """Words for Mermaid, in which it reads no syntax of its own."""
    return '"' + "<br/>".join("".join(map(_escaped, line)) for line in lines) + '"'


def _escaped(character: str) -> str:
    if not character.isprintable():
        return " "
    return f"#{ord(character)};" if character in SYNTAX else character


SYNTAX = frozenset('"`<>&#;|%\\*~')
"""What Mermaid reads as its own, as Markdown or as HTML, between quotes."""
