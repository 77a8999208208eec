"""relaxed."""
