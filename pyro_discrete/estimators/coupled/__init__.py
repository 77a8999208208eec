"""coupled."""
