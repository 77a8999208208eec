"""What can go wrong around the models, one type a cause; the command line prints the message alone."""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "ModelsError"]


class ModelsError(ValueError):
    """Base of the errors of this package: something that the user gave and can put right."""


class DataError(ModelsError):
    """A data set is unknown, absent, damaged, or holds values that are no pixel intensities."""


class ConfigError(ModelsError):
    """A setting is out of its range, or settings contradict each other."""
