"""Estimators that sum over a site's support, or over a part of it and sample the rest."""
