"""Estimators by coupled draws of a site, whose costs are compared: antithetic pairs and sets, flipped bits."""
