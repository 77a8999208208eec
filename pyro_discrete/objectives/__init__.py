"""What is maximised: the evidence, a reward or an importance-weighted bound, and each site's cost under it."""
