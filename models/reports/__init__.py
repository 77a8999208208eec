"""What is shown of runs and comparisons: tables, pictures, and one HTML file."""
