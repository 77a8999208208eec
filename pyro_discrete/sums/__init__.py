"""Exact sums over discrete sites: which are enumerated, how they are eliminated, and what that costs."""
