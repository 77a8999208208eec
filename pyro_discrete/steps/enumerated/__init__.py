"""The exact ways of a step: sums over all values in parallel, over joint values as rows, or element by element."""
