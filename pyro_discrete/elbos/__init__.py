"""elbos."""
