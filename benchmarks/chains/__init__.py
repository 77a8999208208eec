"""Unrolled loops: what their graphs become, and what a step of theirs takes."""
