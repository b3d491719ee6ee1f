"""Findings about the kernels of a network."""
