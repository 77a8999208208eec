"""The generated programs: descriptions, their source, their right answers, and the checks that hold the engine to these."""
