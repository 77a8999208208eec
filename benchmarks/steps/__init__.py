"""What a step costs in time and memory, also beside other libraries and by hand."""
