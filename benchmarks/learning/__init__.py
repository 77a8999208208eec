"""What is learned: long and short runs, and where they stall."""
