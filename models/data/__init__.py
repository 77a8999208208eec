"""Data sets of each kind, and a bandit's log: what the programs read."""
