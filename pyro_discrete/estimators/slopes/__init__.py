"""Estimators whose control variate is made of the cost's slopes, at relaxed values, at a mean or at hard draws."""
