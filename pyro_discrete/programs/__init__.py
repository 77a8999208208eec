"""What a Pyro program is to this package: its dims, its sites, how a pair is run, and its parameters."""
