"""What a step costs, also beside other libraries and by hand."""
