"""When Python looks for objects that nothing but each other refers to."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collecting_later"]


_switching = threading.RLock()  # of the search itself, which all threads have in common


@contextmanager
def collecting_later() -> Iterator[None]:
    """No search for unused cycles inside.

    What makes many small objects that stay, such as a graph or a long program's traces, would have them gone through
    again and again: of capturing a chain of 1,000 steps that is a third of the time, of planning it a quarter, of an
    eager step of it a quarter as well. Shorter programs take what they take.

    >>> import gc
    >>> with collecting_later():
    ...     gc.isenabled()
    False
    """
    with _switching:
        collecting = gc.isenabled()
        gc.disable()
    try:
        yield
    finally:
        if collecting:
            with _switching:
                gc.enable()
