"""Whether the package still computes what it did, and what Pyro does."""
