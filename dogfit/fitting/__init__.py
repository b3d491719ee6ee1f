"""Fits of every kernel with every family."""
