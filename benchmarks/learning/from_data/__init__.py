"""What each model of structure from data is held to, a module a model."""
