"""The programs on which the importance-weighted bound is compared with brute force over all K-tuples."""

from __future__ import annotations

from pyro_discrete.testing import bound_programs, programs

PROGRAMS = {p.name: p for p in [*programs(), *bound_programs()]}
CORE = [PROGRAMS[n] for n in ("global_and_layers", "words_in_documents", "subsampled")]
CATEGORIES = [PROGRAMS[n] for n in ("global_category", "categories_in_documents")]
"""A global latent, layers, words inside documents, subsampling: of bits, and of categories."""
