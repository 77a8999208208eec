"""Guides made from a model: discrete sites by tables of logits or by networks of the data."""

from pyro_discrete.guides.auto_discrete import AutoDiscreteMeanField

__all__ = ["AutoDiscreteMeanField"]
