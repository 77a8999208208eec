"""Toys of papers on structured latents: figures of this package beside the published ones."""
