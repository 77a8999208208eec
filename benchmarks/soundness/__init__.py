"""Whether the package still computes what it did."""
