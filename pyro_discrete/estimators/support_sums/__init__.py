"""support_sums."""
