"""Programs whose latents are structures: rankings, subsets, matchings, graphs."""
