"""The API pages: every public name, on the page of the floor that it is defined in.

`.. floor:: estimators/score` documents what is defined there and public: what the `__all__` of a module that users
import has. A public name without a docstring, or on no page, is a warning, which fails the build. On all pages, names
in backticks lead to their entries.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import pyro_discrete

__all__ = ["Public", "floor_of", "public_names", "setup"]

LOGGER = logging.getLogger(__name__)
FOR_EXTENSIONS = "pyro_discrete.estimators.base"
"""The one module in a folder that users import whole: estimators are written with it."""


class Public(NamedTuple):
    """A public name: the shortest `path` to it, the `thing`, the `floor` where it is defined, its kind for autodoc."""

    path: str
    thing: Any
    floor: str
    kind: str


def public_modules() -> list[ModuleType]:
    """The modules that users import: the package, what stands in it and exports names, and `FOR_EXTENSIONS`."""
    names = [module.name for module in pkgutil.iter_modules(pyro_discrete.__path__, "pyro_discrete.")]
    found = [pyro_discrete, *(importlib.import_module(name) for name in [*names, FOR_EXTENSIONS])]
    return [module for module in found if getattr(module, "__all__", None)]


@cache
def public_names() -> dict[str, Public]:
    """Every public name by its path, each thing once."""
    modules = public_modules()
    found: dict[int, Public] = {id(module): Public("", module, "", "") for module in modules}
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if id(thing) not in found:
                defined = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", module.__name__)
                if not defined.startswith("pyro_discrete"):
                    defined = f"{module.__name__}.{name}"
                found[id(thing)] = Public(f"{module.__name__}.{name}", thing, floor_of(defined), kind_of(thing))
    return {public.path: public for public in found.values() if public.path}


def floor_of(module: str) -> str:
    """The folder of a module, or the module that stands at the package's root."""
    parts = module.split(".")[1:]
    return "/".join(parts[:-1]) or parts[0]


def kind_of(thing: Any) -> str:
    """How autodoc calls such a thing."""
    if inspect.ismodule(thing):
        return "module"
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if callable(thing) and hasattr(thing, "__name__") else "data"


def entry(public: Public) -> list[str]:
    """The lines that have autodoc write the entry."""
    path = public.thing.__name__ if public.kind == "module" else public.path
    lines = [f".. auto{public.kind}:: {path}"]
    if public.kind == "class":
        lines.append("   :members:")
    if inspect.isclass(public.thing) and issubclass(public.thing, enum.Enum):
        lines.append("   :undoc-members:")
    if public.path in ("pyro_discrete.TraceELBO",):
        lines.append("   :inherited-members: Module")
    return [*lines, ""]


def first_sentence(thing: Any) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


class Floor(SphinxDirective):
    """`.. floor:: estimators/score`: a table of what is public there, and the entry of each."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        here = sorted(
            (public for public in public_names().values() if public.floor == self.arguments[0]),
            key=lambda public: public.path.rsplit(".", 1)[-1].lower(),
        )
        if not here:
            raise self.error(f"nothing public is defined in {self.arguments[0]}")
        lines = [".. list-table::", "   :class: names", "   :widths: auto", ""]
        for public in here:
            lines += [f"   * - :py:obj:`~{public.path}`", f"     - {first_sentence(public.thing)}"]
        lines.append("")
        for public in here:
            module = public.path.rpartition(".")[0]
            lines += [f".. py:currentmodule:: {module}", "", *entry(public)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.get_source_info()[0]), self.content_offset, container)
        return container.children


def check_all_are_there(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names without an entry, and without a docstring."""
    entries = env.get_domain("py").objects  # type: ignore[attr-defined]
    for path, public in public_names().items():
        if path not in entries and (public.kind != "module" or public.thing.__name__ not in entries):
            LOGGER.warning("%s is public and on no page: %s has none in docs/api", path, public.floor)
        if public.kind != "data" and not inspect.getdoc(public.thing):
            LOGGER.warning("%s is public and has no docstring", path)


def by_bare_name(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, child: nodes.Node) -> Any:
    """Where a name leads that is not looked for with its module."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rsplit(".", 1)[-1]
    known = {path.rsplit(".", 1)[-1]: path for path in reversed(public_names())}
    found = env.get_domain("py").objects.get(known.get(name, ""))  # type: ignore[attr-defined]
    if found is None or app.builder.name == "linkcheck":
        return None
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, child, name)


def link_names(app: Sphinx, document: nodes.document) -> None:
    """Code in a line leads to the entry of the public name that it is, if that has a capital or is called: `fit()`."""
    known = {path.rsplit(".", 1)[-1]: path for path in reversed(public_names())}
    for literal in list(document.findall(nodes.literal)):
        text = literal.astext()
        name = text.removesuffix("()").removeprefix("pyro_discrete.")
        if name not in known or name.lower() == text:
            continue
        if isinstance(literal.parent, nodes.title | nodes.reference | addnodes.pending_xref):
            continue
        reference = addnodes.pending_xref(
            "", refdomain="py", reftype="obj", reftarget=known[name], refdoc=app.env.docname, refwarn=False
        )
        literal.replace_self(reference)
        reference += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive, the check and the links."""
    app.add_directive("floor", Floor)
    app.connect("env-check-consistency", check_all_are_there)
    app.connect("missing-reference", by_bare_name)
    app.connect("doctree-read", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
