"""What is done with a program: runs from their settings to their evaluation, and comparisons of them."""
