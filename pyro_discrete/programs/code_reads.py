"""What the code of a Python function refers to: global variables, attributes, imports; told by its bytecode."""

from __future__ import annotations

import dis
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType

__all__ = [
    "CodeReads",
    "code_reads",
]


BY_NAME = frozenset(("getattr", "hasattr", "setattr", "delattr"))
"""Builtins that take an attribute's name: harmless where it stands in the code."""


ANY_NAME = frozenset(("vars", "dir", "attrgetter", "methodcaller"))
"""What reads attributes whose names do not stand in the code."""


_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))


_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"))


_VARIABLES = frozenset(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", *_GLOBALS))


@dataclass
class CodeReads:
    """What a function's code refers to, that of the functions inside it included.

    - `variables`: global and free variables, each with the dotted paths of attributes that are read from it (`("nn",
      "Linear")`); the empty path where it is used in another way.
    - `names`: every attribute that is read or written, of whatever object.
    - `computed`: whether attributes are read whose names do not stand in the code.
    - `imports`: modules imported inside, each with the names that are taken from it.
    """

    variables: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    computed: bool = False
    imports: dict[str, set[str]] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def code_reads(code: CodeType) -> CodeReads:
    """What a function's code refers to."""
    found = CodeReads()
    _add(code, found)
    return found


def _add(code: CodeType, found: CodeReads) -> None:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG", "PUSH_NULL")]
    module = ""
    for place, step in enumerate(steps):
        name = step.argval
        if step.opname in _GLOBALS or step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            found.variables.setdefault(name, set()).add(_path(steps, place))
            found.computed |= name in ANY_NAME or (name in BY_NAME and not _takes_a_constant(steps, place, found))
        elif step.opname in _ATTRIBUTES or step.opname in ("STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR"):
            found.names.add(name)
            found.computed |= name in ANY_NAME or name == "__dict__"
        elif step.opname == "IMPORT_NAME":
            module = name
            found.imports.setdefault(module, set())
        elif step.opname == "IMPORT_FROM":
            found.imports.setdefault(module, set()).add(name)
            found.names.add(name)
            found.computed |= name in ANY_NAME
        elif step.opname == "MATCH_CLASS":
            found.computed = True  # `case Point(0, y)` reads `__match_args__`
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add(constant, found)


def _path(steps: list[dis.Instruction], place: int) -> tuple[str, ...]:
    """The attributes that are read one after another from the variable at this place."""
    path = []
    for step in steps[place + 1 :]:
        if step.opname not in _ATTRIBUTES:
            break
        path.append(step.argval)
    return tuple(path)


def _takes_a_constant(steps: list[dis.Instruction], place: int, found: CodeReads) -> bool:
    """Whether the `getattr` at this place is of a variable's attribute (of an attribute ...) by a name in the code."""
    after = place + 1
    if after >= len(steps) or steps[after].opname not in _VARIABLES:
        return False
    after += 1 + len(_path(steps, after))
    if after >= len(steps) or steps[after].opname != "LOAD_CONST" or not isinstance(steps[after].argval, str):
        return False
    rest = [step for step in steps[after + 1 : after + 4] if step.opname != "PRECALL"]
    for arguments, step in zip((2, 3), rest, strict=False):  # the call comes next, or after a default that is loaded
        if step.opname == "CALL" and step.arg == arguments:
            found.names.add(steps[after].argval)
            return True
        if step.opname not in _VARIABLES and step.opname != "LOAD_CONST":
            return False
    return False
