"""Generated programs: descriptions, their source, their right answers, and the checks against these."""
