"""What is found out about a pair before a step is made: whether it is well formed, what depends on what, and why."""
