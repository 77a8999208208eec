"""A plan: which estimator each site gets, its rows, and the way a step goes; "auto" and its table."""
