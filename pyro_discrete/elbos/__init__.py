"""What users hand to SVI: the three objectives around one engine, and the errors as a user needs them."""
