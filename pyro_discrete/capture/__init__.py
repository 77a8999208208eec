"""A training step as a graph: when one is captured, what it holds, and when it is to be captured anew.

`captures` is what an ELBO has; it asks `captured_step` for a step, which `graph` traces and `rewriting` makes fit to
run again; `watch` sees whether what the program took from Python is still the same.
"""
