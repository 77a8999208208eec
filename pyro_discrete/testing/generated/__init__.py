"""Generated pairs of programs, what each has to give, and whether the engine gives it.

`random_pair` draws a small pair from a seed, `source` writes it as a program to read, `check` compares the engine with
an oracle that runs the plain program once for every joint value, and `shrink` makes a pair smaller as long as something
disagrees.

>>> from pyro_discrete.testing.generated import check, random_pair
>>> check(random_pair(3)).kind
'passed'
"""

from pyro_discrete.testing.generated.case import Engine
from pyro_discrete.testing.generated.checks import CHECKS
from pyro_discrete.testing.generated.description import Branch, Chain, Description, Plate, Read, Site
from pyro_discrete.testing.generated.net import Finding, Verdict, check, reason
from pyro_discrete.testing.generated.oracle import Answer, NoAnswerError, answers
from pyro_discrete.testing.generated.random_pairs import random_pair
from pyro_discrete.testing.generated.shrinking import shrink, simpler
from pyro_discrete.testing.generated.source import build, source

__all__ = [
    "CHECKS",
    "Answer",
    "Branch",
    "Chain",
    "Description",
    "Engine",
    "Finding",
    "NoAnswerError",
    "Plate",
    "Read",
    "Site",
    "Verdict",
    "answers",
    "build",
    "check",
    "random_pair",
    "reason",
    "shrink",
    "simpler",
    "source",
]
