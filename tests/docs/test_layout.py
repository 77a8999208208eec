"""Modules stand where the floor plan has them: imports go downwards, and a name is imported from where it is defined.

Sources are read, not run: imports in functions and under `TYPE_CHECKING` count like any others. Each rule has a planted
breach that is seen.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = {
    "pyro_discrete": """
        errors operations
        families checkpoints interrupts garbage tables operation_graphs
        recording
        draws
        control_variates distributions
        estimators/base
        estimators/score estimators/coupled estimators/support_sums estimators/slopes estimators/relaxed
        estimators
        estimators/registry
        programs
        relaxations
        inspection
        sums
        posterior
        objectives
        planning
        steps/enumerated
        steps
        capture
        elbos
        guides training
        diagnostics
        testing/small_programs
        testing/generated_programs
        testing
        .
    """,
    "models": """
        errors
        data
        programs/program
        programs/structured
        programs
        runs
        reports
        cli
        __main__
        .
    """,
    "benchmarks": """
        examples
        noise
        steps chains literature
        memory
        learning/from_data
        learning
        auto
        soundness
        .
    """,
    "tests": """
        support
        device packages
        draws control_variates distributions estimators programs relaxations inspection sums posterior objectives
        planning steps capture elbos guides training diagnostics testing models benchmarks docs
    """,
}
"""From the ground up, packages too. What stands in one line does not know its neighbours; `.` and a folder's name are
the `__init__` as well."""

TORCH_ALONE = ("pyro_discrete.draws", "pyro_discrete.control_variates", "pyro_discrete.estimators")
"""What imports nothing of Pyro."""

MOST_MODULES = 12
"""In a folder, its `__init__` left out; those of tests follow the package's."""

FOR_USERS = frozenset(
    (
        "pyro_discrete",
        "pyro_discrete.control_variates",
        "pyro_discrete.diagnostics",
        "pyro_discrete.distributions",
        "pyro_discrete.estimators",
        "pyro_discrete.guides",
        "pyro_discrete.relaxations",
        "pyro_discrete.testing",
        "pyro_discrete.training",
    )
)
"""Packages whose `__init__` says again what users import from there; every other one is empty."""

WRITTEN_WITH = {"pyro_discrete.estimators.base": "pyro_discrete.families"}
"""Estimators are written with `base`, which hands on the families that they name."""

NAMES_OF_NOTHING = """
    calls columns common context datum doubly finite forms guards helpers misc point rows running separated switches
    utils
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Import:
    """`name` is None where a module is imported as a whole."""

    line: int
    module: str
    name: str | None


class Module:
    """One source file, as far as the rules look at it."""

    def __init__(self, path: str, text: str) -> None:
        parts = path.removesuffix(".py").split("/")
        self.path = path
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.folder = "/".join(parts[1:-1]) or "."
        self.top = parts[0]
        self.tree = ast.parse(text)

    @cached_property
    def imports(self) -> list[Import]:
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(node.lineno, alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
                    module = ".".join([*package[: len(package) - node.level + 1], *([module] if module else [])])
                found += [Import(node.lineno, module, alias.name) for alias in node.names]
        return found

    @cached_property
    def taken(self) -> list[Import]:
        """What is read of modules that were imported whole: `sites.drawn`, by where it is read."""
        froms = [node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom)]
        whole = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in froms for alias in node.names}
        return [
            Import(node.lineno, whole[node.value.id], node.attr)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole
        ]

    @cached_property
    def defined(self) -> set[str]:
        """Names that a statement of the module's own binds, imports left out."""
        names: set[str] = set()
        for node in _statements(self.tree.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        return names

    @cached_property
    def exported(self) -> set[str]:
        """The strings in `__all__`."""
        for node in self.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == "__all__":
                return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        return set()

    @cached_property
    def imported(self) -> set[str]:
        """Names that the module's imports bind at its top."""
        nodes = [n for n in _statements(self.tree.body) if isinstance(n, ast.Import | ast.ImportFrom)]
        return {alias.asname or alias.name.split(".")[0] for node in nodes for alias in node.names}

    def place(self) -> str:
        """Its entry in the floors: itself, if it has one or stands at the root, else its folder."""
        own = self.name.partition(".")[2].replace(".", "/") or "."
        return own if self.is_package or self.folder == "." or own in _floors(self.top) else self.folder


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at the top of a module, those in `if`, `try` and `with` there too."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, inner, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _statements(handler.body)


def _floors(top: str) -> dict[str, int]:
    lines = [line.split() for line in FLOORS[top].split("\n") if line.strip()]
    return {entry: floor for floor, line in enumerate(lines) for entry in line}


def breaches(sources: Mapping[str, str]) -> list[str]:
    """What the sources, by path, have that the rules forbid."""
    modules = {module.name: module for module in (Module(path, text) for path, text in sorted(sources.items()))}
    found: list[str] = []
    for module in modules.values():
        found += _of_the_tree(module)
        found += _of_init(module) if module.is_package else []
        for line in module.imports:
            found += [f"{module.path}:{line.line} {what}" for what in _of_import(module, line, modules)]
        if module.top != "tests":
            taken = [line for line in module.taken if line.module in modules and _is_private(line.name)]
            found += [f"{module.path}:{line.line} reads the private {line.name} of {line.module}" for line in taken]
    return found + _crowded(modules) + _circles(modules)


def _of_the_tree(module: Module) -> list[str]:
    found = []
    if module.place() not in _floors(module.top):
        found.append(f"{module.path} stands in a folder that the floors do not have: {module.place()}")
    words = [word.removeprefix("test_") for word in module.name.split(".")]
    found += [f"{module.path} is named {word}, which says nothing" for word in words if word in NAMES_OF_NOTHING]
    again = (module.exported & module.imported) - module.defined
    if again and module.name not in WRITTEN_WITH and module.name not in FOR_USERS:
        found.append(f"{module.path} re-exports {sorted(again)}")
    return found


def _of_init(module: Module) -> list[str]:
    body = module.tree.body[ast.get_docstring(module.tree) is not None :]
    if module.name not in FOR_USERS:
        return [f"{module.path} is not empty"] if body else []
    allowed = {"__all__", "__version__"} if module.name == "pyro_discrete" else {"__all__"}
    others = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AugAssign)]
    names = module.defined - allowed
    return [f"{module.path} defines {sorted(names) or 'something'}"] if others or names else []


def _target(line: Import, modules: Mapping[str, Module]) -> Module | None:
    """The module that an import leads to, if it is one of these."""
    if line.name is not None and f"{line.module}.{line.name}" in modules:
        return modules[f"{line.module}.{line.name}"]
    return modules.get(line.module)


def _of_import(module: Module, line: Import, modules: Mapping[str, Module]) -> Iterator[str]:
    if module.name.startswith(TORCH_ALONE) and line.module.split(".")[0] == "pyro":
        yield "imports Pyro, below which it stands"
    target = _target(line, modules)
    if target is None:
        if line.module.split(".")[0] in FLOORS:
            yield f"imports {line.module}, which is not there"
        return
    here, there = _height(module), _height(target)
    if -1 in (here[1], there[1]):
        pass  # a place without a floor is said of the module itself
    elif there > here:
        yield f"imports upwards: {target.name}"
    elif there == here and (module.top, module.place()) != (target.top, target.place()):
        yield f"imports its neighbour: {target.name}"
    if target.path.rsplit("/", 1)[-1].startswith("test_"):
        yield f"imports a test: {target.name}"
    if line.name is None or target.name != line.module or line.name == "*":
        return
    if _is_private(line.name):
        yield f"imports the private {line.name} of {target.name}"
    if line.name in target.defined:
        return
    inside = module.top == target.top and module.name != target.top
    of_users = target.name in FOR_USERS and not inside
    of_base = target.name in WRITTEN_WITH and line.name in target.exported
    if not of_users and not of_base:
        yield f"imports {line.name} from {target.name}, where it is not defined"


def _is_private(name: str | None) -> bool:
    return name is not None and name.startswith("_") and not name.startswith("__")


def _height(module: Module) -> tuple[int, int]:
    """Its floor, counted over all packages."""
    return list(FLOORS).index(module.top), _floors(module.top).get(module.place(), -1)


def _crowded(modules: Mapping[str, Module]) -> list[str]:
    folders = [f"{m.top}/{m.folder}" for m in modules.values() if not m.is_package and m.top != "tests"]
    counts = {folder: folders.count(folder) for folder in folders}
    return [f"{folder} holds {n} modules, more than {MOST_MODULES}" for folder, n in counts.items() if n > MOST_MODULES]


def _circles(modules: Mapping[str, Module]) -> list[str]:
    """Each circle of imports that a walk from below closes, by the names along it."""
    edges = {
        name: sorted({t.name for line in module.imports if (t := _target(line, modules)) is not None})
        for name, module in modules.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append("a circle: " + " -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in edges[name]:
                walk(other, [*way, name])
            done.add(name)

    for name in edges:
        walk(name, [])
    return found


def sources_of_the_project() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *(f"{top}/*.py" for top in FLOORS)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    paths = listed or [str(path.relative_to(ROOT)) for top in FLOORS for path in (ROOT / top).rglob("*.py")]
    return {path: (ROOT / path).read_text() for path in paths if (ROOT / path).exists()}


def test_every_module_stands_where_the_floor_plan_has_it() -> None:
    sources = sources_of_the_project()
    assert {f"{top}/__init__.py" for top in ("pyro_discrete", "models", "benchmarks")} <= set(sources)
    assert breaches(sources) == []


def test_contributing_has_the_same_floors() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("<!-- floors: begin -->")[1].split("<!-- floors: end -->")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.strip().splitlines()[2:]]
    floors = [line.split() for line in FLOORS["pyro_discrete"].strip().splitlines()]
    assert [*rows, ["."]] == floors


def test_every_module_says_what_it_holds() -> None:
    first = {
        p: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for p, text in sources_of_the_project().items()
    }
    assert [path for path, line in first.items() if len(line.split()) < 3] == []


SOUND = {
    "pyro_discrete/__init__.py": (
        '"""All."""\nfrom pyro_discrete.elbos.elbo import ELBO\n__all__ = ["ELBO"]\n__version__ = "1"'
    ),
    "pyro_discrete/errors.py": "class Wrong(Exception): ...",
    "pyro_discrete/families.py": "Family = str",
    "pyro_discrete/draws/__init__.py": '"""Draws."""',
    "pyro_discrete/draws/gumbel.py": "import torch\nfrom pyro_discrete.errors import Wrong",
    "pyro_discrete/estimators/__init__.py": "from pyro_discrete.estimators.base import Draw\n__all__ = ['Draw']",
    "pyro_discrete/estimators/base.py": (
        "from pyro_discrete.families import Family\n__all__ = ['Draw', 'Family']\nclass Draw: ..."
    ),
    "pyro_discrete/estimators/registry.py": "def walk():\n    import pyro_discrete.estimators",
    "pyro_discrete/estimators/score/rloo.py": "from pyro_discrete.estimators.base import Draw, Family",
    "pyro_discrete/sums/elimination.py": "TABLE = 1\ndef _share(): ...\nif TABLE:\n    LONG = 2",
    "pyro_discrete/elbos/elbo.py": "from pyro_discrete.sums.elimination import LONG\nclass ELBO: ...",
    "models/runs/trials.py": "from pyro_discrete import ELBO\nfrom pyro_discrete.estimators import Draw",
    "tests/support/pairs.py": "PAIR = 1",
    "tests/sums/test_elimination.py": "from tests.support.pairs import PAIR",
}
"""A small tree that keeps all rules."""

PLANTED = {
    "up": ({"pyro_discrete/draws/gumbel.py": "from pyro_discrete.elbos.elbo import ELBO"}, "imports upwards"),
    "up, in a function": (
        {"pyro_discrete/draws/gumbel.py": "def f():\n    from pyro_discrete.elbos.elbo import ELBO"},
        "imports upwards",
    ),
    "up, for types alone": (
        {"pyro_discrete/draws/gumbel.py": "if TYPE_CHECKING:\n    import pyro_discrete.sums.elimination"},
        "imports upwards",
    ),
    "up, a relative import": ({"pyro_discrete/draws/gumbel.py": "from ..elbos.elbo import ELBO"}, "imports upwards"),
    "up, the whole package": ({"pyro_discrete/sums/elimination.py": "import pyro_discrete"}, "imports upwards"),
    "up, another package": ({"pyro_discrete/errors.py": "from models.runs.trials import Draw"}, "imports upwards"),
    "up, out of a folder below its folder": (
        {
            "pyro_discrete/steps/step.py": "A = 1",
            "pyro_discrete/steps/enumerated/jointly.py": "from pyro_discrete.steps import step",
        },
        "imports upwards",
    ),
    "a neighbour": (
        {
            "pyro_discrete/guides/mean.py": "A = 1",
            "pyro_discrete/training/fit.py": "from pyro_discrete.guides.mean import A",
        },
        "imports its neighbour",
    ),
    "another kind of estimator": (
        {"pyro_discrete/estimators/coupled/arm.py": "from pyro_discrete.estimators.score import rloo"},
        "imports its neighbour",
    ),
    "a folder without a floor": ({"pyro_discrete/tools/knife.py": ""}, "folder that the floors do not have: tools"),
    "a sub-folder without a floor": ({"pyro_discrete/sums/fast/__init__.py": ""}, "do not have: sums/fast"),
    "a module at the root without a floor": ({"pyro_discrete/knife.py": ""}, "do not have: knife"),
    "a circle in a folder": (
        {
            "pyro_discrete/sums/one.py": "from pyro_discrete.sums.two import b\na = 1",
            "pyro_discrete/sums/two.py": "def f():\n    from pyro_discrete.sums.one import a\nb = 1",
        },
        "a circle: pyro_discrete.sums.one -> pyro_discrete.sums.two -> pyro_discrete.sums.one",
    ),
    "too many modules": (
        {f"pyro_discrete/sums/sum_{n}.py": "" for n in range(MOST_MODULES)},
        "holds 13 modules, more than 12",
    ),
    "an `__init__` that defines something": (
        {"pyro_discrete/estimators/__init__.py": "def f(): ..."},
        "estimators/__init__.py defines ['f']",
    ),
    "an `__init__` that does something": (
        {"pyro_discrete/estimators/__init__.py": "print()"},
        "estimators/__init__.py defines something",
    ),
    "an `__init__` that re-exports and may not": (
        {"pyro_discrete/elbos/__init__.py": "from pyro_discrete.elbos.elbo import ELBO"},
        "elbos/__init__.py is not empty",
    ),
    "a module that re-exports": (
        {"pyro_discrete/draws/gumbel.py": "from pyro_discrete.errors import Wrong\n__all__ = ['Wrong']"},
        "re-exports ['Wrong']",
    ),
    "a name from where it is not defined": (
        {"pyro_discrete/sums/components.py": "from pyro_discrete.draws.gumbel import Wrong"},
        "where it is not defined",
    ),
    "a name by way of what users import": (
        {"pyro_discrete/programs/sites.py": "from pyro_discrete.estimators import Draw"},
        "where it is not defined",
    ),
    "a name that says nothing": ({"pyro_discrete/sums/utils.py": ""}, "is named utils"),
    "a folder that says nothing": ({"pyro_discrete/sums/misc/__init__.py": ""}, "is named misc"),
    "a private name": (
        {"pyro_discrete/sums/components.py": "from pyro_discrete.sums.elimination import _share"},
        "imports the private _share",
    ),
    "a private name of a module": (
        {"pyro_discrete/sums/components.py": "from pyro_discrete.sums import elimination as e\nprint(e._share)"},
        "reads the private _share",
    ),
    "Pyro below it": ({"pyro_discrete/estimators/score/rloo.py": "import pyro.distributions as dist"}, "imports Pyro"),
    "what is not there": ({"pyro_discrete/sums/components.py": "import pyro_discrete.probe"}, "which is not there"),
    "a test": ({"tests/sums/test_more.py": "from tests.sums.test_elimination import PAIR"}, "imports a test"),
}
"""What each rule forbids, laid over `SOUND`, and a part of what is said of it."""


def test_a_sound_tree_is_not_blamed() -> None:
    assert breaches(SOUND) == []


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_breaches_are_seen(planted: str) -> None:
    files, said = PLANTED[planted]
    found = breaches({**SOUND, **files})
    assert any(said in line for line in found), found
