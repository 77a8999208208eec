"""enumerated."""
