"""Compiled numerics on plain arrays: arrays in, arrays out, nothing but JAX."""
