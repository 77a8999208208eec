"""The ready programs: a model of data and its guide each, in plain Pyro."""
