"""Estimators by a relaxed draw, through which the gradient goes: soft, or hard in the forward pass."""
