"""small_programs."""
