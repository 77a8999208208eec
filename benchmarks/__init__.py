"""Scripts that measure what results/RESULTS.md reports: `python -m benchmarks.noise.variance --help`, and so on."""
