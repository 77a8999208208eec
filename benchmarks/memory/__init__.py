"""How much memory steps and test likelihoods take, also beside Pyro."""
