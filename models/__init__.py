"""Ready Pyro programs on real and simulated data, trained under any estimator by `python -m models --help`."""
