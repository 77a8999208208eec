"""Programs after Pyro's examples, and after packages built on Pyro."""
