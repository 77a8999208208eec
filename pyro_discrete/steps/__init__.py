"""One step of a plan: the rows placed, guide and model run, each site's cost handed to its estimator."""
