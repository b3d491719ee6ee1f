"""Checkpoints whose kernels are replaced."""
