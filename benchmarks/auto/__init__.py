"""The table behind "auto", and how near its choices come to the best."""
